"""The simulation's event loop: virtual time, no file descriptor, no system call."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")
START_S = 1000.0
_STEPS_MOST = 20_000
_STEP_S = 1e-6  # a step takes a moment: a timer that is due in less than the loop's resolution gets its time


class BusyError(Exception):
    """Something goes round and round and lets no time pass."""


class _Jump:
    """Where a loop asks the kernel, this one moves the time on."""

    def __init__(self) -> None:
        self.now = START_S
        self.steps = 0

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            msg = "virtual time: everybody waits, and nothing will ever happen"
            raise RuntimeError(msg)
        self.steps += 1
        self.now += _STEP_S
        if timeout > 0:
            self.now += timeout
            self.steps = 0
        elif self.steps > _STEPS_MOST:
            self.steps = 0
            msg = "somebody goes round and round, and no time passes"
            raise BusyError(msg)
        return []

    def close(self) -> None:
        """Nothing was opened."""


class SimLoop(asyncio.BaseEventLoop):
    """One history's loop: the same calls in the same order give the same history."""

    def __init__(self) -> None:
        super().__init__()
        self._selector = _Jump()
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self._selector.now

    def _process_events(self, event_list: list[Any]) -> None:
        """Nothing comes from outside."""

    def _write_to_self(self) -> None:
        """Nobody else wakes this loop: there are no threads."""


def run_in_virtual_time(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run to the end; hours take milliseconds."""
    loop = SimLoop()
    try:
        return loop.run_until_complete(coroutine)
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        with suppress(BusyError):
            loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
