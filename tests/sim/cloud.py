"""DigitalOcean as the nodes share it: one reserved IP, its actions, the Droplets. No transport here (door.py).

An action may take effect late, also after a younger one; complete without effect; err with effect; or stay
in progress for long. A POST that a client has given up may still arrive.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from do_failover.model import Action, ActionStatus, ReservedIp

if TYPE_CHECKING:
    from random import Random

    from tests.sim.law import Law
    from tests.sim.trace import Trace

IP = "203.0.113.47"
THIRD = 9  # a Droplet that is none of the pair


@dataclass
class Droplet:
    """One load balancer as the API and its neighbours see it."""

    id: int
    public: str
    status: str = "active"
    answers: bool = True  # on its public address


@dataclass
class Deed:
    """One action, and what is to become of it."""

    id: int
    by: str  # a node's name, "person", or "person at" a node
    target: int | None
    posted_at: float
    status: ActionStatus = ActionStatus.IN_PROGRESS
    landed_at: float | None = None


@dataclass
class Mood:
    """How the API behaves for the time being."""

    delay_s: float = 0.02
    spread_s: float = 0.03
    action_s: float = 0.8
    lost: float = 0.0  # of requests and answers
    slow: float = 0.0  # of requests that arrive only after seconds
    errors: float = 0.0  # 5xx, garbled, 429
    odd: float = 0.0  # actions that don't do what they say
    refuses: float = 0.0  # 401 and 403
    is_down: bool = False


@dataclass
class Cloud:
    """The region's state."""

    rng: Random
    trace: Trace
    law: Law
    droplets: dict[int, Droplet]
    owner: int | None = None
    mood: Mood = field(default_factory=Mood)
    deeds: list[Deed] = field(default_factory=list)
    locked_by: Deed | None = None
    pending: int = 0  # effects and requests that are still to come
    troubled_at: float = -1.0  # when it was not well last
    lies: set[int] = field(default_factory=set)  # Droplets whose metadata says the opposite
    seen: dict[int, bool] = field(default_factory=dict)  # what each Droplet's metadata says

    def read_ip(self) -> ReservedIp:
        """Return the reserved IP as it is now."""
        found = self.droplets.get(self.owner) if self.owner is not None else None
        public, status = (found.public, found.status) if found is not None else (None, None)
        return ReservedIp(IP, "nyc3", self.owner, True, self.locked_by is not None, public, status)

    def begin(self, by: str, target: int | None) -> Deed:
        """Begin an action. What it will do is drawn now."""
        now = asyncio.get_running_loop().time()
        deed = Deed(len(self.deeds) + 1, by, target, now)
        self.deeds.append(deed)
        self.locked_by = deed
        self.trace.add("API", f"action {deed.id} of {by}: the IP to {_name(target)}")
        self._plan(deed)
        return deed

    def _plan(self, deed: Deed) -> None:
        rng, takes_s = self.rng, self.mood.action_s * (0.5 + self.rng.random())
        kind = rng.choice(("late", "none", "errored", "errored late", "long")) if rng.random() < self.mood.odd else "plain"
        if deed.by == "person":
            kind = "plain"
        if kind == "long":
            takes_s += 3.0 + 9.0 * rng.random()
        status = ActionStatus.ERRORED if kind.startswith("errored") else ActionStatus.COMPLETED
        self._later(takes_s, self._close, deed, status)
        if kind in {"late", "errored late"}:
            self._later(takes_s + 6.0 * rng.random(), self._land, deed)
        elif kind in {"plain", "long"} or (kind == "errored" and rng.random() < 0.5):
            self._later(takes_s, self._land, deed)

    def later(self, seconds: float, call: object, *given: object) -> None:
        """Do something of the region's own later; the history doesn't rest before."""
        self._later(seconds, call, *given)

    def _later(self, seconds: float, call: object, *given: object) -> None:
        self.pending += 1
        asyncio.get_running_loop().call_later(seconds, self._do, call, given)

    def _do(self, call: object, given: tuple[object, ...]) -> None:
        self.pending -= 1
        call(*given)  # type: ignore[operator]

    def _close(self, deed: Deed, status: ActionStatus) -> None:
        deed.status = status
        if self.locked_by is deed:
            self.locked_by = None

    def _land(self, deed: Deed) -> None:
        before, self.owner = self.owner, deed.target
        deed.landed_at = asyncio.get_running_loop().time()
        self.trace.add("API", f"action {deed.id} takes effect: owner {_name(before)} -> {_name(deed.target)}")
        self.law.note_landing(deed, before)
        for number in self.droplets:
            self.later(self.rng.random() * 1.5, self._show, number)

    def _show(self, number: int) -> None:
        self.seen[number] = self.owner == number

    def find(self, action_id: int) -> Action | None:
        """Return an action as the API shows it."""
        deed = self.deeds[action_id - 1] if 0 < action_id <= len(self.deeds) else None
        return Action(deed.id, deed.status) if deed is not None else None


def _name(droplet: int | None) -> str:
    return "nobody" if droplet is None else f"Droplet {droplet}"
