"""Time as a parameter: a clock that a simulation can replace, and deadlines measured on it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """What the story needs of time."""

    def now(self) -> float:
        """Return monotonic seconds."""
        ...

    def wall(self) -> datetime:
        """Return the time of day, with a zone."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class RealClock:
    """The machine's own monotonic clock."""

    def now(self) -> float:
        """Return CLOCK_MONOTONIC in seconds."""
        return time.monotonic()

    def wall(self) -> datetime:
        """Return the local time of day with its zone."""
        return datetime.now(UTC).astimezone()

    async def sleep(self, seconds: float) -> None:
        """Wait in the event loop."""
        await asyncio.sleep(max(0.0, seconds))


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point on a clock by which something has to be over."""

    clock: Clock
    at: float

    @classmethod
    def after(cls, clock: Clock, seconds: float) -> Deadline:
        """Start one now."""
        return cls(clock, clock.now() + seconds)

    def remaining_s(self) -> float:
        """Return what is left, never below zero."""
        return max(0.0, self.at - self.clock.now())

    def is_over(self) -> bool:
        """Tell whether it has passed."""
        return self.clock.now() >= self.at

    def no_later_than(self, seconds: float) -> Deadline:
        """Return the earlier of this deadline and one that many seconds from now."""
        return Deadline(self.clock, min(self.at, self.clock.now() + seconds))
