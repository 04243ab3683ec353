"""Step 3: the reserved IP becomes the target Droplet's. Only the owner read from the API at the end counts.

    the metadata service says that the IP is not here: POST at once
    it says that it is here, or nothing: read the owner; already the target, and not locked: done, nothing is sent
    the IP is locked, or the last POST may still land: wait, read the owner and the newest action again
    POST assign: read the owner until it is the target; no longer locked and not the target: ask the action why
    POST refused (422): find out why by reading; already the target: done
    anything else: read the owner again before the next POST, until the deadline

The metadata service chooses the first call, never the outcome. Guarantees: no POST after the API has
named the target as owner; none after the mandate was revoked; a POST that was sent is followed for
AFTERMATH_S after that at most (I2), so that the report can say what became of it; an IP that was
moved away again after it had come is taken back once for each MASTER event (I6). Not guaranteed: that
a POST that got no answer had no effect.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from do_failover.errors import ConfigError, PermanentError, TemporaryError
from do_failover.mandate import Mandate
from do_failover.model import Action, ActionStatus, Refusal, ReservedIp, name_droplet
from do_failover.retry import Attempts, Backoff, call_with_retries, pause

if TYPE_CHECKING:
    from do_failover.clock import Deadline

AFTERMATH_S = 10.0
_CALL_S = 10.0  # the longest that one request may take
_POLL_MOST_S = 1.0  # an action that takes seconds is asked for about once a second
_POST_NEEDS_S = 2.0  # before the deadline, so that what became of a POST can be seen
_OWNER_READS = 4  # after an action ended, before it is called a failure
_UNEXPLAINED_MOST = 8  # completed without effect, where the API lists no actions that could name a rival (IPv6)
_UNANSWERED = {"timeout", "network", "garbled"}
_UNREADABLE = {"forbidden", "not_found"}  # a token that may not read actions moves the IP all the same
_NO_WHY_V6 = "; for IPv6 the API shows neither a lock nor a list of actions, so nothing that can be read says why"


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

    async def read_newest_action(self, address: str, timeout_s: float) -> Action | None:
        """GET the IP's newest action, where the API lists them."""
        ...

    async def explain_refusal(self, address: str, droplet_id: int, timeout_s: float) -> Refusal:
        """Find out why an assign was refused."""
        ...

    def poll_factor(self) -> float:
        """Return by how much polls are to slow down, for the rate limit's sake."""
        ...


@dataclass(slots=True)
class Contest:
    """What one MASTER event has lost to somebody else, over all of its rounds."""

    losses: int = 0
    unexplained: int = 0
    last_action_id: int | None = None  # of our last POST that was answered


@dataclass(frozen=True, slots=True)
class Goal:
    """What is to be reached, and what is known beforehand."""

    address: str
    target: int
    region: str | None = None
    has_anchor: bool | None = None
    is_surely_elsewhere: bool = False
    contest: Contest = field(default_factory=Contest)
    landing_s: float = AFTERMATH_S  # how long a POST of unknown fate is waited for where nothing else tells


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
        latest = self.after or self.before
        if latest is None and self.posts == 0:
            return "the owner could not be read"
        if latest is not None and self.posts == 0:
            return f"owner {name_droplet(latest.droplet_id)}; nothing was sent"
        before = f"owner was {name_droplet(self.before.droplet_id)}; " if self.before is not None else ""
        times = "one assign was sent" if self.posts == 1 else f"{self.posts} assigns were sent"
        fate = "" if self.last_action is not None else ", the last without an answer"
        after = f"owner is {name_droplet(latest.droplet_id)}" if latest is not None else "the owner could not be read since"
        return f"{before}{times}{fate}; {after}"


async def assign_reserved_ip(  # noqa: PLR0913 - named
    api: AssignApi,
    *,
    goal: Goal,
    deadline: Deadline,
    mandate: Mandate,
    backoff: Backoff,
    record: AssignRecord,
    wake: asyncio.Event | None = None,
) -> ReservedIp:
    """Make the goal's target the owner and return the reserved IP as read at the end.

    `wake` ends a wait between two polls early: the metadata service saw a change. Raises DeadlineError,
    SupersededError, or a PermanentError; `record` then has what was done.
    """
    attempt = _Assign(api, goal, deadline, mandate, backoff, record, wake)
    watching = asyncio.ensure_future(attempt.watch_mandate())
    try:
        return await call_with_retries(
            attempt.move_once, deadline=deadline, mandate=mandate, backoff=backoff, wake=wake, attempts=record.attempts
        )
    finally:
        watching.cancel()


def check_owner_is_visible(current: ReservedIp) -> None:
    """Raise PermanentError when the token hides the owner: that is not an unassigned IP."""
    if not current.is_owner_visible:
        msg = (
            "the API hides the owner: the token lacks the scope droplet:read; without it nothing can be verified; give the token that scope"
        )
        raise PermanentError(msg, kind="owner_hidden")


@dataclass(slots=True)
class _Assign:
    """One assignment on its way."""

    api: AssignApi
    goal: Goal
    deadline: Deadline
    mandate: Mandate
    backoff: Backoff
    record: AssignRecord
    wake: asyncio.Event | None
    aftermath: Deadline | None = None
    cause: TemporaryError | None = None
    may_land: bool = False  # the last POST got no answer, or its action can't be read: it may still have its effect
    is_unanswered: bool = False  # no status at all, or an action that can't be read: nothing says that it failed
    posted_at: float = -math.inf

    async def watch_mandate(self) -> None:
        """Start the aftermath at the moment at which the mandate ends, whatever is under way then."""
        await self.mandate.revoked()
        self.aftermath = self.deadline.no_later_than(AFTERMATH_S)

    async def move_once(self) -> ReservedIp:
        """Take one try of the table in the module's docstring."""
        self.mandate.check()
        if not (self.goal.is_surely_elsewhere and self.record.posts == 0):
            current = await self.read_owner()
            if current.droplet_id == self.goal.target:
                self._check_that_it_stays(current)
                return current
            if self.may_land or current.is_locked:
                await self._wait_for_what_may_land(current)
                current = await self.read_owner()  # it may have landed between the owner's and the action's answer
                if current.droplet_id == self.goal.target:
                    return current
        self.mandate.check()
        if self.cause is not None and self.deadline.remaining_s() < _POST_NEEDS_S:
            raise self.cause  # a POST now could no longer be followed
        return await self.post_and_settle()

    async def read_owner(self) -> ReservedIp:
        current = await self.api.read_reserved_ip(self.goal.address, self._call_s())
        check_owner_is_visible(current)
        self._check_region(current)
        if self.record.before is None and (self.record.posts == 0 or current.droplet_id != self.goal.target):
            self.record.before = current
        self.record.after = current
        return current

    def _check_that_it_stays(self, current: ReservedIp) -> None:
        """Ours, and locked by an action that is not ours: it may still move it away, so it is waited for."""
        if current.is_locked and self.record.posts == 0 and self.deadline.remaining_s() > _POST_NEEDS_S:
            msg = f"{current.address} is {name_droplet(current.droplet_id)}'s already, and is locked by an action that may still move it"
            raise TemporaryError(msg, kind="locked")

    async def _wait_for_what_may_land(self, current: ReservedIp) -> None:
        """Don't repeat a POST of unknown fate while the IP's newest action is still running.

        Where neither a lock nor a list of actions tells (IPv6), it is given `landing_s` to land.
        """
        newest = await self._read_newest()
        if newest is not None:
            is_running = newest.status is ActionStatus.IN_PROGRESS
        elif ":" in self.goal.address:
            is_running = self.is_unanswered and self.deadline.clock.now() < self.posted_at + self.goal.landing_s
        else:
            is_running = current.is_locked
        if not is_running:
            self.may_land = False
            return
        what = f"is locked by {newest}" if newest is not None else "may still get the last assign, which can't be followed"
        msg = f"{self.goal.address} {what}, and its owner is {name_droplet(current.droplet_id)}"
        raise TemporaryError(msg, kind="locked")

    async def post_and_settle(self) -> ReservedIp:
        """POST once and find out what became of it."""
        self.record.posts += 1
        self.record.last_action = None
        self.posted_at = self.deadline.clock.now()
        try:
            action = await self.api.post_assign(self.goal.address, self.goal.target, self._call_s())
        except TemporaryError as error:
            self.may_land, self.is_unanswered = error.may_have_landed, error.kind in _UNANSWERED
            if error.kind == "unprocessable":
                return await self._explain(error)
            return await self._settle(error.message, error)
        self.record.last_action = action
        self.goal.contest.last_action_id = action.id
        self.may_land = False
        return await self._follow(action)

    async def _follow(self, action: Action) -> ReservedIp:
        """Read the owner until it is the target; once the IP is no longer locked, the action says why it isn't."""
        attempt, asked_s = 0, 0.0
        while True:
            attempt += 1
            if self._limit().is_over():
                return await self._settle(f"the action {action.id} is {action.status}", None)
            await self._pause(attempt, asked_s)
            asked_s = 0.0
            try:
                current = await self.read_owner()
                if current.droplet_id == self.goal.target:
                    return current
                if current.is_locked:
                    continue
                action = await self.api.read_action(self.goal.address, action.id, self._call_s())
            except TemporaryError as error:
                asked_s = error.retry_after_s or 0.0
                continue  # a hiccup of the API: the next poll tells
            except PermanentError as error:
                if error.kind in {"region", "owner_hidden"}:
                    raise
                # Some actions are never found, and some tokens may not read them, though the move works (facts.md).
                self.may_land = self.is_unanswered = True
                return await self._settle(f"the action {action.id} can't be read ({error.kind})", None)
            self.record.last_action = action
            if action.status is not ActionStatus.IN_PROGRESS:
                return await self._settle(f"the action {action.id} is {action.status}", None, ended=action)

    async def _settle(self, what: str, cause: TemporaryError | None, *, ended: Action | None = None) -> ReservedIp:
        """Read the owner, more than once where the change may still show; the target: success."""
        reads = _OWNER_READS if cause is None or cause.may_have_landed else 1
        current: ReservedIp | None = None
        for attempt in range(1, reads + 1):
            try:
                current = await self.read_owner()
            except TemporaryError as error:
                what = f"{what}; then {error.message}"
            else:
                if current.droplet_id == self.goal.target:
                    return current
            if attempt == reads or self._limit().is_over():
                break
            await self._pause(attempt)
        self.mandate.check()
        if ended is not None and current is not None:
            await self._check_rival(ended, current)
        owner = name_droplet(current.droplet_id) if current is not None else "unknown"
        msg = f"{what}, but the owner of {self.goal.address} is {owner}, not Droplet {self.goal.target}"
        raise self._note(msg, cause)

    async def _explain(self, error: TemporaryError) -> ReservedIp:
        """Find out by reading why the POST was refused; that we own the IP already is success."""
        try:
            async with asyncio.timeout(self._call_s()):
                refusal = await self.api.explain_refusal(self.goal.address, self.goal.target, self._call_s())
        except (TimeoutError, TemporaryError, PermanentError) as trouble:
            if isinstance(trouble, PermanentError) and trouble.kind not in _UNREADABLE:
                raise
            reason = "there was no time left" if isinstance(trouble, TimeoutError) else trouble.message
            sentence = f"{error.message}; why could not be read: {reason}"
            raise self._note(sentence, error) from None
        self.record.after = refusal.reserved
        self._check_region(refusal.reserved)
        if refusal.reserved.droplet_id == self.goal.target:
            return refusal.reserved
        if refusal.is_final and refusal.sentence is not None:
            raise PermanentError(refusal.sentence, kind="refused_assign", request_id=error.request_id)
        if refusal.sentence is None and self.goal.has_anchor is False:
            msg = f"Droplet {self.goal.target} has no anchor IP, which a reserved IP needs ({error.message})"
            raise PermanentError(msg, kind="no_anchor", request_id=error.request_id)
        hidden = ", and nothing that can be read says why" if ":" not in self.goal.address else _NO_WHY_V6
        raise self._note(refusal.sentence or f"{error.message}{hidden}", error)

    async def _check_rival(self, ended: Action, current: ReservedIp) -> None:
        """Two masters never fight (I6): an IP that was moved away again is taken back once for each MASTER event."""
        contest, address, owner = self.goal.contest, self.goal.address, name_droplet(current.droplet_id)
        newest = await self._read_newest()
        contest.losses += newest is not None and newest.id > ended.id
        if contest.losses > 1:
            msg = (
                f"{address} was moved to {owner} again by {newest} after it had come here: somebody else wants it; "
                f"it is not taken back without a new VRRP event"
            )
            raise PermanentError(msg, kind="owner_changed")
        contest.unexplained += newest is None and ended.status is ActionStatus.COMPLETED
        if newest is None and contest.unexplained > _UNEXPLAINED_MOST:
            msg = (
                f"{contest.unexplained} actions that completed left {address} with {owner}: somebody else wants it, or "
                f"the API's actions have no effect (it lists none that could tell); it is left there until a new VRRP event"
            )
            raise PermanentError(msg, kind="owner_changed")

    async def _read_newest(self) -> Action | None:
        """Read the IP's newest action; None also where the token may not read it."""
        try:
            return await self.api.read_newest_action(self.goal.address, self._call_s())
        except PermanentError as error:
            if error.kind not in _UNREADABLE:
                raise
            return None

    def _check_region(self, current: ReservedIp) -> None:
        region, target = self.goal.region, self.goal.target
        if region is not None and current.region is not None and current.region != region:
            msg = (
                f"reserved IP {current.address} is of region {current.region}, Droplet {target} of {region}: "
                f"it can never be assigned there; correct reserved_ip"
            )
            raise ConfigError(msg, kind="region")

    def _note(self, message: str, cause: TemporaryError | None) -> TemporaryError:
        """Keep what went wrong: the round's end names it."""
        self.cause = TemporaryError(
            message,
            kind=cause.kind if cause is not None else "wrong_owner",
            request_id=cause.request_id if cause is not None else None,
            retry_after_s=cause.retry_after_s if cause is not None else None,
        )
        return self.cause

    def _limit(self) -> Deadline:
        """Return the deadline; once the mandate has ended, the time that is left to see what became of the POST."""
        return self.aftermath or self.deadline

    async def _pause(self, attempt: int, asked_s: float = 0.0) -> None:
        """Wait between two polls, as long as the API asked at least.

        A mandate that ends meanwhile shortens the wait once; afterwards it no longer does.
        """
        mandate = Mandate() if self.mandate.is_revoked else self.mandate
        seconds = max(asked_s, min(_POLL_MOST_S, self.backoff.wait_s(attempt)) * self.api.poll_factor())
        await pause(min(seconds, self._limit().remaining_s()), clock=self.deadline.clock, mandate=mandate, wake=self.wake)

    def _call_s(self) -> float:
        return max(0.5, min(_CALL_S, self._limit().remaining_s()))
