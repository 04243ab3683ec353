"""One reserved IP: acts on the newest event, then settles, guards and refreshes, until the next event.

The loop asks the state table (table.py) for the next move, makes it, and asks again. `hear` may come
at any time: it ends the right of whatever is running (I2) and wakes the loop.
"""

from __future__ import annotations

import asyncio
import traceback
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from do_failover.assign import Contest
from do_failover.daemon import evidence
from do_failover.daemon.due import NEVER
from do_failover.daemon.standing import Effect, recall
from do_failover.daemon.table import Choice, Evidence, Move, choose
from do_failover.errors import FailoverError, TemporaryError
from do_failover.failover import run_failover
from do_failover.heal import cancel_all
from do_failover.mandate import Mandate
from do_failover.model import Identity, NotifyEvent, Outcome, VrrpState
from do_failover.request import ALL_STEPS, Request
from do_failover.retry import Backoff, pause
from do_failover.rounds import run_rounds

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from do_failover.config import FailoverConfig
    from do_failover.daemon.memory import Kept
    from do_failover.daemon.orders import Order
    from do_failover.daemon.world import World
    from do_failover.model import FailoverReport, Peer

_LOOK_SETTLING_S = 2.0
_LOOK_MOST_S = 5.0
_HINT_EVERY_S = 5.0
_HINT_COUNTS_S = 15.0
_TURN_POLL_S = 0.05
_REFRESH = ALL_STEPS - {"assign"}
_LOOK_AGAIN = Backoff(first_s=2.0, most_s=30.0)
_MISTAKE_S = 1.0
_REFUSED_S = 2.0


class Keeper:
    """Keeps one reserved IP where VRRP wants it. Everything runs in one event loop."""

    def __init__(self, entry: FailoverConfig, world: World, kept: Kept | None, on_change: Callable[[], None]) -> None:
        """`kept`: what is remembered of a former process and still counts. `on_change`: there is something new to remember."""
        self.entry, self.world, self._on_change = entry, world, on_change
        self.edges = world.make_edges(entry)
        self.standing = recall(entry, kept, world.clock.now())
        self.choice = choose(self.standing.view(world.clock.now()))
        self.heard_at = world.clock.now()
        self.identity: Identity | None = None
        self._identity_at = -NEVER
        self._failed_looks = 0
        self._asked: tuple[Peer, ...] = ()  # the peers of the last story: the list may have changed since
        self._last_said = ""
        self._mandate: Mandate | None = None  # of what runs now
        self._is_yielding = False  # what runs now gives way to any news
        self._manual: Mandate | None = None
        self._is_ending = False
        self._orders = 0  # of people, waiting or running: the guard rests meanwhile
        self._turn_taken = asyncio.Lock()
        self._news = asyncio.Event()

    # -- what is heard, at any time

    def hear(self, event: NotifyEvent, why: str | None = None) -> None:
        """Take the newest event: what runs for an older one loses its right at once."""
        effect = self.standing.hear(event)
        if effect is Effect.SUPERSEDES:
            is_master = self.standing.claim is VrrpState.MASTER
            self._supersede(why or f"superseded by the newer event {event}", is_master=is_master)
            self.heard_at = self.world.clock.now()
        elif effect is Effect.INTERRUPTS:
            self._interrupt(f"interrupted by {event}")
        self._news.set()

    def forget_claim(self, why: str) -> None:
        """Trust nothing that was heard before: lines were lost, so the newest of them may not be the last."""
        self._supersede(why, is_master=False)
        self.standing.forget_claim()
        self._news.set()

    def take(self, entry: FailoverConfig) -> None:
        """Take another configuration of the same reserved IP. What runs is told to its end by the old one."""
        self.entry = self.standing.entry = entry
        self.standing.due.refresh_s = entry.refresh_s
        self.edges = self.world.make_edges(entry)
        self._news.set()

    def note_person(self, pid: int) -> None:
        """Leave it to a person who moved it by another process."""
        self._supersede(f"superseded by a person, who moved the reserved IP by hand (process {pid})", is_master=False)
        self.standing.note_person(pid, self.world.clock.now())
        self._news.set()

    def note_return(self, peer: Peer) -> None:
        """Note that a peer can be reached again."""
        if self.standing.is_ours:
            self.standing.due.note_return(peer, self.world.clock.now())
            self._news.set()

    def end(self, why: str) -> None:
        """End the right of what runs, and start nothing any more; the loop itself is cancelled by the daemon."""
        self._is_ending = True
        self._supersede(why, is_master=True)
        self._news.set()

    @property
    def is_acting(self) -> bool:
        """Whether a story runs."""
        return self._mandate is not None or self._manual is not None

    def _supersede(self, why: str, *, is_master: bool) -> None:
        if self._mandate is not None:
            self._mandate.revoke(why)
        if self._manual is not None and is_master:  # a person's order yields to a MASTER only (I2)
            self._manual.revoke(why)

    def _interrupt(self, why: str) -> None:
        if self._is_yielding and self._mandate is not None:
            self._mandate.revoke(why)

    # -- the loop

    async def live(self) -> None:
        """Ask the table, make the move, for ever. A mistake of ours is logged, and the next move is made all the same."""
        hints = asyncio.create_task(self._watch_hint())
        try:
            while True:
                try:
                    await self._step()
                except Exception as error:  # noqa: BLE001 - one mistake must not end the guard of the IP
                    where = "".join(traceback.format_tb(error.__traceback__, limit=-2)).strip()
                    self.world.say(f"a mistake in do-failover: {type(error).__name__}: {error} ({where})")
                    await self.world.clock.sleep(_MISTAKE_S)
        finally:
            await cancel_all([hints])

    async def _step(self) -> None:
        self._news.clear()
        if self._is_ending or (self._orders and self.standing.is_served):
            await self._news.wait()
            return
        now = self.world.clock.now()
        self.choice = choose(self.standing.view(now))
        match self.choice.move:
            case Move.TELL:
                await self._tell()
            case Move.REASSERT:
                await self._reassert(self.choice)
            case Move.LOOK:
                await self._unless_news(self._look())
            case Move.REFRESH:
                await self._refresh()
            case Move.WAIT:
                self._say(self.choice.why)
                await self._unless_news(self.world.clock.sleep(max(0.0, self.standing.find_next_time() - now)))

    async def _unless_news(self, work: Coroutine[Any, Any, None]) -> None:
        """Do it, or leave it as soon as there is news."""
        tasks = [asyncio.create_task(work), asyncio.create_task(self._news.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel_all(tasks)
        if not tasks[0].cancelled():
            tasks[0].result()

    # -- the moves

    async def _tell(self) -> None:
        """Tell the whole story for the newest event, round after round while MASTER (I1)."""
        event = self.standing.event
        mandate = self._mandate = Mandate()
        try:
            if event is not None and event.state is VrrpState.MASTER:
                self.standing.due.forget()
                report = await run_rounds(
                    lambda number: self._make_request(event=event, number=number),
                    self.edges,
                    mandate,
                    take_turn=lambda: self.turn(event, mandate),
                    observe=lambda _: None,
                    keep=self.world.keep,
                )
            else:
                report = await run_failover(self._make_request(event=event), self.edges, mandate, lambda _: None)
                self.world.keep(report)
        finally:
            self._mandate = None
        if mandate.is_revoked:
            if not self._news.is_set():  # its turn was refused: by what, the daemon finds out (look_at_others)
                await self._unless_news(self.world.clock.sleep(_REFUSED_S))
            return
        self.standing.is_served = True
        self._note(report, settles=event is not None and event.state is VrrpState.MASTER)

    async def _reassert(self, choice: Choice) -> None:
        """Make sure once more, on evidence."""
        mandate, lower = Mandate(), self.standing.lower
        is_lower = choice.evidence is not None and choice.evidence[0] is Evidence.LOWER_PRIORITY
        event = lower if is_lower else self.standing.event
        self._mandate, self.heard_at = mandate, self.world.clock.now()
        self.standing.note_reassert(choice, self.heard_at)
        self.world.say(f"{self.entry.reserved_ip}: making sure again: {choice.why}")
        self._on_change()
        try:
            async with self.turn(event, mandate):
                report = await run_failover(self._make_request(event=event, evidence=choice.why), self.edges, mandate, lambda _: None)
        finally:
            self._mandate = None
        self.world.keep(report)
        if mandate.is_revoked:
            return
        if is_lower and report.outcome is not Outcome.FAILED and self.standing.lower is lower:
            self.standing.lower = None
        self._note(report, settles=True)

    async def _refresh(self) -> None:
        """Make those peers ping again whose turn it is. Only what changed is kept in the history."""
        now, due = self.world.clock.now(), self.standing.due
        is_all = now >= due.all_at
        peers = due.choose(self.world.list_peers(), now)
        if not peers:
            due.late_at = NEVER
            due.plan_all(now)
            return
        mandate = Mandate()
        self._mandate, self._is_yielding, self.heard_at = mandate, True, now
        due.put_off(now)
        try:
            async with self.turn(None, mandate):
                request = self._make_request(event=None, steps=_REFRESH, peers=peers)
                report = await run_failover(request, self.edges, mandate, lambda _: None)
        except TemporaryError as error:  # another process has had the turn all the time
            self._say(error.message)
            return
        finally:
            self._mandate, self._is_yielding = None, False
        if not mandate.is_revoked:
            if self.standing.note_report(report, peers, self.world.clock.now(), is_all=is_all):
                self.world.keep(report)
            self._on_change()

    async def _look(self) -> None:
        """Read the owner; where it is another, look for evidence."""
        now, standing = self.world.clock.now(), self.standing
        standing.look_at = now + _LOOK_AGAIN.wait_s(self._failed_looks + 1)
        try:
            seen = await self.edges.api.read_reserved_ip(self.entry.reserved_ip, _LOOK_MOST_S)
        except FailoverError as error:
            self._failed_looks += 1
            self._say(f"the owner could not be read: {error.message}")
            return
        self._failed_looks = 0
        is_settling = standing.claim is VrrpState.MASTER and now < standing.settles_at
        standing.look_at = now + (min(_LOOK_SETTLING_S, self.entry.guard_s) if is_settling else self.entry.guard_s)
        if not seen.is_owner_visible:
            self._say("the API hides the owner: the token lacks the scope droplet:read")
            return
        before = standing.remember()
        lost = standing.note_owner(seen, self.world.clock.now())
        if lost is not None:
            self._say(lost)
        if standing.remember() != before:
            self._on_change()
        if standing.claim is VrrpState.MASTER and standing.me is not None and not standing.is_ours and standing.intent is None:
            peers, last = self.world.list_peers(), standing.contest.last_action_id
            standing.found = await evidence.examine(self.edges, peers, seen, public=self._find_public(), last_action_id=last)

    def _find_public(self) -> str | None:
        if self.identity is None:
            return None
        return self.identity.public_address_v6 if ":" in self.entry.reserved_ip else self.identity.public_address

    async def _watch_hint(self) -> None:
        """Keep in mind who this Droplet is, for the hot path; a hint that changed is a reason to look (never the truth)."""
        while True:
            try:
                self._note_identity(await self.edges.read_identity())
            except FailoverError:
                pass  # who this is doesn't change; where the IP was grows old
            except Exception as error:  # noqa: BLE001 - one mistake must not end the watch
                self._say(f"a mistake in do-failover, while asking the metadata service: {type(error).__name__}: {error}")
            await self.world.clock.sleep(_HINT_EVERY_S)

    def _note_identity(self, found: Identity) -> None:
        before, self.identity, self._identity_at = self.identity, found, self.world.clock.now()
        self.standing.me = found.droplet_id
        if found.droplet_id is not None:
            self.edges.prepare_assign(found.droplet_id)
        ip = self.entry.reserved_ip
        if before is not None and before.looks_like_owner_of(ip) != found.looks_like_owner_of(ip):
            self.standing.look_at = self._identity_at
            self._interrupt("the metadata service says that the IP has moved")
            self._news.set()

    # -- a person's orders

    async def obey(self, order: Order, mandate: Mandate, observe: Callable[..., None]) -> FailoverReport:
        """Tell the story, or steps of it, for a person. A MASTER event supersedes it. Raises TemporaryError (kind "busy")."""
        if self._is_ending:
            msg = "the daemon is ending; ask again in a moment"
            raise TemporaryError(msg, kind="busy")
        self._interrupt("a person's order comes first")
        heard_at = self.world.clock.now()
        self._orders += 1
        self._news.set()
        try:
            async with self.turn(None, mandate, patience_s=self.entry.deadline_s):
                self._manual = mandate
                if "assign" in order.steps:
                    self.standing.note_order_begins(order.to_droplet)
                    self._on_change()
                request = self._make_request(
                    event=None, steps=order.steps, to_droplet=order.to_droplet, heard_at=heard_at, contest=Contest()
                )
                report = await run_failover(request, self.edges, mandate, observe)
            self.world.keep(report)
            if "assign" in order.steps:
                self.standing.note_order(order.to_droplet, report)
            self._note(report, is_all="refresh" in order.steps)
        finally:
            self._orders, self._manual = self._orders - 1, None
            self._news.set()
        return report

    @asynccontextmanager
    async def turn(self, event: NotifyEvent | None, mandate: Mandate, patience_s: float = NEVER) -> AsyncIterator[None]:
        """Hold this IP's turn, in this process and among the machine's others (I4); without it once the mandate has ended."""
        clock = self.world.clock
        limit = clock.now() + patience_s
        while self._turn_taken.locked() and not mandate.is_revoked:
            if clock.now() >= limit:
                msg = f"a failover of {self.entry.reserved_ip} has been running all the time; wait for its end and try again"
                raise TemporaryError(msg, kind="busy")
            await pause(_TURN_POLL_S, clock=clock, mandate=mandate)
        if mandate.is_revoked:
            yield  # the story ends at its first look at the mandate
            return
        async with self._turn_taken, self.world.take_turn(self.entry, event, mandate):
            yield

    # -- what came of it

    def show(self) -> dict[str, Any]:
        """Return how it stands, for `status`."""
        return {**self.standing.show(), "is_acting": self.is_acting, "why": self.choice.why}

    def _make_request(self, **more: Any) -> Request:  # noqa: ANN401 - fields of Request
        id_, run = self.world.make_run()
        is_fresh = self.world.clock.now() - self._identity_at < _HINT_COUNTS_S
        number = more.pop("number", 1)
        fields: dict[str, Any] = {
            "entry": self.entry,
            "peers": self.world.list_peers(),
            "run": run,
            "id": id_,
            "at": self.world.clock.wall().isoformat(timespec="milliseconds"),
            "node": self.world.node,
            "heard_at": self.heard_at if number == 1 else self.world.clock.now(),
            "identity": self.identity if is_fresh else _without_hint(self.identity),
            "contest": self.standing.contest,
            "warnings": self.world.list_nits(),
            "round": number,
        }
        request = Request(**{**fields, **more})
        self._asked = request.peers
        return request

    def _note(self, report: FailoverReport, *, settles: bool = False, is_all: bool = True) -> None:
        now = self.world.clock.now()
        if settles:
            self.standing.settle(now)
        self.standing.note_report(report, self._asked, now, is_all=is_all)
        self._on_change()

    def _say(self, sentence: str) -> None:
        if sentence != self._last_said:
            self._last_said = sentence
            self.world.say(f"{self.entry.reserved_ip}: {sentence}")


def _without_hint(known: Identity | None) -> Identity | None:
    """Return who this Droplet is, which doesn't change; only where the IP was has grown old."""
    return replace(known, has_reserved_ip=None, reserved_ip=None) if known is not None else None
