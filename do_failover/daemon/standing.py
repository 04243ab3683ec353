"""How it stands with one reserved IP: what VRRP said, who owns it, what may be done about it. Pure: time comes as an argument.

It decides nothing itself: `view` is what the state table looks at.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from do_failover.assign import Contest
from do_failover.daemon.due import NEVER, DuePeers
from do_failover.daemon.memory import Intent, Kept
from do_failover.daemon.table import Choice, Evidence, View
from do_failover.decision import UNKNOWN, Owner, Unknown
from do_failover.model import FailoverReport, NotifyEvent, ReservedIp, VrrpState, name_droplet

if TYPE_CHECKING:
    from do_failover.config import FailoverConfig
    from do_failover.model import Peer

_LOWER = "it heard adverts of a lower priority, so another node was MASTER too"
_LOOK_SOON_S = 2.0


class Effect(StrEnum):
    """What an event means for that which runs."""

    SUPERSEDES = "supersedes"  # it has lost its right
    INTERRUPTS = "interrupts"  # only what gives way to any news ends
    REPEATS = "repeats"  # what runs is for the same state already


@dataclass(slots=True)
class Standing:
    """One reserved IP's standing on this node."""

    entry: FailoverConfig
    claim: VrrpState | None = None
    event: NotifyEvent | None = None
    is_served: bool = True
    contest: Contest = field(default_factory=Contest)
    settles_at: float = 0.0
    intent: Intent | None = None
    acted_at: dict[str, float] = field(default_factory=dict)
    lower: NotifyEvent | None = None
    me: int | None = None
    owner: Owner = UNKNOWN
    found: dict[Evidence, str] = field(default_factory=dict)
    look_at: float = 0.0
    order: tuple[int, int] = (0, 0)
    person: int | None = None  # the process by which a person moved it, where its owner was not read since
    due: DuePeers = field(init=False)

    def __post_init__(self) -> None:
        """Nobody is due at first."""
        self.due = DuePeers(self.entry.refresh_s)

    # -- what VRRP says

    def hear(self, event: NotifyEvent) -> Effect:
        """Take the newest event."""
        if event.state is VrrpState.MASTER_RX_LOWER_PRI:
            return self._hear_lower(event)
        is_master = event.state is VrrpState.MASTER
        if is_master and self.claim is VrrpState.MASTER and not self.is_served:
            return Effect.REPEATS
        self.claim, self.event, self.is_served = event.state, event, False
        self.contest, self.lower, self.found = Contest(), None, {}
        if is_master:
            self.intent = None
        return Effect.SUPERSEDES

    def _hear_lower(self, event: NotifyEvent) -> Effect:
        """Make sure once more. Only a MASTER hears lower priorities, so this also tells that we are one."""
        was_master = self.claim is VrrpState.MASTER
        if not was_master:
            self.claim, self.event, self.is_served, self.contest = VrrpState.MASTER, event, True, Contest()
        self.lower, self.intent = event, None
        return Effect.INTERRUPTS if was_master else Effect.SUPERSEDES

    def forget_claim(self) -> None:
        """Trust nothing that was heard before."""
        self.claim, self.event, self.is_served, self.lower = None, None, True, None

    # -- what was found out

    def note_owner(self, seen: ReservedIp, now: float) -> str | None:
        """Take the owner as the API names it; return a sentence when it went away from here."""
        before, self.owner = self.owner, seen.droplet_id
        if self.intent is not None and self.intent.owner != seen.droplet_id and not seen.is_locked:
            self.intent = None  # it speaks of another owner: what is wanted now is seen now
        if self.person is not None and not seen.is_locked:
            who, self.person = self.person, None
            if not self.is_ours:
                self._take_intent(_moved_by_hand(seen.droplet_id, f" (process {who})"))
        if self.is_ours:
            self.found = {}
            if before != self.me:
                self.due.all_at = now  # it came without a story of ours: what the peers know of it is not known
            return None
        if self.intent is None:
            self._take_intent(self._find_intent(before, seen.droplet_id))
        self.due.forget()
        if self.claim is VrrpState.MASTER and before == self.me:
            return f"it went away from this Droplet: its owner is {name_droplet(seen.droplet_id)}"
        return None

    def _find_intent(self, before: Owner, owner: int | None) -> Intent | None:
        """Tell a person's move from another master's: no master unassigns, or assigns to a Droplet that is none of the pair."""
        if owner is None:
            return Intent(None, "a person unassigned it: left so until a new VRRP event") if before == self.me else None
        pair = {router.droplet_id for router in self.entry.routers}
        if pair and owner not in pair:
            return Intent(owner, f"a person moved it to Droplet {owner}, which is none of the pair: left there until a new VRRP event")
        return None

    def note_report(self, report: FailoverReport, peers: tuple[Peer, ...], now: float, *, is_all: bool) -> bool:
        """Take what a story found; return whether any peer came out otherwise than before."""
        self.me = report.droplet_id if report.droplet_id is not None else self.me
        # Where the owner was read and is not this Droplet, no owner means unassigned, not unknown.
        has_changed = report.error is not None and report.error.kind in {"owner_changed", "not_owner"}
        before: Owner = self.me if has_changed else self.owner
        was_ours = self.is_ours
        self.owner = report.owner_after if report.owner_after is not None or has_changed else UNKNOWN
        self.look_at = now + _LOOK_SOON_S
        if not self.is_ours:
            if self.intent is None and not isinstance(self.owner, Unknown):
                self._take_intent(self._find_intent(before, self.owner))
            self.due.forget()
            return False
        if is_all or not was_ours:
            self.due.plan_all(now)
        if len(report.peers) != len(peers):
            return False
        return self.due.note(zip(peers, report.peers, strict=True), now)

    def note_person(self, pid: int, now: float) -> None:
        """Leave it to a person who moved it by another process: where it is now, is read next."""
        self.person, self.is_served, self.look_at = pid, True, now
        self.lower, self.found = None, {}

    def note_order_begins(self, to_droplet: int | None) -> None:
        """Let a person's order to move the IP elsewhere count from its beginning: this process may not live to its end."""
        if to_droplet is not None and to_droplet != self.me:
            self._take_intent(_moved_by_hand(to_droplet))

    def note_order(self, to_droplet: int | None, report: FailoverReport) -> None:
        """Take what became of a person's move: that it went elsewhere is intent, which only a new VRRP event overrules."""
        is_away = to_droplet is not None and to_droplet != report.droplet_id
        if not is_away or report.owner_after not in {None, to_droplet}:
            self.intent = None
        elif self.intent is None and report.owner_after is not None:  # what was heard meanwhile came before this move
            self._take_intent(_moved_by_hand(to_droplet))

    def _take_intent(self, intent: Intent | None) -> None:
        """Let a person's will count for more than what was heard or found before it."""
        self.intent = intent
        if intent is not None:
            self.lower, self.found = None, {}

    def settle(self, now: float) -> None:
        """Watch it closely for a while: the IP was just made ours."""
        self.settles_at = now + self.entry.settle_s

    def note_reassert(self, choice: Choice, now: float) -> None:
        """Begin a take-back: what it rests on cools off, or is spent for this MASTER event (I6)."""
        kind = choice.evidence[0] if choice.evidence is not None else None
        if kind is not None:
            self.acted_at[kind] = now
        if kind in {None, Evidence.LATE_LANDING}:
            self.contest.losses += 1
        self.found = {}

    # -- what follows

    @property
    def is_ours(self) -> bool:
        """Whether this Droplet owned the IP when it was read last."""
        return self.me is not None and self.owner == self.me

    def view(self, now: float) -> View:
        """Return what the state table looks at."""
        found = {Evidence.LOWER_PRIORITY: _LOWER, **self.found} if self.lower is not None else self.found
        return View(
            claim=self.claim,
            is_served=self.is_served,
            me=self.me,
            owner=self.owner,
            is_look_due=now >= self.look_at,
            is_refresh_due=self.due.is_due(now),
            is_settling=now < self.settles_at,
            losses=self.contest.losses,
            intent=self.intent.why if self.intent is not None else None,
            evidence=tuple((kind, why) for kind, why in found.items() if now >= self._cooled_at(kind)),
        )

    def find_next_time(self) -> float:
        """Return when the table has to be asked again at the latest."""
        times = [self.look_at]
        if self.is_ours and self.claim is VrrpState.MASTER:
            times += [self.due.all_at, self.due.late_at]
        if self.lower is not None:
            times.append(self._cooled_at(Evidence.LOWER_PRIORITY))
        return min(times)

    def _cooled_at(self, kind: Evidence) -> float:
        return self.acted_at.get(kind, -NEVER) + self.entry.cool_off_s

    def show(self) -> dict[str, Any]:
        """Return it for `status`."""
        return {
            "reserved_ip": self.entry.reserved_ip,
            "instance": self.entry.vrrp_name,
            "claim": self.claim,
            "event": str(self.event) if self.event is not None else None,
            "is_served": self.is_served,
            "droplet_id": self.me,
            "owner": self.owner if isinstance(self.owner, int) else None,
            "is_owner_known": not isinstance(self.owner, Unknown),
        }

    def remember(self) -> Kept:
        """Return what a later process has to know."""
        return Kept(
            claim=self.claim,
            event=self.event,
            is_served=self.is_served,
            losses=self.contest.losses,
            last_action_id=self.contest.last_action_id,
            settles_at=self.settles_at,
            intent=self.intent,
            acted_at=dict(self.acted_at),
            is_lower_pending=self.lower is not None,
            order=self.order,
            droplet_id=self.me if self.is_ours else None,
        )


def recall(entry: FailoverConfig, kept: Kept | None, now: float) -> Standing:
    """Return the standing as it was remembered; nothing is known without memory."""
    kept = kept or Kept()
    standing = Standing(
        entry,
        claim=kept.claim,
        event=kept.event,
        is_served=kept.is_served,
        contest=Contest(losses=kept.losses, last_action_id=kept.last_action_id),
        settles_at=kept.settles_at,
        intent=kept.intent,
        acted_at=dict(kept.acted_at),
        lower=kept.event if kept.is_lower_pending else None,
        order=kept.order,
        me=kept.droplet_id,
        owner=kept.droplet_id if kept.droplet_id is not None else UNKNOWN,
        look_at=now,
    )
    if kept.droplet_id is not None:
        standing.due.all_at = now  # who was late before the end is not remembered
    return standing


def _moved_by_hand(droplet_id: int | None, how: str = "") -> Intent:
    return Intent(droplet_id, f"a person moved it to {name_droplet(droplet_id)} by hand{how}: left there until a new VRRP event")
