"""The state table: what a daemon does next for one reserved IP, and why. Pure; the first row that fits counts.

docs/daemon.md shows the rows as they stand here; a test compares them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from do_failover.decision import UNKNOWN, Owner, Unknown
from do_failover.model import VrrpState

if TYPE_CHECKING:
    from collections.abc import Callable


class Move(StrEnum):
    """What to do next."""

    TELL = "tell"  # the whole story for the newest event, in rounds
    REASSERT = "reassert"  # one more round, on evidence
    LOOK = "look"  # read the owner
    REFRESH = "refresh"  # make peers ping again, and prove it
    WAIT = "wait"


class Evidence(StrEnum):
    """Why a MASTER that was served makes sure again. Each counts at most once per cool-off (I6)."""

    LOWER_PRIORITY = "lower_priority"
    LATE_LANDING = "late_landing"
    INACTIVE_OWNER = "inactive_owner"
    SILENT_OWNER = "silent_owner"


@dataclass(frozen=True, slots=True)
class View:
    """All that the table looks at. `evidence` holds what is there and not in its cool-off, with its sentence."""

    claim: VrrpState | None = None  # what VRRP said last; None: nothing that can be trusted
    is_served: bool = True  # the newest event's story has been told
    me: int | None = None
    owner: Owner = UNKNOWN
    is_look_due: bool = False
    is_refresh_due: bool = False
    is_settling: bool = False  # its own MASTER event is young
    losses: int = 0  # how often this MASTER event has taken the IP back already
    intent: str | None = None  # a person's move, as a sentence
    evidence: tuple[tuple[Evidence, str], ...] = ()

    @property
    def is_ours(self) -> bool:
        """Whether this Droplet owned the IP when it was read last."""
        return self.me is not None and self.owner == self.me

    def find(self, *kinds: Evidence) -> tuple[Evidence, str] | None:
        """Return the first evidence of these kinds."""
        return next((item for item in self.evidence if item[0] in kinds), None)


@dataclass(frozen=True, slots=True)
class Row:
    """One row: when it fits, what follows, and both in words."""

    when: str
    then: Move
    why: str
    fits: Callable[[View], bool]


@dataclass(frozen=True, slots=True)
class Choice:
    """The next move, its reason, and the evidence that it rests on."""

    move: Move
    why: str
    evidence: tuple[Evidence, str] | None = None


_LOST = "MASTER, served, owner is another"

TABLE: tuple[Row, ...] = (
    Row("an event was not served yet", Move.TELL, "the newest event counts", lambda v: v.claim is not None and not v.is_served),
    Row(
        "MASTER, and a lower priority was heard",
        Move.REASSERT,
        "another node sent adverts as MASTER: it may have taken the IP",
        lambda v: v.claim is VrrpState.MASTER and v.find(Evidence.LOWER_PRIORITY) is not None,
    ),
    Row("the owner is to be read", Move.LOOK, "the owner was not read for a while", lambda v: v.is_look_due),
    Row(
        "no claim is known",
        Move.WAIT,
        "nothing was heard from this keepalived: observing until it says something",
        lambda v: v.claim is None,
    ),
    Row(
        "BACKUP, FAULT, STOP or DELETED",
        Move.WAIT,
        "not MASTER: nothing is assigned, and nothing is released",
        lambda v: v.claim is not VrrpState.MASTER,
    ),
    Row("MASTER, owner unknown", Move.WAIT, "the owner could not be read yet", lambda v: isinstance(v.owner, Unknown) or v.me is None),
    Row(
        "MASTER and owner, peers are due",
        Move.REFRESH,
        "peers are refreshed while we own the IP",
        lambda v: v.is_ours and v.is_refresh_due,
    ),
    Row("MASTER and owner", Move.WAIT, "MASTER, and the API names this Droplet as owner: guarding", lambda v: v.is_ours),
    Row(f"{_LOST}: a person's move", Move.WAIT, "a person moved it: left there until a new VRRP event", lambda v: v.intent is not None),
    Row(
        f"{_LOST}: an older action landed late",
        Move.REASSERT,
        "taken back, once for each MASTER event",
        lambda v: v.losses == 0 and v.find(Evidence.LATE_LANDING) is not None,
    ),
    Row(
        f"{_LOST}: while settling",
        Move.REASSERT,
        "lost while settling: taken back, once for each MASTER event",
        lambda v: v.is_settling and v.losses == 0,
    ),
    Row(
        f"{_LOST}: which the API calls not active",
        Move.REASSERT,
        "its owner is not active",
        lambda v: v.find(Evidence.INACTIVE_OWNER) is not None,
    ),
    Row(
        f"{_LOST}: which is silent for most peers",
        Move.REASSERT,
        "its owner is silent, and most peers say so",
        lambda v: v.find(Evidence.SILENT_OWNER) is not None,
    ),
    Row(
        _LOST,
        Move.WAIT,
        "somebody else has it: left there without evidence (two masters never fight)",
        lambda _: True,
    ),
)

_RESTS_ON = {
    TABLE[1].when: (Evidence.LOWER_PRIORITY,),
    f"{_LOST}: an older action landed late": (Evidence.LATE_LANDING,),
    f"{_LOST}: which the API calls not active": (Evidence.INACTIVE_OWNER,),
    f"{_LOST}: which is silent for most peers": (Evidence.SILENT_OWNER,),
}


def choose(view: View) -> Choice:
    """Return the first row's move that fits, with its evidence."""
    row = next(row for row in TABLE if row.fits(view))
    found = view.find(*_RESTS_ON.get(row.when, ()))
    why = row.why if found is None else found[1]
    return Choice(row.then, view.intent if row.when.endswith("a person's move") and view.intent else why, found)
