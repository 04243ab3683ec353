"""What was promised, and whether it holds: met, missed, or not measured. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.figures import find_row, fit_slope, median_of, ratio_of

if TYPE_CHECKING:
    from collections.abc import Callable

_AT = 100
_SLOPE_FROM = 10
"""Below that the cost of starting shows, and not its growth."""


@dataclass(frozen=True, slots=True)
class Target:
    """One promise. `is_most`: the value may be that much at most, else at least."""

    name: str
    limit: float
    unit: str
    is_most: bool
    value: float | None

    @property
    def verdict(self) -> str:
        """In one word or three."""
        if self.value is None:
            return "not measured"
        return "met" if (self.value <= self.limit if self.is_most else self.value >= self.limit) else "missed"

    def to_json(self) -> dict[str, Any]:
        """Write it."""
        sign = "<=" if self.is_most else ">="
        return {"name": self.name, "target": f"{sign} {self.limit:g} {self.unit}", "value": self.value, "verdict": self.verdict}


def judge(cases: dict[str, Any]) -> list[dict[str, Any]]:
    """Return every promise with what was measured."""
    rows = {name: case["rows"] for name, case in cases.items()}
    targets = [*_judge_event(rows.get("event", [])), *_judge_fanout(rows.get("fanout", [])), *_judge_whole(rows.get("whole", []))]
    return [target.to_json() for target in targets + list_slopes(rows.get("fanout", []))]


def _ms(value: float | None) -> float | None:
    return None if value is None else value * 1e3


def _judge_event(rows: list[dict[str, Any]]) -> list[Target]:
    daemon, one_shot = find_row(rows, "daemon"), find_row(rows, "one-shot notify")
    tutorial = find_row(rows, "tutorial's scripts")
    bare, others = (find_row(rows, f"bare Python, the same {which}") for which in ("imports", "of others only"))
    return [
        Target("event -> POST, daemon", 2.0, "ms", is_most=True, value=_ms(median_of(daemon, "post_s"))),
        Target("event -> POST, the tutorial's way over the daemon", 50, "times", is_most=False, value=ratio_of(daemon, tutorial, "post_s")),
        Target(
            "event -> POST, one-shot over bare Python, the same imports",
            1.25,
            "times",
            is_most=True,
            value=ratio_of(bare, one_shot, "post_s"),
        ),
        Target("the same, over others' imports only", 1.25, "times", is_most=True, value=ratio_of(others, one_shot, "post_s")),
    ]


def _judge_fanout(rows: list[dict[str, Any]]) -> list[Target]:
    armed, cold = find_row(rows, "armed", n=_AT), find_row(rows, "cold", n=_AT)
    xargs = find_row(rows, "xargs -P32 ssh", n=_AT)
    return [
        Target("100 peers proven, armed", 100, "ms", is_most=True, value=_ms(median_of(armed, "proven_s"))),
        Target("100 peers proven, xargs -P32 over armed", 50, "times", is_most=False, value=ratio_of(armed, xargs, "proven_s")),
        Target("100 peers, own CPU, armed", 20, "ms", is_most=True, value=_ms(median_of(armed, "cpu_s"))),
        Target("100 peers, own CPU, xargs -P32 over armed", 300, "times", is_most=False, value=ratio_of(armed, xargs, "cpu_s")),
        Target("100 peers proven, cold", 1300, "ms", is_most=True, value=_ms(median_of(cold, "proven_s"))),
        Target("100 peers, own CPU, cold", 350, "ms", is_most=True, value=_ms(median_of(cold, "cpu_s"))),
    ]


def _judge_whole(rows: list[dict[str, Any]]) -> list[Target]:
    daemon = find_row(rows, "daemon", n=_AT)
    return [Target("the whole, our part, 100 peers armed", 150, "ms", is_most=True, value=_ms(median_of(daemon, "ours_s")))]


def list_slopes(rows: list[dict[str, Any]]) -> list[Target]:
    """Return how CPU, time and memory grow with the number of peers."""
    found = []
    names: dict[str, Callable[[dict[str, Any]], float | None]] = {
        "own CPU": lambda row: median_of(row, "cpu_s"),
        "time to all proven": lambda row: median_of(row, "proven_s"),
        "peak memory": lambda row: median_of(row, "peak_octets"),
    }
    for way in ("armed", "cold"):
        mine = [row for row in rows if row["way"] == way and row["n"] >= _SLOPE_FROM]
        for name, read in names.items():
            points = [(float(row["n"]), value) for row in mine if (value := read(row)) is not None]
            found.append(Target(f"growth of {name}, {way}", 1.05, "(log-log slope)", is_most=True, value=fit_slope(points)))
    return found
