"""Step 3: the reserved IP becomes the target Droplet's. Only the owner read from the API at the end counts.

    read the owner; already the target: done, nothing is sent
    else POST assign, follow the action, read the owner: the target: done
    anything else: read the owner again before the next POST, until the deadline

Guarantees: no POST after the API has named the target as owner; none after the mandate was
revoked; a POST that was sent is followed for up to AFTERMATH_S after that (I2), so that the
report can say what became of it. Not guaranteed: that a POST that got no answer had no effect.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from do_failover.errors import ConfigError, PermanentError, TemporaryError
from do_failover.mandate import Mandate
from do_failover.model import Action, ActionStatus, ReservedIp
from do_failover.retry import Attempts, Backoff, call_with_retries, pause

if TYPE_CHECKING:
    from do_failover.clock import Deadline

AFTERMATH_S = 10.0
_CALL_S = 10.0  # the longest that one request may take
_POLL_MOST_S = 1.0  # an action that takes seconds is asked for about once a second
_POST_NEEDS_S = 2.0  # before the deadline, so that what became of a POST can be seen
_OWNER_READS = 4  # after an action ended, before it is called a failure


class AssignApi(Protocol):
    """What this step needs of the API."""

    async def read_reserved_ip(self, address: str, timeout_s: float) -> ReservedIp:
        """GET the reserved IP."""
        ...

    async def post_assign(self, address: str, droplet_id: int, timeout_s: float) -> Action:
        """POST the assign action."""
        ...

    async def read_action(self, address: str, action_id: int, timeout_s: float) -> Action:
        """GET one action."""
        ...


@dataclass(slots=True)
class AssignRecord:
    """What this step found and did. It is filled as it goes, so that it also tells of a step that failed."""

    before: ReservedIp | None = None
    after: ReservedIp | None = None
    posts: int = 0
    last_action: Action | None = None
    attempts: Attempts = field(default_factory=Attempts)

    @property
    def owner(self) -> int | None:
        """Return the owner as last read."""
        latest = self.after or self.before
        return latest.droplet_id if latest is not None else None

    def describe(self) -> str:
        """Return one sentence for the report."""
        if self.before is None:
            return "the owner could not be read"
        if self.posts == 0:
            return f"owner {_name(self.before)}; nothing was sent"
        times = "one assign was sent" if self.posts == 1 else f"{self.posts} assigns were sent"
        fate = f", the last action is {self.last_action.status}" if self.last_action is not None else ", without an answer"
        return f"owner was {_name(self.before)}; {times}{fate}; owner is {_name(self.after or self.before)}"


async def assign_reserved_ip(  # noqa: PLR0913 - named, and each of them is needed
    api: AssignApi,
    *,
    address: str,
    target: int,
    region: str | None,
    deadline: Deadline,
    mandate: Mandate,
    backoff: Backoff,
    record: AssignRecord,
) -> ReservedIp:
    """Make `target` the owner and return the reserved IP as read at the end.

    Raises DeadlineError, SupersededError, or a PermanentError; `record` then has what was done.
    """
    attempt = _Assign(api, address, target, deadline, mandate, backoff, record)

    async def move_once() -> ReservedIp:
        mandate.check()
        current = await attempt.read_owner()
        _check_region(current, region, target)
        if current.droplet_id == target:
            return current
        mandate.check()
        if attempt.cause is not None and deadline.remaining_s() < _POST_NEEDS_S:
            raise attempt.cause  # a POST now could no longer be followed
        return await attempt.post_and_settle()

    return await call_with_retries(move_once, deadline=deadline, mandate=mandate, backoff=backoff, attempts=record.attempts)


def _check_region(current: ReservedIp, region: str | None, target: int) -> None:
    if region is not None and current.region is not None and current.region != region:
        msg = (
            f"reserved IP {current.address} is of region {current.region}, Droplet {target} of {region}: "
            f"it can never be assigned there; correct reserved_ip"
        )
        raise ConfigError(msg)


@dataclass(slots=True)
class _Assign:
    """One assignment on its way."""

    api: AssignApi
    address: str
    target: int
    deadline: Deadline
    mandate: Mandate
    backoff: Backoff
    record: AssignRecord
    aftermath: Deadline | None = None
    cause: TemporaryError | None = None

    async def read_owner(self) -> ReservedIp:
        current = await self.api.read_reserved_ip(self.address, self._call_s(self.deadline))
        if not current.is_owner_visible:
            msg = (
                "the API hides the owner: the token lacks the scope droplet:read; without it no assignment can be "
                "verified; give the token that scope"
            )
            raise PermanentError(msg, kind="owner_hidden")
        if self.record.before is None:
            self.record.before = current
        self.record.after = current
        return current

    async def post_and_settle(self) -> ReservedIp:
        """POST once and find out what became of it."""
        self.record.posts += 1
        self.record.last_action = None
        try:
            action = await self.api.post_assign(self.address, self.target, self._call_s(self.deadline))
        except TemporaryError as error:
            return await self._settle(str(error), error)
        self.record.last_action = action
        status = await self._follow(action)
        return await self._settle(f"the action {action.id} is {status}", None)

    async def _follow(self, action: Action) -> ActionStatus | str:
        """Poll until the action ended, vanished, or time is up; a hiccup of the API is waited out."""
        attempt = 0
        while action.status is ActionStatus.IN_PROGRESS:
            attempt += 1
            limit = self._limit()
            if limit.is_over():
                break
            await self._pause(min(_POLL_MOST_S, self.backoff.wait_s(attempt), limit.remaining_s()))
            try:
                action = await self.api.read_action(self.address, action.id, self._call_s(limit))
            except TemporaryError:
                continue
            except PermanentError as error:
                if error.kind == "not_found":
                    return "gone"  # some actions are never found, though the move works (facts.md)
                raise
            self.record.last_action = action
        return action.status

    async def _settle(self, what: str, cause: TemporaryError | None) -> ReservedIp:
        """Read the owner, more than once where the change may still show; the target: success."""
        reads = _OWNER_READS if cause is None or cause.may_have_landed else 1
        current: ReservedIp | None = None
        for attempt in range(1, reads + 1):
            try:
                current = await self.read_owner()
            except TemporaryError as error:
                what = f"{what}; then {error.message}"
            else:
                if current.droplet_id == self.target:
                    return current
            if attempt == reads or self._limit().is_over():
                break
            await self._pause(min(_POLL_MOST_S, self.backoff.wait_s(attempt), self._limit().remaining_s()))
        self.mandate.check()
        owner = _name(current) if current is not None else "unknown"
        msg = f"{what}, but the owner of {self.address} is {owner}, not Droplet {self.target}"
        self.cause = TemporaryError(
            msg,
            kind=cause.kind if cause is not None else "wrong_owner",
            request_id=cause.request_id if cause is not None else None,
            retry_after_s=cause.retry_after_s if cause is not None else None,
        )
        raise self.cause

    def _limit(self) -> Deadline:
        """Return the deadline; once the mandate has ended, the time that is left to see what became of the POST."""
        if self.mandate.is_revoked and self.aftermath is None:
            self.aftermath = self.deadline.no_later_than(AFTERMATH_S)
        return self.aftermath or self.deadline

    async def _pause(self, seconds: float) -> None:
        """Wait. A mandate that ends meanwhile shortens the wait once; afterwards it no longer does."""
        mandate = Mandate() if self.mandate.is_revoked else self.mandate
        await pause(seconds, clock=self.deadline.clock, mandate=mandate)

    def _call_s(self, limit: Deadline) -> float:
        return max(0.5, min(_CALL_S, limit.remaining_s()))


def _name(current: ReservedIp) -> str:
    return "no Droplet" if current.droplet_id is None else f"Droplet {current.droplet_id}"
