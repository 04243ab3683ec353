"""Whose turn it is to log in: so many at once that both ends are busy, and no more.

A login is CPU time, on this machine and on the peer's. Were all peers of a thousand dialled at once, each of them would be
slow, and the time-outs would measure our own crowd (measured: of 1000 peers that shared two cores with us 105 were given up).
So a login's time begins with its turn.

A turn is not held by who waits: a peer that has said nothing for SILENT_S (dead, or behind a firewall that drops) gives it to
the next one, and gets the first that is free when it speaks after all. One that speaks and is still not logged in to
after half of its time gives it back as well, and goes on without. Where logins are slow altogether, as on a machine with too
much to do, either is more: PATIENCE times what a login takes there.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

# In one region TCP and sshd's first words take a few ms; on a machine that runs a thousand sshd's as well, 100.
SILENT_S = 0.3
PATIENCE = 3
_MEMORY = 16  # logins, of which what one takes is the average


class Turn:
    """One login's turn, while it has it."""

    def __init__(self, turns: Turns) -> None:
        """Use `Turns.take`."""
        self._turns = turns
        self._timer: asyncio.TimerHandle | None = None
        self._began = asyncio.get_running_loop().time()
        self.is_held = False

    async def hold(self, seconds: float, limit: asyncio.Timeout | None = None) -> None:
        """Hold it for so long from now on; where it was given back, wait for another one first.

        The time of `limit` does not run while waiting.
        """
        if not self.is_held:
            loop = asyncio.get_running_loop()
            began, when = loop.time(), limit.when() if limit is not None else None
            if limit is not None:
                limit.reschedule(None)
            await self._turns.wait(had_one=True)
            self.is_held = True
            self._began += loop.time() - began
            if limit is not None and when is not None:
                limit.reschedule(when + loop.time() - began)
        self.hold_on(seconds)

    def hold_on(self, seconds: float) -> None:
        """Give it back after so long; it is held now."""
        self._stop_timer()
        self._timer = asyncio.get_running_loop().call_later(self._turns.be_patient(seconds), self.give_back)

    def give_back(self) -> None:
        """Let the next one have it, unless it was given back already."""
        self._stop_timer()
        if self.is_held:
            self.is_held = False
            self._turns.pass_on()

    def note_success(self) -> None:
        """Learn what a login takes: this one is over."""
        self._turns.learn(asyncio.get_running_loop().time() - self._began)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Turns:
    """A number of turns. It belongs to one event loop.

    Guarantees: no more than `count` are held at once; they are given in the order of asking, but first to those that had
    one before; whatever ends its holder or one who waits, no turn is lost.
    """

    def __init__(self, count: int) -> None:
        """All of them are free."""
        self._free = count
        self._usual_s = 0.0
        self._again: deque[asyncio.Future[None]] = deque()
        self._new: deque[asyncio.Future[None]] = deque()

    @contextlib.asynccontextmanager
    async def take(self, seconds: float = SILENT_S) -> AsyncIterator[Turn]:
        """Wait for a turn; it is held for so long, and until the end of the block at most."""
        await self.wait()
        turn = Turn(self)
        turn.is_held = True
        try:
            turn.hold_on(seconds)
            yield turn
        finally:
            turn.give_back()

    def be_patient(self, seconds: float) -> float:
        """Return for how long a turn is held that is to be held for so long. For Turn."""
        return max(seconds, PATIENCE * self._usual_s)

    def learn(self, took_s: float) -> None:
        """Note what a login took. For Turn."""
        self._usual_s += (took_s - self._usual_s) / _MEMORY

    async def wait(self, *, had_one: bool = False) -> None:
        """Return with a turn, that `pass_on` gives back. For Turn."""
        if self._free > 0:  # then nobody waits
            self._free -= 1
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        (self._again if had_one else self._new).append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():  # it was given one in the very moment
                self.pass_on()
            raise

    def pass_on(self) -> None:
        """Give a turn to the next one who waits, or back. For Turn."""
        while queue := self._again or self._new:
            place = queue.popleft()
            if not place.done():
                place.set_result(None)
                return
        self._free += 1
