"""Which case runs how often: quick looks whether all of it works, full measures, in less than 20 minutes on two cores."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Size:
    """How much is done: rounds of each case, and numbers of peers."""

    event_rounds: int
    action_times_s: tuple[float, ...]
    peers: tuple[int, ...]
    fanout_rounds: dict[int, int]
    whole_peers: tuple[int, ...]
    whole_rounds: int
    whole_action_s: float
    is_whole_compared: bool = True


QUICK = Size(1, (0.2,), (2,), {2: 1}, (2,), 1, 0.2, is_whole_compared=False)
DEFAULT = Size(9, (1.5,), (1, 10, 100), {1: 3, 10: 3, 100: 2}, (20,), 2, 1.5)
FULL = Size(25, (1.5, 11.0), (1, 10, 100, 300, 1000), {1: 5, 10: 5, 100: 3, 300: 2, 1000: 2}, (100,), 3, 1.5)


async def run_event(size: Size, say: Say) -> dict[str, Any]:
    """Event -> POST."""
    from bench.event_case import run_case

    return await run_case(size.event_rounds, say)


async def run_budget(size: Size, say: Say) -> dict[str, Any]:
    """Count API calls."""
    from bench.budget_case import run_case

    return await run_case(size.action_times_s, say)


async def run_fanout(size: Size, say: Say) -> dict[str, Any]:
    """All peers refreshed, and proven."""
    from bench.fanout_case import run_case

    return await run_case(size.peers, size.fanout_rounds, say)


async def run_whole(size: Size, say: Say) -> dict[str, Any]:
    """lb1 dies."""
    from bench import whole_case

    ways = whole_case.ALL if size.is_whole_compared else (whole_case.DAEMON,)
    return await whole_case.run_case(size.whole_peers, size.whole_rounds, size.whole_action_s, say, ways=ways)


CASES: dict[str, Callable[[Size, Say], Coroutine[Any, Any, dict[str, Any]]]] = {
    "event": run_event,
    "budget": run_budget,
    "fanout": run_fanout,
    "whole": run_whole,
}
"""In this order. Growth is the fan-out's rows over N: targets.list_slopes reads it from there."""
