"""Deliberately broken product code, one for each invariant at least: the simulation has to catch every one.

Each mutant replaces one method for as long as its context lasts; it says which invariant it breaks.
"""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from do_failover import failover, rounds
from do_failover.daemon import daemon, due, evidence, keeper, memory, standing
from do_failover.model import VrrpState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@dataclass(frozen=True)
class Mutant:
    """One way to break the product, and the invariant that this breaks."""

    name: str
    breaks: frozenset[str]
    home: Any
    attribute: str
    replacement: Any
    begins_at: int = 0  # the seed from which it is looked for: a rare one is not looked for from the beginning each time

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Break it until the end of the block."""
        kept = getattr(self.home, self.attribute)
        setattr(self.home, self.attribute, self.replacement)
        try:
            yield
        finally:
            setattr(self.home, self.attribute, kept)


def _hear_without_revoking(self: Any, event: Any, why: str | None = None) -> None:
    self.standing.hear(event)
    self.heard_at = self.world.clock.now()
    self._news.set()


def _recall_of_anybody(self: Any, boot_id: str, keepalived: Any) -> Any:
    return self


def _coalesce_to_the_oldest(self: Any, heard: Any) -> Any:
    oldest: dict[Any, Any] = {}
    for item in heard:
        if self._counts(item, (item.event.type, item.event.name)):
            oldest.setdefault((item.event.type, item.event.name), item.event)
    return list(oldest.values())


@asynccontextmanager
async def _turn_without_lock(self: Any, event: Any, mandate: Any, patience_s: float = 0.0) -> AsyncIterator[None]:
    async with self.world.take_turn(self.entry, event, mandate):
        yield


def _end_by_halves(self: Any, why: str) -> None:
    self._supersede(why, is_master=True)
    self._news.set()


_tell = keeper.Keeper._tell
_step = keeper.Keeper._step


async def _tell_and_release(self: Any) -> None:
    if self.standing.claim is VrrpState.BACKUP and self.standing.is_ours:
        async with self.world.take_turn(self.entry, None, None):
            await self.edges.api.post_assign(self.entry.reserved_ip, 9, 5.0)
    await _tell(self)


def _reassert_without_counting(self: Any, choice: Any, now: float) -> None:
    self.found = {}


def _find_no_intent(self: Any, before: Any, owner: Any) -> None:
    return None


def _note_without_late(self: Any, results: Any, now: float) -> bool:
    return False


async def _step_once_served(self: Any) -> None:
    if self.standing.claim is VrrpState.MASTER and self.standing.is_served and self.standing.lower is not None:
        self.standing.lower = None
    await _step(self)


def _forget_nothing(self: Any, why: str) -> None:
    self._news.set()


def _end_without_stop(self: Any, process: Any, *, is_sure: bool = True) -> None:
    self.keepalived = process


async def _examine_nothing(*_: Any, **__: Any) -> dict[Any, str]:
    return {}


async def _one_peer_after_another(self: Any) -> None:
    """Let every peer wait for the one before it."""
    healer = self._make_healer()
    for item in self.evidence:
        await healer.heal(item, self.looks[item.peer])
        if item.error is not None:
            return


def _build() -> tuple[Mutant, ...]:
    one, two = frozenset({"I1"}), frozenset({"I2"})
    return (
        Mutant("nothing but an own MASTER event moves the IP", one, keeper.Keeper, "_step", _step_once_served),
        Mutant("one round has to do", one, rounds, "_may_try_again", lambda request, report: False),
        Mutant("an owner that is off is no evidence", one, evidence, "examine", _examine_nothing, begins_at=2150),
        Mutant("an event revokes nothing", two, keeper.Keeper, "hear", _hear_without_revoking),
        Mutant("SIGTERM ends what runs, and something else begins", two, keeper.Keeper, "end", _end_by_halves),
        Mutant("the memory of another keepalived counts", frozenset({"I2", "I3"}), memory.Memory, "recall", _recall_of_anybody),
        Mutant("keepalived's end is no STOP", frozenset({"I2", "I3"}), daemon.Daemon, "note_keepalived", _end_without_stop),
        Mutant("the oldest event counts", frozenset({"I3"}), daemon.Daemon, "_coalesce", _coalesce_to_the_oldest),
        Mutant("a full FIFO is trusted", frozenset({"I3"}), keeper.Keeper, "forget_claim", _forget_nothing),
        Mutant("nobody waits for its turn", frozenset({"I4"}), keeper.Keeper, "turn", _turn_without_lock),
        Mutant("BACKUP gives the IP away", frozenset({"I5"}), keeper.Keeper, "_tell", _tell_and_release),
        Mutant("take-backs are not counted", frozenset({"I6"}), standing.Standing, "note_reassert", _reassert_without_counting),
        Mutant("a person's move is theft", frozenset({"I6"}), standing.Standing, "_find_intent", _find_no_intent),
        Mutant("late peers are forgotten", frozenset({"I7"}), due.DuePeers, "note", _note_without_late),
        Mutant("a failed peer ends the others", frozenset({"I7"}), failover._Story, "_refresh", _one_peer_after_another),
    )


MUTANTS = _build()
