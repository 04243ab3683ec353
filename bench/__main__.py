"""scripts/bench: run the cases, print tables and promises, write the JSON and the page."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import gc
import json
import os
import signal
import sys
import time
from typing import Any

from bench import tables
from bench.cases import CASES, DEFAULT, FULL, QUICK, Size
from bench.costs import remove_leftovers
from bench.machine import describe_machine
from bench.merge import merge_results
from bench.page import read_page, write_page
from bench.process import TOP, BenchError
from bench.quote import write_quote
from bench.targets import judge
from do_failover.errors import FailoverError

_NOT_ROOT = 4


def main() -> int:
    """Return 0 when everything that was asked for has run; 1 when something did not work. Never because of a time."""
    arguments = _read_arguments()
    if os.geteuid() != 0 or sys.platform != "linux":
        _say("the bench needs root on Linux: it runs on the lab, which is made of network namespaces")
        return _NOT_ROOT
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # everything is put away also then
    remove_leftovers()
    size = _choose_size(arguments)
    result: dict[str, Any] = {"schema": 1, "mode": arguments.mode, "machine": describe_machine(), "cases": {}, "failed": {}}
    began = time.monotonic()
    for name in arguments.case or CASES:
        _run_one(name, size, result)
    result["took_s"] = round(time.monotonic() - began, 1)
    result["load_after"] = os.getloadavg()[0]
    if arguments.docs and (arguments.case or arguments.peers):
        result = merge_results(read_page(TOP / "docs"), result)
    result["targets"] = judge(result["cases"])
    if arguments.docs:
        write_page(result, TOP / "docs")
        write_quote(result, TOP / "README.md")
    _show(result, is_json=arguments.output == "json")
    return 1 if result["failed"] else 0


def _run_one(name: str, size: Size, result: dict[str, Any]) -> None:
    """Run one case; what does not work is said, and the others run."""
    _say(f"case {name}")
    try:
        result["cases"][name] = asyncio.run(_run_case(name, size))
    except (BenchError, FailoverError, OSError) as error:
        result["failed"][name] = f"{type(error).__name__}: {error}"
        _say(f"case {name} failed: {error}")


async def _run_case(name: str, size: Size) -> dict[str, Any]:
    found = await CASES[name](size, lambda what: _say(f"{name}: {what}"))
    gc.collect()  # asyncio's transports close on their own loop, not on a closed one
    await asyncio.sleep(0)
    return found


def _read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measure do-failover beside what people run today, on the lab.")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--quick", dest="mode", action="store_const", const="quick", help="few peers, one round: does all of it work?")
    mode.add_argument("--full", dest="mode", action="store_const", const="full", help="all of it, in less than 20 minutes")
    parser.add_argument("--case", action="append", choices=CASES, help="this case only; may be given more than once")
    parser.add_argument("--peers", type=_read_counts, metavar="N,N,...", help="numbers of peers, instead of the size's own")
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    parser.add_argument(
        "--docs",
        action="store_true",
        help="write docs/performance.md, its plots, the raw JSON and the README's quote; with --case or --peers, the other rows stay",
    )
    parser.set_defaults(mode="default")
    return parser.parse_args()


def _read_counts(text: str) -> tuple[int, ...]:
    return tuple(sorted({int(word) for word in text.split(",")}))


def _choose_size(arguments: argparse.Namespace) -> Size:
    size = {"quick": QUICK, "full": FULL, "default": DEFAULT}[arguments.mode]
    if arguments.peers is None:
        return size
    return dataclasses.replace(size, peers=arguments.peers, whole_peers=(min(arguments.peers[-1], 100),))


def _show(result: dict[str, Any], *, is_json: bool) -> None:
    if is_json:
        print(json.dumps(result))
        return
    for title, table in tables.list_tables(result["cases"]):
        print(f"\n{title}\n\n{tables.write_plain(table)}")
    print(f"\nPromises\n\n{tables.write_plain(tables.tabulate_targets(result['targets']))}")
    for name, why in result["failed"].items():
        print(f"\n{name} failed: {why}")


def _say(what: str) -> None:
    print(f"bench: {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
