"""DigitalOcean's side of a reserved IP as a state machine: Droplets, reserved IPs, actions. Pure; time is passed in.

An assign becomes an action that is in-progress for `action_time_s`; while it runs the reserved IP is locked
and the Droplet has a pending event. The effect belongs to the moment of completion: whoever drives
the machine asks `due`, makes the effect real, then calls `complete`. So nobody reads `completed` early.

Sources: DigitalOcean's OpenAPI description; its words for refusals as in facts.md. The words for a Droplet
that owns this or another reserved IP already, and for the wrong region, are unseen: don't match on them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

DROPLET_IS_PENDING = "Droplet already has a pending event."
IP_IS_PENDING = "The floating IP already has a pending event."
NO_ANCHOR = "The Droplet does not have an anchor IP."  # unseen
OTHER_REGION = "The floating IP and the Droplet must be in the same region."  # unseen
OWNS_THIS_ALREADY = "The floating IP is already assigned to this Droplet."  # unseen
OWNS_ANOTHER = "The Droplet already has a floating IP assigned."  # unseen
NOT_ASSIGNED = "The floating IP is not assigned."  # unseen

_V4 = 4


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
    DONE = "done"
    """Not in the published list, but clients have read it."""


class Names(StrEnum):
    """Under which names the region serves a reserved IPv4: the new one, the old one (to be retired), or both."""

    RESERVED = "reserved"
    FLOATING = "floating"
    BOTH = "both"


@dataclass(frozen=True, slots=True)
class Course:
    """How an action goes. The default is health.

    `time_s` None means the region's action time. An action that does not end has its effect in time, stays
    in-progress, and keeps the reserved IP locked. One that is not visible is a 404 for ever and in no list.
    """

    time_s: float | None = None
    status: Status = Status.COMPLETED
    takes_effect: bool = True
    ends: bool = True
    is_visible: bool = True


HEALTHY = Course()


@dataclass(frozen=True, slots=True)
class Droplet:
    """A Droplet as far as the API tells of it. Without `anchor` it can't own a reserved IPv4."""

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
    public_v6: str = ""
    public_v6_gateway: str = ""


@dataclass(slots=True)
class ReservedIp:
    """A reserved IP of either family and its owner. `address` is the compressed form, which is also its path."""

    address: str
    region: str
    droplet_id: int | None
    is_locked: bool = False

    @property
    def version(self) -> int:
        """4 or 6."""
        return version_of(self.address)


@dataclass(slots=True)
class Action:
    """One assign or unassign, or (`reserved_ip` empty) an action on a Droplet. Times are the caller's clock, seconds."""

    id: int
    type: str
    reserved_ip: str
    region: str
    droplet_id: int | None
    started_at: float
    due_at: float
    status: Status = Status.IN_PROGRESS
    completed_at: float | None = None
    course: Course = HEALTHY


@dataclass(slots=True)
class Region:
    """The state. `action_time_s` may be changed at any time and holds for actions that start later."""

    droplets: dict[int, Droplet]
    reserved_ips: dict[str, ReservedIp]
    action_time_s: float = 1.5
    actions: list[Action] = field(default_factory=list)
    first_action_id: int = 2_208_110_886
    names: Names = Names.BOTH

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
            if action.id == action_id and reserved_ip in (None, action.reserved_ip) and action.course.is_visible:
                return action
        raise Refusal.not_found()

    def newest_actions(self, *, reserved_ip: str | None = None, droplet_id: int | None = None) -> list[Action]:
        """Return all visible actions, those of one reserved IP, or those on one Droplet; the newest first.

        An assign is an action of the reserved IP, not on the Droplet (by its `resource_type`): so a Droplet's list
        does not show that it is busy with one.
        """
        seen = [action for action in reversed(self.actions) if action.course.is_visible]
        if reserved_ip is not None:
            return [action for action in seen if action.reserved_ip == reserved_ip]
        if droplet_id is not None:
            return [action for action in seen if not action.reserved_ip and action.droplet_id == droplet_id]
        return seen

    def reserved_ip_of(self, droplet_id: int, version: int = 4) -> str | None:
        """Return the reserved IP of that family that this Droplet owns, if any: one at most."""
        mine = (ip.address for ip in self.reserved_ips.values() if ip.droplet_id == droplet_id and ip.version == version)
        return next(mine, None)

    def assign(self, address: str, droplet_id: int, now: float, course: Course = HEALTHY) -> Action:
        """Start moving the reserved IP to the Droplet, or refuse as DigitalOcean does."""
        ip = self.reserved_ip(address)
        droplet = self.droplet(droplet_id)
        self._check_lock(ip)
        self._check_pending(droplet_id)
        if droplet.region != ip.region:
            raise Refusal.unprocessable(OTHER_REGION)
        if ip.droplet_id == droplet_id:
            raise Refusal.unprocessable(OWNS_THIS_ALREADY)
        if ip.version == _V4 and not droplet.anchor:
            raise Refusal.unprocessable(NO_ANCHOR)
        if self.reserved_ip_of(droplet_id, ip.version) is not None:
            raise Refusal.unprocessable(OWNS_ANOTHER)
        ip.is_locked = True
        return self._begin("assign_ip", ip.address, ip.region, droplet_id, now, course)

    def unassign(self, address: str, now: float, course: Course = HEALTHY) -> Action:
        """Start releasing the reserved IP, or refuse."""
        ip = self.reserved_ip(address)
        self._check_lock(ip)
        if ip.droplet_id is None:
            raise Refusal.unprocessable(NOT_ASSIGNED)
        ip.is_locked = True
        return self._begin("unassign_ip", ip.address, ip.region, None, now, course)

    def begin_on_droplet(self, droplet_id: int, type_: str, now: float, time_s: float) -> Action:
        """Start another action on a Droplet, such as "snapshot": it has a pending event until that ends."""
        droplet = self.droplet(droplet_id)
        self._check_pending(droplet_id)
        return self._begin(type_, "", droplet.region, droplet_id, now, Course(time_s=time_s))

    def due(self, now: float) -> list[Action]:
        """Return running actions whose time is up, the oldest first."""
        return [action for action in self._running() if action.due_at <= now]

    def complete(self, action: Action, now: float) -> None:
        """Give a running action its effect and its end, as far as its course has them."""
        if action.reserved_ip and action.course.takes_effect:
            self.reserved_ips[action.reserved_ip].droplet_id = action.droplet_id
        if not action.course.ends:
            action.due_at = math.inf
            return
        if action.reserved_ip:
            self.reserved_ips[action.reserved_ip].is_locked = False
        action.status = action.course.status
        action.completed_at = now

    def _running(self) -> list[Action]:
        return [action for action in self.actions if action.status is Status.IN_PROGRESS]

    def _check_lock(self, ip: ReservedIp) -> None:
        if ip.is_locked:
            raise Refusal.unprocessable(IP_IS_PENDING)

    def _check_pending(self, droplet_id: int) -> None:
        if any(action.droplet_id == droplet_id for action in self._running()):
            raise Refusal.unprocessable(DROPLET_IS_PENDING)

    def _begin(self, type_: str, address: str, region: str, droplet_id: int | None, now: float, course: Course) -> Action:  # noqa: PLR0913, PLR0917  an action's parts
        number = self.first_action_id + len(self.actions)
        time_s = self.action_time_s if course.time_s is None else course.time_s
        action = Action(number, type_, address, region, droplet_id, now, now + time_s, course=course)
        self.actions.append(action)
        return action


def version_of(address: str) -> int:
    """4 or 6, by the look of a valid address."""
    return 6 if ":" in address else _V4
