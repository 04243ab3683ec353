"""The invariants I1 to I7, checked at each step against what really happened, not against what the product believes.

I1  at rest (rest.py) the IP is the MASTER's, or one of the documented exceptions holds
I2  no POST and no frame of its own accord by a node that was told anything but MASTER last, or SIGTERM, or whose keepalived is gone
I3  what the daemon takes for VRRP's word is the newest line that it was given
I4  a POST is sent within its turn, and a node has one turn at a time
I5  nobody but a person writes anything else than "this IP to me"
I6  a MASTER takes a lost IP back once per own MASTER event, or on evidence; a person's move is left alone
I7  a peer that could be reached is healed in its story, whatever the others did; at rest every peer is
"""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from do_failover.model import FailoverReport, PeerOutcome, VrrpState

if TYPE_CHECKING:
    from do_failover.daemon.memory import Process
    from tests.sim.cloud import Deed
    from tests.sim.node import Node
    from tests.sim.region import Region

GRACE_S = 0.05
_WATCH_S = 2.5  # after that a daemon has to know that its keepalived is gone
_ROW_S = 3.0
_OVER = {None, VrrpState.STOP, VrrpState.DELETED}
_STATES = {VrrpState.MASTER, VrrpState.BACKUP, VrrpState.FAULT, VrrpState.STOP, VrrpState.DELETED}

IS_MANUAL: ContextVar[bool] = ContextVar("is_manual", default=False)
TURN: ContextVar[Turn | None] = ContextVar("turn", default=None)


@dataclass
class Turn:
    """One holding of the reserved IP's turn."""

    node: Node
    incarnation: int
    opened_at: float
    is_open: bool = True


@dataclass
class Told:
    """What one node was told, and what it did since."""

    claim: VrrpState | None = None
    process: Process | None = None
    since: float = 0.0
    ended_at: float | None = None  # SIGTERM
    vrrp_at: float = -1.0  # the newest MASTER or MASTER_RX_LOWER_PRI
    master_at: float = -1.0
    lowers: int = 0
    starts: int = 0  # of the daemon, since its own MASTER event
    had_it: bool = False  # it read itself as owner since its own MASTER event, and no action was under way
    loss: Deed | None = None
    taken_back: set[int] = field(default_factory=set)
    moved_away_at: float | None = None  # by a person
    turns: int = 0
    script: tuple[int, int] = (0, 0)  # the youngest that was heard
    speaks_itself: bool = False  # this keepalived writes the FIFO, so its scripts say nothing new


@dataclass
class Law:
    """Keeps what really happened; `broken` is the first thing that was against the law."""

    region: Region | None = None
    told: dict[int, Told] = field(default_factory=dict)
    broken: tuple[str, str] | None = None
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    landed_at: float = -1.0
    last: Deed | None = None  # the last action that took effect
    inactive_at: float | None = None  # since when an owner was inactive or silent, ever
    posts: int = 0
    rests_on: str = ""

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def blame(self, invariant: str, sentence: str) -> None:
        """Note a breach; the first counts and ends the history."""
        if self.broken is None and self.region is not None:
            self.broken = (invariant, sentence)
            self.region.trace.add("LAW", f"{invariant} is broken: {sentence}")
            self.stop.set()

    # -- what a node is told

    def note_start(self, node: Node) -> None:
        """A daemon was started: its memory counts for the same boot and the same keepalived only."""
        told = self.told[node.number]
        same = node.memory.boot_id == node.boot_id and node.kv.process is not None and node.kv.process == told.process
        told.process, told.ended_at, told.turns = node.kv.process, None, 0
        told.starts += 1
        if not same:
            told.speaks_itself = False
            self._claim(told, None)

    def note_boot(self, node: Node) -> None:
        """The machine was started: its scripts count from the beginning."""
        self.told[node.number].script = (0, 0)

    def note_process(self, node: Node, process: Process | None, *, is_sure: bool) -> None:
        """The daemon looked which keepalived runs."""
        told = self.told[node.number]
        if process is None and not is_sure:
            return
        is_another = process != told.process and told.process is not None
        has_changed, told.process = process != told.process, process
        told.speaks_itself &= not has_changed
        if told.claim not in _OVER and (process is None or is_another):
            self._claim(told, VrrpState.STOP)

    def note_lines(self, node: Node, lines: list[str]) -> None:
        """The daemon was given these lines."""
        told = self.told[node.number]
        for line in lines:
            words = line.split(" ")
            if words[0] == "SCRIPT" and (told.speaks_itself or (int(words[1]), int(words[2])) <= told.script):
                continue  # it came twice, or late
            if words[0] == "SCRIPT":
                told.script, words = (int(words[1]), int(words[2])), words[3:]
            elif words[:2] == ["INSTANCE", '"VI_1"'] and words[2] in _STATES | {VrrpState.MASTER_RX_LOWER_PRI}:
                told.speaks_itself = True
            if words[:2] != ["INSTANCE", '"VI_1"'] or words[2] not in {*VrrpState}:
                continue
            state = VrrpState(words[2])
            if state is VrrpState.MASTER_RX_LOWER_PRI:
                told.lowers += 1
                told.vrrp_at, told.moved_away_at = self.now(), None
                if told.claim is not VrrpState.MASTER:
                    self._claim(told, VrrpState.MASTER)
            elif state in _STATES:
                self._claim(told, state)

    def _claim(self, told: Told, claim: VrrpState | None) -> None:
        now = self.now()
        if claim is not told.claim:
            told.since = now
        told.claim, told.moved_away_at = claim, None
        if claim is VrrpState.MASTER:
            told.vrrp_at = told.master_at = now
            told.loss, told.had_it, told.lowers, told.starts = None, False, 0, 0
            told.taken_back = set()

    def note_loss_of_lines(self, node: Node) -> None:
        """Lines were dropped: nothing that was heard counts."""
        self._claim(self.told[node.number], None)

    def note_end(self, node: Node) -> None:
        """The daemon got SIGTERM."""
        self.told[node.number].ended_at = self.now()

    def check_claim(self, node: Node) -> None:
        """I3: the daemon's word is the newest line."""
        told, daemon = self.told[node.number], node.daemon
        if daemon is None:
            return
        (keeper,) = daemon.keepers.values()
        if keeper.standing.claim is not told.claim:
            self.blame("I3", f"{node.name} takes {keeper.standing.claim} for VRRP's word; the newest that it was told is {told.claim}")

    # -- what a node does

    def open_turn(self, node: Node, incarnation: int) -> Turn:
        told = self.told[node.number]
        turn = Turn(node, incarnation, self.now())
        if node.incarnation == incarnation:
            told.turns += 1
            if told.turns > 1:
                self.blame("I4", f"{node.name} runs two failovers of one reserved IP at once")
        return turn

    def close_turn(self, turn: Turn) -> None:
        turn.is_open = False
        if turn.node.incarnation == turn.incarnation:
            self.told[turn.node.number].turns -= 1

    def note_post(self, node: Node, incarnation: int, target: int) -> None:
        if node.incarnation != incarnation:
            return
        turn, is_manual = TURN.get(), IS_MANUAL.get()
        self.posts += 1
        if not is_manual and target != node.number:
            self.blame("I5", f"{node.name} writes to the API for Droplet {target}, and no person asked for it")
        if turn is None or not turn.is_open or turn.node is not node:
            self.blame("I4", f"{node.name} sends a POST outside of its turn")
        if not is_manual:
            self._check_right(node, "sends a POST")
            self._check_fight(node, turn)

    def note_frame(self, node: Node, incarnation: int, read_owner: int | None) -> None:
        if node.incarnation != incarnation:
            return
        if read_owner != node.number:
            self.blame("I2", f"{node.name} sends a frame, and the API named {read_owner} as owner last")
        if not IS_MANUAL.get():
            self._check_right(node, "sends a frame")

    def _check_right(self, node: Node, what: str) -> None:
        told, now = self.told[node.number], self.now()
        if told.claim is not VrrpState.MASTER and now - told.since > GRACE_S:
            self.blame("I2", f"{node.name} {what} {now - told.since:.3f} s after it was told {told.claim}")
        if told.ended_at is not None and now - told.ended_at > GRACE_S:
            self.blame("I2", f"{node.name} {what} {now - told.ended_at:.3f} s after SIGTERM")
        if node.kv.process is None and not node.is_stalled and now - max(node.kv_ended_at, node.started_at, node.read_at) > _WATCH_S:
            self.blame("I2", f"{node.name} {what}, and its keepalived is gone since {now - node.kv_ended_at:.1f} s")

    def _check_fight(self, node: Node, turn: Turn | None) -> None:
        told, now = self.told[node.number], self.now()
        if told.moved_away_at is not None and turn is not None and turn.opened_at > told.moved_away_at:
            self.blame("I6", f"{node.name} takes back what a person moved away, without a new VRRP event")
        if told.loss is None or not told.had_it or told.loss.id in told.taken_back:
            return
        told.taken_back.add(told.loss.id)
        windows = 1 + int((now - told.master_at) / node.entry.cool_off_s)
        allowed = 1 + told.starts + min(told.lowers, windows) + (2 * windows if self.inactive_at is not None else 0)
        if len(told.taken_back) > allowed:
            self.blame("I6", f"{node.name} took the IP back {len(told.taken_back)} times for one MASTER event; {allowed} were allowed")

    # -- what the API does

    def note_read(self, node: Node, owner: int | None) -> None:
        told = self.told[node.number]
        told.had_it |= owner == node.number and told.claim is VrrpState.MASTER

    def note_landing(self, deed: Deed, before: int | None) -> None:
        self.landed_at, self.last = self.now(), deed
        for number, told in self.told.items():
            if not self._shows_a_person(deed, number):  # a rival's, as far as this node can tell: its own intent is over
                told.moved_away_at = None
            if deed.target == number:
                told.loss = told.moved_away_at = None
            elif before == number:
                told.loss = deed
                if self._shows_a_person(deed, number) and self._is_known_owner(number):
                    told.moved_away_at = self.now()

    def _shows_a_person(self, deed: Deed, number: int) -> bool:
        """Whether a node can tell that this was a person: asked through it, unassigned, or moved to none of the pair."""
        node = self.region.nodes[number] if self.region is not None else None
        if node is None or not deed.by.startswith("person") or self.told[number].vrrp_at > deed.posted_at:
            return False
        return deed.by == f"person at {node.name}" or deed.target is None or (deed.target not in self.told and bool(node.entry.routers))

    def _is_known_owner(self, number: int) -> bool:
        daemon = self.region.nodes[number].daemon if self.region is not None else None
        standings = [keeper.standing for keeper in daemon.keepers.values()] if daemon is not None else []
        return any(standing.is_ours and standing.is_served for standing in standings)

    # -- what a report says

    def note_report(self, node: Node, report: FailoverReport) -> None:
        """I7: rows of peers that could be reached all the time."""
        verify = next((stage for stage in report.stages if stage.name == "verify"), None)
        if (
            report.error is not None
            or any("deadline passed" in warning for warning in report.warnings)
            or verify is None
            or report.owner_after != node.number
            or self.region is None
        ):
            return
        began = self.now() - (verify.end_s - report.stages[0].start_s) - GRACE_S
        if self.landed_at > self.now() - (verify.end_s - verify.start_s) - GRACE_S or node.troubled_at > began:
            return
        for row in report.peers:
            host = self.region.fleet.hosts[row.host]
            if host.is_up and host.up_since < began - 20.0:
                if row.outcome is not PeerOutcome.HEALED:
                    self.blame(
                        "I7", f"{node.name}'s report calls {row.host} {row.outcome}, which could be reached all the time: {row.error}"
                    )
                elif row.duration_s > _ROW_S + 4 * host.takes_s and self.now() - began < _ROW_S:
                    self.blame("I7", f"{row.host} needed {row.duration_s} s: something delayed it")

    def describe(self) -> dict[str, Any]:
        """Return the breach for a table."""
        return {"broken": self.broken, "posts": self.posts, "rests_on": self.rests_on}
