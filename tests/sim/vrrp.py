"""keepalived as far as a notify FIFO shows it: VRRP's states, timers and lines (facts.md), one instance.

BACKUP at start, MASTER one down-interval later; a higher advert makes a MASTER a BACKUP; a lower one
makes it say MASTER_RX_LOWER_PRI, once for each advert; a tracked service that fails means FAULT; a stop
is an advert of priority 0 and a STOP line; a crash is silence.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from do_failover.daemon.memory import Process

ADVERT_S = 1.0
NAME = "VI_1"


@dataclass
class Wire:
    """The routers' network: which direction between two of them is cut."""

    rng: Random
    routers: dict[int, Keepalived] = field(default_factory=dict)
    cut: set[tuple[int, int]] = field(default_factory=set)
    dark: set[int] = field(default_factory=set)

    def advert(self, sender: int, priority: int) -> None:
        """Carry one advert to everybody whom it reaches."""
        loop = asyncio.get_running_loop()
        for number in self.routers:
            if number != sender and (sender, number) not in self.cut and not {sender, number} & self.dark:
                loop.call_later(0.0003 + 0.002 * self.rng.random(), self._arrive, number, priority)

    def _arrive(self, number: int, priority: int) -> None:
        self.routers[number].receive(priority)


@dataclass
class Keepalived:
    """One node's keepalived; it can be started, stopped and killed any number of times."""

    number: int
    priority: int
    wire: Wire
    write: Callable[[str], None]
    process: Process | None = None
    state: str = "INIT"
    is_tracked_well: bool = True
    master_since: float = 0.0
    _timer: asyncio.TimerHandle | None = None
    _advert: asyncio.TimerHandle | None = None

    def start(self, pid: int) -> None:
        """Start it: a new process, which says BACKUP first."""
        now = asyncio.get_running_loop().time()
        self.process = (int(now * 100), pid)
        self._go("BACKUP" if self.is_tracked_well else "FAULT")

    def stop(self) -> None:
        """Stop it politely."""
        if self.process is None:
            return
        if self.state == "MASTER":
            self.wire.advert(self.number, 0)
        self._go("STOP")
        self._end()

    def crash(self) -> None:
        """End it without a word."""
        self._end()

    def _end(self) -> None:
        self._drop_timers()
        self.process, self.state = None, "INIT"

    def track(self, *, is_well: bool) -> None:
        """Take what the tracked service does."""
        self.is_tracked_well = is_well
        if self.process is None:
            return
        if not is_well and self.state != "FAULT":
            if self.state == "MASTER":
                self.wire.advert(self.number, 0)
            self._go("FAULT")
        elif is_well and self.state == "FAULT":
            self._go("BACKUP")

    def track_well(self) -> None:
        self.track(is_well=True)

    def track_bad(self) -> None:
        self.track(is_well=False)

    def receive(self, priority: int) -> None:
        """Take an advert from another router."""
        if self.state == "BACKUP":
            if priority == 0:
                self._arm(self._skew_s())
            elif priority >= self.priority:
                self._arm(self._down_s())
        elif self.state == "MASTER":
            if priority > self.priority:
                self._go("BACKUP")
            elif priority:
                self._say("MASTER_RX_LOWER_PRI")
                self.wire.advert(self.number, self.priority)

    def _go(self, state: str) -> None:
        self._drop_timers()
        self.state = state
        self._say(state)
        if state == "BACKUP":
            self._arm(self._down_s())
        elif state == "MASTER":
            self.master_since = asyncio.get_running_loop().time()
            self._send_adverts()

    def _say(self, state: str) -> None:
        self.write(f'INSTANCE "{NAME}" {state} {self.priority}')

    def _send_adverts(self) -> None:
        self.wire.advert(self.number, self.priority)
        self._advert = asyncio.get_running_loop().call_later(ADVERT_S, self._send_adverts)

    def _arm(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._go, "MASTER")

    def _drop_timers(self) -> None:
        for timer in (self._timer, self._advert):
            if timer is not None:
                timer.cancel()
        self._timer = self._advert = None

    def _skew_s(self) -> float:
        return (256 - self.priority) / 256 * ADVERT_S

    def _down_s(self) -> float:
        return 3 * ADVERT_S + self._skew_s()
