"""The tables that a person reads, on a terminal and on the page. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench.figures import find_row, median_of, ratio_of, write_ratio, write_size, write_time

if TYPE_CHECKING:
    from collections.abc import Sequence

Table = list[list[str]]
"""The first line is the heading."""


_TITLES = {
    "event": "Event to POST",
    "budget": "API calls of one failover",
    "fanout": "All peers refreshed, and proven",
    "whole": "lb1 dies: who is served by lb2, and when",
}


def list_tables(cases: dict[str, Any]) -> list[tuple[str, Table]]:
    """Return every case's tables, with their titles."""
    makers = {"event": _tabulate_event, "budget": _tabulate_budget, "whole": _tabulate_whole}
    found: list[tuple[str, Table]] = []
    for name, case in cases.items():
        if name == "fanout":
            counts = sorted({row["n"] for row in case["rows"]})
            found += [(f"{_TITLES[name]}: {n} peers", _tabulate_fanout([row for row in case["rows"] if row["n"] == n])) for n in counts]
        elif name in makers:
            found.append((_TITLES[name], makers[name](case["rows"])))
    return found


def _spread(row: dict[str, Any], name: str) -> str:
    if name not in row:
        return "-"
    found = row[name]
    return f"{write_time(found['median'])} ({write_time(found['min'])} to {write_time(found['max'])})"


def _count(row: dict[str, Any], name: str) -> str:
    """Say how many peers were reached, where not all were each time."""
    return f"{row[name]['min']:g} to {row[name]['max']:g} of {row['n']} peers" if name in row else "-"


def _tabulate_event(rows: list[dict[str, Any]]) -> Table:
    base = find_row(rows, "daemon")
    head = ["way", "event to POST: median (least to most)", "times the daemon", "own CPU, whole failover", "peak memory", "rounds"]
    return [
        head,
        *(
            [
                row["way"],
                _spread(row, "post_s"),
                write_ratio(ratio_of(base, row, "post_s")),
                write_time(median_of(row, "cpu_s")),
                write_size(median_of(row, "peak_octets")),
                str(row["rounds"]),
            ]
            for row in rows
        ),
    ]


def _tabulate_budget(rows: list[dict[str, Any]]) -> Table:
    head = ["way", "the action takes", "calls", "GET", "POST accepted"]
    names = ("api_calls", "gets", "posts")
    return [head, *([row["way"], f"{row['action_time_s']:g} s", *(f"{median_of(row, name):g}" for name in names)] for row in rows)]


def _tabulate_fanout(rows: list[dict[str, Any]]) -> Table:
    base = find_row(rows, "armed")
    proven = "all proven: median (least to most)"
    head = ["way", "all refreshed", proven, "times armed", "returned", "own CPU", "times armed", "peak memory", "rounds"]
    return [
        head,
        *(
            [
                row["way"],
                write_time(median_of(row, "refreshed_s")) if "refreshed_s" in row else _count(row, "refreshed"),
                _spread(row, "proven_s") if "proven_s" in row else _count(row, "proven"),
                write_ratio(ratio_of(base, row, "proven_s")),
                write_time(median_of(row, "returned_s")),
                write_time(median_of(row, "cpu_s")),
                write_ratio(ratio_of(base, row, "cpu_s")),
                write_size(median_of(row, "peak_octets")),
                str(row["rounds"]),
            ]
            for row in rows
        ),
    ]


def _tabulate_whole(rows: list[dict[str, Any]]) -> Table:
    parts = {"detect_s": "VRRP finds out", "post_s": "to the POST", "api_s": "the API", "notice_s": "noticed", "heal_s": "all proven"}
    head = ["way", "peers", *parts.values(), "our part", "client served after", "last peer served after", "cut off at the end", "rounds"]
    return [
        head,
        *(
            [
                row["way"],
                str(row["n"]),
                *(write_time(median_of(row, name)) for name in parts),
                _spread(row, "ours_s"),
                write_time(median_of(row, "client_s")),
                "never" if median_of(row, "cut_off") else write_time(median_of(row, "peers_s")),
                f"{median_of(row, 'cut_off') or 0:g}",
                str(row["rounds"]),
            ]
            for row in rows
        ),
    ]


def tabulate_targets(targets: Sequence[dict[str, Any]]) -> Table:
    """Return the promises as a table."""
    return [
        ["promise", "target", "measured", "verdict"],
        *(
            [target["name"], target["target"], "-" if target["value"] is None else f"{target['value']:.4g}", target["verdict"]]
            for target in targets
        ),
    ]


def write_plain(table: Table) -> str:
    """Write a table for a terminal."""
    widths = [max(len(line[place]) for line in table) for place in range(len(table[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def write_markdown(table: Table) -> str:
    """Write a table for the page."""
    lines = ["| " + " | ".join(line) + " |" for line in table]
    return "\n".join([lines[0], "|" + "---|" * len(table[0]), *lines[1:]])
