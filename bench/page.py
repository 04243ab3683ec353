"""docs/performance.md, its plots, and the raw JSON beside it: made from one result, by no hand."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from bench import svg, tables
from bench.figures import median_of, write_size, write_time
from bench.ways import OURS, PINGS, THEIRS, UDP

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_HOW = {
    "event": (
        "From just before the line is written into the daemon's FIFO, or just before a forked child executes the script, to the "
        "POST's first decrypted byte at the API's TLS server. CPU and memory are those of the way's own processes to their end; "
        "the daemon's to its report."
    ),
    "budget": "Counted at the API until the way has ended. Reading the metadata service costs no call.",
    "fanout": (
        "On the lab: each peer a network namespace with its own sshd, all on the same cores. The reserved IP moves before each "
        "run, so every peer begins stale. Refreshed and proven are seen on the load balancer's wire, by the kernel's time stamps, "
        "the same for all ways: the first echo request of the last peer to the public address, and to the reserved IP. CPU and peak "
        "memory are the load balancer's own processes (a cgroup), without the peers'. The armed one's connections are there "
        "before; the cold one has its modules imported; the one-shot has nothing. Two floors stand beside them: the same exchange over "
        "UDP, and the peers' pings alone, without SSH, shell or load balancer: what the peers themselves cost on these cores, and "
        "below which nothing that makes them ping can come. How the numbers became these: [profiling.md](profiling.md)."
    ),
    "whole": (
        "Real keepalived; HAProxy is killed on lb1; the API's action takes as long as the lab lets it. Our part is everything between "
        "the VRRP event and the last peer's proof that is not the API's action. In the tutorial's way nobody tells the peers: they "
        "never come back while they are watched."
    ),
}


def write_page(result: dict[str, Any], docs: Path) -> None:
    """Write all of it below `docs`."""
    plots = docs / "performance"
    plots.mkdir(parents=True, exist_ok=True)
    (plots / "raw.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    drawn = draw_plots(result["cases"])
    for name, text in drawn.items():
        (plots / f"{name}.svg").write_text(text, encoding="utf-8")
    (docs / "performance.md").write_text(compose(result, list(drawn)), encoding="utf-8")


def read_page(docs: Path) -> dict[str, Any]:
    """Return the result that the page was made from."""
    found: dict[str, Any] = json.loads((docs / "performance" / "raw.json").read_text(encoding="utf-8"))
    return found


def compose(result: dict[str, Any], plots: list[str]) -> str:
    """Write the page's text."""
    machine = result["machine"]
    parts = [
        "# Performance",
        "Made by `scripts/bench --docs`; don't edit it. Raw numbers: [performance/raw.json](performance/raw.json).",
        _describe_machine(machine, result),
        *(f"Measured again at {again['at']} ({again['commit']}): {again['what']}." for again in result.get("again", [])),
        "## Promises",
        tables.write_markdown(tables.tabulate_targets(result["targets"])),
    ]
    told: set[str] = set()
    for name, case in result["cases"].items():
        for title, table in tables.list_tables({name: case}):
            parts += [f"## {title}", *([] if name in told else [_HOW[name]]), tables.write_markdown(table)]
            told.add(name)
        parts += [f"![{plot}](performance/{plot}.svg)" for plot in plots if plot.startswith(name)]
        missing = case.get("missing")
        parts += [f"Not installed here, so not measured: {', '.join(missing)}."] if missing else []
    parts += [f"Did not run: {name}: {why}" for name, why in result["failed"].items()]
    return "\n\n".join(parts) + "\n"


def _describe_machine(machine: dict[str, Any], result: dict[str, Any]) -> str:
    tools = "; ".join(f"{name}: {version or 'not installed'}" for name, version in machine["tools"].items())
    return (
        f"{machine['at']}, mode {result['mode']}, {result['took_s']:g} s; load average {machine['load']:.2f} before, "
        f"{result['load_after']:.2f} after (the bench's own included). {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory']}; {machine['system']}, Linux {machine['kernel']}, Python {machine['python']}, "
        f"do-failover {machine['do-failover']} ({machine['commit']}), asyncssh {machine['asyncssh']}. {tools}."
    )


def draw_plots(cases: dict[str, Any]) -> dict[str, str]:
    """Draw what was measured: name and SVG."""
    found: dict[str, str] = {}
    if "event" in cases:
        bars, ours = _bars(cases["event"]["rows"], "post_s"), ("daemon", "shim + daemon", "one-shot notify")
        found["event"] = svg.draw_bars("Event to POST (median, logarithmic)", bars, ours, write_time)
    if "fanout" in cases:
        found |= _draw_fanout(cases["fanout"]["rows"])
    return found


def _draw_fanout(rows: list[dict[str, Any]]) -> dict[str, str]:
    counts = sorted({row["n"] for row in rows})
    most = max((n for n in counts if any(row["n"] == n and row["way"] in THEIRS for row in rows)), default=counts[-1])
    here = [row for row in rows if row["n"] == min(most, 100)]
    found = {}
    for key, title, write in (
        ("proven_s", "All of {n} peers proven (median, logarithmic)", write_time),
        ("cpu_s", "The load balancer's own CPU for {n} peers (median, logarithmic)", write_time),
    ):
        bars = _bars(here, key)
        if bars:
            found[f"fanout-{key.removesuffix('_s')}"] = svg.draw_bars(title.format(n=min(most, 100)), bars, OURS, write)
    grown: tuple[tuple[str, str, Callable[[float], str]], ...] = (
        ("proven_s", "Time until all peers are proven", write_time),
        ("cpu_s", "The load balancer's own CPU", write_time),
        ("peak_octets", "Peak memory of the load balancer's own processes", write_size),
    )
    for key, title, write_value in grown:
        lines = {way: points for way in (*OURS, *THEIRS, UDP, PINGS) if len(points := _points(rows, way, key)) > 1}
        if lines and len(counts) > 1:
            found[f"fanout-growth-{key.partition('_')[0]}"] = svg.draw_lines(title, lines, write_value)
    return found


def _bars(rows: list[dict[str, Any]], key: str) -> list[tuple[str, float]]:
    return [(row["way"], value) for row in rows if (value := median_of(row, key))]


def _points(rows: list[dict[str, Any]], way: str, key: str) -> list[tuple[float, float]]:
    return sorted((float(row["n"]), value) for row in rows if row["way"] == way and (value := median_of(row, key)))
