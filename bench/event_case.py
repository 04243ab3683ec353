"""Event -> POST: from the event's first moment to the POST's first byte at the API.

Zero: just before the line is written into the FIFO (daemon), or just before a forked child executes the script (all others),
as keepalived's would. End: the API's TLS server hands over the first decrypted byte of the POST. Both on CLOCK_MONOTONIC.
CPU and memory: the way's own processes from there to their end; for the daemon to its report (its story is told to the end, without peers).
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import scripts
from bench.costs import Enclosure
from bench.figures import Sample, make_row
from bench.loopback import BACKUP, EVENT, MASTER, Loopback, Resident, list_imports, open_daemon, open_loopback
from bench.process import BenchError, poised

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from bench.cases import Say

_ACTION_S = 0.02
DAEMON, SHIM, ONE_SHOT = "daemon", "shim + daemon", "one-shot notify"
BARE, BARE_OTHERS = "bare Python, the same imports", "bare Python, the same of others only"
TUTORIAL, CURL = "tutorial's scripts", "bash + curl"
_DAEMONS = ((DAEMON, "fifo"), (SHIM, "shim"))


@dataclass
class _Ways:
    """All ways, ready to be run. Each daemon has one source of events: the FIFO's lines, or the shim's."""

    loopback: Loopback
    residents: dict[str, Resident]
    commands: dict[str, list[str]]

    async def run(self, way: str) -> Sample:
        """Run one way once, from a region where Droplet 1 owns the IP."""
        await self.loopback.reset()
        try:
            sample = await (self._run_resident(self.residents[way]) if way in self.residents else self._run_command(self.commands[way]))
        except BenchError as error:
            message = f"{way}: {error}"
            raise BenchError(message) from error
        self.loopback.check_requests()
        return sample

    async def _run_resident(self, resident: Resident) -> Sample:
        """At its end it hears BACKUP: what other ways do is none of its business."""
        number, before = resident.count_reports(), resident.enclosure.cpu_s()
        began = await resident.say(MASTER)
        post = await self.loopback.wait_for_post()
        await resident.wait_for_report(number + 1)
        sample = self._make_sample(began, post, resident.enclosure.cpu_s() - before, resident.enclosure.peak_octets())
        await resident.say(BACKUP)
        await resident.wait_for_report(number + 2)
        return sample

    async def _run_command(self, argv: list[str]) -> Sample:
        with Enclosure() as enclosure:
            async with poised(argv, argv[0], enclosure=enclosure) as talker:
                began = time.monotonic_ns()
                talker.tell("go")
                post = await self.loopback.wait_for_post()
                await talker.wait()
            return self._make_sample(began, post, enclosure.cpu_s(), enclosure.peak_octets())

    def _make_sample(self, began: int, post: dict[str, Any], cpu_s: float, peak: int | None) -> Sample:
        calls = sum("method" in line for line in self.loopback.requests)
        return {"post_s": (post["first_ns"] - began) / 1e9, "cpu_s": cpu_s, "peak_octets": peak, "api_calls": calls}


async def run_case(rounds: int, say: Say) -> dict[str, Any]:
    """Run all ways, one after the other, round after round."""
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm", prefix="do-failover-bench-")))
        loopback = await stack.enter_async_context(open_loopback(directory, _ACTION_S))
        commands = _write_commands(loopback)
        residents = {way: await stack.enter_async_context(open_daemon(loopback, name, is_shimmed=way == SHIM)) for way, name in _DAEMONS}
        ways = _Ways(loopback, residents, commands)
        samples = await interleave([*residents, *commands], ways.run, rounds, say)
        imports = _count_imports(commands)
    return {"action_time_s": _ACTION_S, "imports": imports, "rows": [make_row(way, found) for way, found in samples.items()]}


def _count_imports(commands: dict[str, list[str]]) -> int:
    return sum(line.startswith("import ") for line in Path(commands[BARE][1]).read_text(encoding="utf-8").splitlines())


async def interleave(ways: list[str], run: Callable[[str], Awaitable[Sample]], rounds: int, say: Say) -> dict[str, list[Sample]]:
    """Run each way once a round, in an order that turns; one unmeasured round first."""
    samples: dict[str, list[Sample]] = {way: [] for way in ways}
    for number in range(-1, rounds):
        turned = ways[number % len(ways) :] + ways[: number % len(ways)]
        for way in turned:
            sample = await run(way)
            if number >= 0:
                samples[way].append(sample)
        if number >= 0:
            say(f"round {number + 1} of {rounds}")
        await asyncio.sleep(0)
    return samples


def _write_commands(loopback: Loopback) -> dict[str, list[str]]:
    where, config = loopback.where, loopback.configure("one-shot")
    modules = list_imports(config)
    others = [name for name in modules if not name.startswith("do_failover")]
    assign = loopback.write("assign-ip", scripts.write_tutorial_assign(where))
    return {
        ONE_SHOT: [loopback.program(), "-c", str(config), "notify", *EVENT],
        BARE: [sys.executable, str(loopback.write("bare.py", scripts.write_bare_python(where, modules)))],
        BARE_OTHERS: [sys.executable, str(loopback.write("bare-others.py", scripts.write_bare_python(where, others)))],
        TUTORIAL: [str(loopback.write("master.sh", scripts.write_tutorial(where, str(assign))))],
        CURL: [str(loopback.write("curl.sh", scripts.write_curl(where)))],
    }
