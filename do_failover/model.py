"""The words of the domain as frozen values: what the steps hand to each other, and the report.

Standard library only. Field names of the report are those of its JSON form (`schema` 1);
addresses are strings in their canonical form, durations end in `_s` and are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class NotifyType(StrEnum):
    """Whether keepalived speaks of a VRRP instance or of a sync group."""

    INSTANCE = "INSTANCE"
    GROUP = "GROUP"


class VrrpState(StrEnum):
    """VRRP states as keepalived writes them (the last three appear on its FIFO only)."""

    MASTER = "MASTER"
    BACKUP = "BACKUP"
    FAULT = "FAULT"
    STOP = "STOP"
    DELETED = "DELETED"
    MASTER_RX_LOWER_PRI = "MASTER_RX_LOWER_PRI"
    MASTER_PRIORITY = "MASTER_PRIORITY"
    BACKUP_PRIORITY = "BACKUP_PRIORITY"

    @property
    def is_of_priority(self) -> bool:
        """Whether it is news of a number only, which supersedes nothing."""
        return self in {VrrpState.MASTER_PRIORITY, VrrpState.BACKUP_PRIORITY}


@dataclass(frozen=True, slots=True)
class NotifyEvent:
    """One notify of keepalived."""

    type: NotifyType
    name: str
    state: VrrpState
    priority: int | None = None

    def __str__(self) -> str:
        """Write the event as keepalived would on its FIFO."""
        priority = "" if self.priority is None else f" {self.priority}"
        return f'{self.type} "{self.name}" {self.state}{priority}'


def name_droplet(droplet_id: int | None) -> str:
    """Name an owner in a sentence."""
    return "no Droplet" if droplet_id is None else f"Droplet {droplet_id}"


class DecisionKind(StrEnum):
    """What a failover round does with the reserved IP."""

    ASSIGN = "assign"
    ALREADY_OWNER = "already_owner"
    REASSERT = "reassert"
    IGNORE = "ignore"
    HELD = "held"


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, and why in one sentence."""

    kind: DecisionKind
    reason: str


@dataclass(frozen=True, slots=True)
class ReservedIp:
    """The reserved IP as the API showed it.

    `droplet_id` is None both when the IP is unassigned and when the API hid the owner (a token
    without droplet:read); `is_owner_visible` tells the two apart.
    """

    address: str
    region: str | None
    droplet_id: int | None
    is_owner_visible: bool = True
    is_locked: bool = False
    owner_public_address: str | None = None  # never the reserved IP itself, though the API lists that too
    owner_status: str | None = None  # new, active, off or archive, where the API says so


class ActionStatus(StrEnum):
    """An action's status; `done` was seen in the wild and reads as completed."""

    IN_PROGRESS = "in-progress"
    COMPLETED = "completed"
    ERRORED = "errored"


@dataclass(frozen=True, slots=True)
class Action:
    """One action of the API; what it does and since when, where the API said so."""

    id: int
    status: ActionStatus
    type: str | None = None
    started_at: str | None = None

    def __str__(self) -> str:
        """Describe it for a sentence."""
        what = f" ({self.type})" if self.type else ""
        since = f", begun {self.started_at}" if self.started_at else ""
        return f"action {self.id}{what}{since}"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an assign was refused, as found by reading; None where nothing that can be read explains it.

    `is_final`: it can't pass with time, somebody has to change something.
    """

    sentence: str | None
    reserved: ReservedIp
    is_final: bool = False


@dataclass(frozen=True, slots=True)
class Droplet:
    """A Droplet as far as a failover cares."""

    id: int
    name: str
    region: str | None
    public_addresses: tuple[str, ...]  # IPv4; its reserved IP may stand among them, after its own
    private_addresses: tuple[str, ...] = ()  # IPv4, of its VPC
    public_addresses_v6: tuple[str, ...] = ()
    status: str | None = None  # new, active, off or archive, where the API says so


@dataclass(frozen=True, slots=True)
class Identity:
    """Who and where this machine is; None where neither the metadata nor the configuration says."""

    droplet_id: int | None = None
    region: str | None = None
    hostname: str | None = None
    public_address: str | None = None
    public_address_v6: str | None = None
    anchor_address: str | None = None
    has_reserved_ip: bool | None = None
    reserved_ip: str | None = None

    def looks_like_owner_of(self, reserved_ip: str) -> bool:
        """Whether the metadata hints that this IP is here. A hint, never the truth (facts.md)."""
        if self.reserved_ip is not None:
            return bool(self.has_reserved_ip) and self.reserved_ip == reserved_ip
        return bool(self.has_reserved_ip)


@dataclass(frozen=True, slots=True)
class Peer:
    """A same-region Droplet whose neighbour and flow state we refresh.

    `number` is its place in the fan-out list of this run, and part of its witness pattern.
    `host` is the name that the report shows, and where SSH goes: as it was listed, or a tagged Droplet's
    private address. What follows `port` is known of a tagged Droplet only: `public_addresses` (IPv4 first,
    no reserved IP) are for work on the link layer.
    """

    number: int
    host: str
    user: str | None = None
    port: int = 22
    droplet_id: int | None = None
    name: str | None = None
    public_addresses: tuple[str, ...] = ()


class PeerOutcome(StrEnum):
    """How a peer came out of the failover. Only HEALED is proven."""

    HEALED = "healed"
    STALE = "stale"
    UNPROVEN = "unproven"
    UNREACHABLE = "unreachable"
    REFUSED = "refused"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A neighbour entry: an address, its lladdr and its state (nud), as the peer's kernel has it."""

    address: str
    lladdr: str | None
    nud: str | None


@dataclass(frozen=True, slots=True)
class PeerResult:
    """One peer's row of the report.

    Of a healed one: `proof` is what arrived here ("icmp", "tcp:443"), `measure` what was done in the try that worked.
    """

    host: str
    outcome: PeerOutcome
    on_link: bool | None = None
    neighbour: Neighbour | None = None
    acknowledged: bool | None = None
    witnessed: bool = False
    duration_s: float = 0.0
    attempts: int = 0
    error: str | None = None
    proof: str | None = None
    measure: str | None = None


class Outcome(StrEnum):
    """How a failover ended."""

    DONE = "done"
    FAILED = "failed"
    SUPERSEDED = "superseded"
    PARTIAL = "partial"


@dataclass(frozen=True, slots=True)
class ReportError:
    """The error that ended a failover: its kind, the operator's sentence, the API's request id."""

    kind: str
    message: str
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class Stage:
    """One step's time line, in seconds since the event was received."""

    name: str
    start_s: float
    end_s: float
    attempts: int
    detail: str


@dataclass(frozen=True, slots=True)
class FailoverReport:
    """Everything that one failover did, found and proved: the JSON of `-o json` and of the history."""

    id: str
    at: str
    node: str
    reserved_ip: str
    instance: str | None
    event: NotifyEvent | None
    decision: DecisionKind
    reason: str
    droplet_id: int | None
    owner_before: int | None
    owner_after: int | None
    outcome: Outcome
    exit_code: int
    round: int = 1
    api_calls: int = 0
    error: ReportError | None = None
    stages: tuple[Stage, ...] = ()
    peers: tuple[PeerResult, ...] = ()
    warnings: tuple[str, ...] = field(default=())
    schema: int = 1
