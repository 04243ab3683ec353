"""DigitalOcean's side of a reserved IP as a state machine: Droplets, reserved IPs, actions. Pure; time is passed in.

An assign becomes an action that is in-progress for `action_time_s`; while it runs the reserved IP is locked
and the Droplet has a pending event. The effect belongs to the moment of completion: whoever drives
the machine asks `due`, makes the effect real, then calls `complete`. So nobody reads `completed` early.

Sources: DigitalOcean's OpenAPI description; its words for refusals as in facts.md. The words for a Droplet
that owns this or another reserved IP already, and for the wrong region, are unseen: don't match on them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

DROPLET_IS_PENDING = "Droplet already has a pending event."
IP_IS_PENDING = "The floating IP already has a pending event."
OTHER_REGION = "The floating IP and the Droplet must be in the same region."  # unseen
OWNS_THIS_ALREADY = "The floating IP is already assigned to this Droplet."  # unseen
OWNS_ANOTHER = "The Droplet already has a floating IP assigned."  # unseen
NOT_ASSIGNED = "The floating IP is not assigned."  # unseen


class Refusal(Exception):  # noqa: N818  it is an answer, not a mishap
    """A request that DigitalOcean refuses: HTTP status, `id` and `message` of the body."""

    def __init__(self, status: int, id_: str, message: str) -> None:
        """Keep the three parts of the answer."""
        super().__init__(message)
        self.status = status
        self.id = id_
        self.message = message

    @classmethod
    def not_found(cls) -> Refusal:
        """Make the documented 404."""
        return cls(404, "not_found", "The resource you requested could not be found.")

    @classmethod
    def unprocessable(cls, message: str) -> Refusal:
        """Make the documented 422."""
        return cls(422, "unprocessable_entity", message)


class Status(StrEnum):
    """An action's status."""

    IN_PROGRESS = "in-progress"
    COMPLETED = "completed"
    ERRORED = "errored"


@dataclass(frozen=True, slots=True)
class Droplet:
    """A Droplet as far as the API tells of it."""

    id: int
    name: str
    region: str
    public: str
    private: str
    public_gateway: str
    anchor: str = ""
    anchor_gateway: str = ""
    netmask: str = "255.255.0.0"
    tags: tuple[str, ...] = ()
    status: str = "active"


@dataclass(slots=True)
class ReservedIp:
    """A reserved IP and its owner."""

    address: str
    region: str
    droplet_id: int | None
    is_locked: bool = False


@dataclass(slots=True)
class Action:
    """One assign or unassign. Times are the caller's clock, seconds."""

    id: int
    type: str
    reserved_ip: str
    region: str
    droplet_id: int | None
    started_at: float
    due_at: float
    status: Status = Status.IN_PROGRESS
    completed_at: float | None = None


@dataclass(slots=True)
class Region:
    """The state. `action_time_s` may be changed at any time and holds for actions that start later."""

    droplets: dict[int, Droplet]
    reserved_ips: dict[str, ReservedIp]
    action_time_s: float = 1.5
    actions: list[Action] = field(default_factory=list)
    first_action_id: int = 2_208_110_886

    def reserved_ip(self, address: str) -> ReservedIp:
        """Return the reserved IP, or a 404."""
        try:
            return self.reserved_ips[address]
        except KeyError:
            raise Refusal.not_found() from None

    def droplet(self, droplet_id: int) -> Droplet:
        """Return the Droplet, or a 404."""
        try:
            return self.droplets[droplet_id]
        except KeyError:
            raise Refusal.not_found() from None

    def action(self, action_id: int, reserved_ip: str | None = None) -> Action:
        """Return the action (of that reserved IP), or a 404."""
        for action in self.actions:
            if action.id == action_id and reserved_ip in (None, action.reserved_ip):
                return action
        raise Refusal.not_found()

    def reserved_ip_of(self, droplet_id: int) -> str | None:
        """Return the reserved IP that this Droplet owns, if any: one at most."""
        return next((ip.address for ip in self.reserved_ips.values() if ip.droplet_id == droplet_id), None)

    def assign(self, address: str, droplet_id: int, now: float) -> Action:
        """Start moving the reserved IP to the Droplet, or refuse as DigitalOcean does."""
        ip = self.reserved_ip(address)
        droplet = self.droplet(droplet_id)
        self._check_lock(ip)
        if any(a.droplet_id == droplet_id for a in self._running()):
            raise Refusal.unprocessable(DROPLET_IS_PENDING)
        if droplet.region != ip.region:
            raise Refusal.unprocessable(OTHER_REGION)
        if ip.droplet_id == droplet_id:
            raise Refusal.unprocessable(OWNS_THIS_ALREADY)
        if self.reserved_ip_of(droplet_id) is not None:
            raise Refusal.unprocessable(OWNS_ANOTHER)
        return self._begin(ip, "assign_ip", droplet_id, now)

    def unassign(self, address: str, now: float) -> Action:
        """Start releasing the reserved IP, or refuse."""
        ip = self.reserved_ip(address)
        self._check_lock(ip)
        if ip.droplet_id is None:
            raise Refusal.unprocessable(NOT_ASSIGNED)
        return self._begin(ip, "unassign_ip", None, now)

    def due(self, now: float) -> list[Action]:
        """Return running actions whose time is up, the oldest first."""
        return [action for action in self._running() if action.due_at <= now]

    def complete(self, action: Action, now: float) -> None:
        """End a running action with its effect."""
        ip = self.reserved_ips[action.reserved_ip]
        ip.droplet_id = action.droplet_id
        ip.is_locked = False
        action.status = Status.COMPLETED
        action.completed_at = now

    def _running(self) -> list[Action]:
        return [action for action in self.actions if action.status is Status.IN_PROGRESS]

    def _check_lock(self, ip: ReservedIp) -> None:
        if ip.is_locked:
            raise Refusal.unprocessable(IP_IS_PENDING)

    def _begin(self, ip: ReservedIp, type_: str, droplet_id: int | None, now: float) -> Action:
        number = self.first_action_id + len(self.actions)
        action = Action(number, type_, ip.address, ip.region, droplet_id, now, now + self.action_time_s)
        ip.is_locked = True
        self.actions.append(action)
        return action
