"""Medians, spreads, ratios and slopes. Pure."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Sample = dict[str, Any]
Row = dict[str, Any]


def summarise(samples: Sequence[Sample]) -> dict[str, Any]:
    """Return median, least and most of each number that the samples hold; of a number that one lacks, nothing."""
    names = [name for name in samples[0] if all(isinstance(sample.get(name), int | float) for sample in samples)] if samples else []
    return {name: _spread([float(sample[name]) for sample in samples]) for name in names}


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def make_row(way: str, samples: Sequence[Sample], **more: object) -> Row:
    """Return one line of a table: what it is, and what came out."""
    return {"way": way, **more, "rounds": len(samples), **summarise(samples), "samples": list(samples)}


def find_row(rows: Iterable[Row], way: str, **more: object) -> Row | None:
    """Return the row of that way, if it was measured."""
    return next((row for row in rows if row["way"] == way and all(row.get(key) == value for key, value in more.items())), None)


def median_of(row: Row | None, name: str) -> float | None:
    """Return a number's median; None where it was not measured."""
    return row[name]["median"] if row is not None and name in row else None


def ratio_of(row: Row | None, other: Row | None, name: str) -> float | None:
    """Return how many times as much the other one took."""
    ours, theirs = median_of(row, name), median_of(other, name)
    return None if ours is None or theirs is None or ours <= 0 else theirs / ours


def fit_slope(points: Sequence[tuple[float, float]]) -> float | None:
    """Return the slope of the straight line through the points on log-log paper: 1 is linear growth."""
    logs = [(math.log(x), math.log(y)) for x, y in points if x > 0 and y > 0]
    if len(logs) < 2:  # noqa: PLR2004 - a line
        return None
    x_mean, y_mean = statistics.mean(x for x, _ in logs), statistics.mean(y for _, y in logs)
    below = sum((x - x_mean) ** 2 for x, _ in logs)
    return sum((x - x_mean) * (y - y_mean) for x, y in logs) / below if below else None


def write_time(seconds: float | None) -> str:
    """Write a duration with three digits, as people read it."""
    if seconds is None:
        return "-"
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def write_size(octets: float | None) -> str:
    """Write an amount of memory."""
    return "-" if octets is None else f"{octets / 2**20:.1f} MiB"


def write_ratio(ratio: float | None) -> str:
    """Write a ratio."""
    return "-" if ratio is None else f"{ratio:.3g}x"
