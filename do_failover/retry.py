"""The one retry policy, and the only home of tenacity.

    what is raised              what happens
    TemporaryError              again after a wait that doubles from `first_s` to `most_s`, with jitter
    TemporaryError(retry_after) again after that time, when it still fits before the deadline
    anything else               at once to the caller

Guarantees: the deadline is never slept past; the wait ends early when `wake` fires; a revoked
mandate ends it at once with SupersededError; DeadlineError names the last cause. Nothing here
interrupts the call itself: the call bounds its own time.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import tenacity

from do_failover.errors import DeadlineError, TemporaryError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from do_failover.clock import Clock, Deadline
    from do_failover.mandate import Mandate

T = TypeVar("T")
_SLACK_S = 0.05  # a wait that was cut to what remains may by now be a moment longer than that


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait between tries: doubling, capped, each shortened by up to `jitter` of itself."""

    first_s: float = 0.25
    most_s: float = 4.0
    jitter: float = 0.25
    draw: Callable[[], float] = field(default=random.random, repr=False)

    def wait_s(self, attempt: int) -> float:
        """Return the wait after that attempt (counted from 1)."""
        whole: float = min(self.most_s, self.first_s * 2.0 ** min(attempt - 1, 30))
        return whole * (1.0 - self.jitter * self.draw())


@dataclass(slots=True)
class Attempts:
    """Counts the tries of one step, for the report."""

    count: int = 0
    last_error: TemporaryError | None = None


async def call_with_retries(  # noqa: PLR0913 - one policy, all of its knobs by name
    call: Callable[[], Awaitable[T]],
    *,
    deadline: Deadline,
    mandate: Mandate,
    backoff: Backoff,
    wake: asyncio.Event | None = None,
    attempts: Attempts | None = None,
) -> T:
    """Call until it succeeds, by the policy in the module's docstring."""
    tally = attempts if attempts is not None else Attempts()

    def choose_wait(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        named = error.retry_after_s if isinstance(error, TemporaryError) else None
        if named is not None:
            return named
        return min(backoff.wait_s(state.attempt_number), deadline.remaining_s())

    def is_too_late(state: tenacity.RetryCallState) -> bool:
        return deadline.is_over() or state.upcoming_sleep > deadline.remaining_s() + _SLACK_S

    async def sleep(seconds: float) -> None:
        await pause(seconds, clock=deadline.clock, mandate=mandate, wake=wake)
        mandate.check()

    retrying = tenacity.AsyncRetrying(
        sleep=sleep,
        wait=choose_wait,
        stop=is_too_late,
        retry=tenacity.retry_if_exception_type(TemporaryError),
        reraise=True,
    )
    try:
        async for attempt in retrying:
            with attempt:
                tally.count += 1
                return await call()
    except TemporaryError as error:
        tally.last_error = error
        msg = f"{_describe_end(error, deadline)} after {_times(tally.count)}; the last cause: {error.message}"
        raise DeadlineError(msg, request_id=error.request_id) from error
    msg = "unreachable: tenacity either returns or raises"
    raise AssertionError(msg)


async def pause(seconds: float, *, clock: Clock, mandate: Mandate, wake: asyncio.Event | None = None) -> None:
    """Wait that long, or until the mandate is revoked, or until `wake` fires (which is then cleared)."""
    waits: list[asyncio.Future[Any]] = [asyncio.ensure_future(clock.sleep(seconds)), asyncio.ensure_future(mandate.revoked())]
    if wake is not None:
        waits.append(asyncio.ensure_future(wake.wait()))
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
    if wake is not None:
        wake.clear()


def _describe_end(error: TemporaryError, deadline: Deadline) -> str:
    if error.retry_after_s is not None and error.retry_after_s > deadline.remaining_s() > 0:
        return f"the API asks to wait {error.retry_after_s:g} s, which is beyond the deadline: given up"
    return "the deadline passed"


def _times(count: int) -> str:
    return "1 try" if count == 1 else f"{count} tries"


async def finish_or_stop(tasks: Iterable[asyncio.Task[None]], *, deadline: Deadline, mandate: Mandate) -> bool:
    """Wait for all tasks; True when they ended by themselves, False when time or the mandate ended first.

    What is unfinished then is cancelled and waited for. An error of a task is the caller's.
    """
    tasks = list(tasks)
    work: asyncio.Future[Any] = asyncio.gather(*tasks)
    stops: list[asyncio.Future[Any]] = [
        asyncio.ensure_future(deadline.clock.sleep(deadline.remaining_s())),
        asyncio.ensure_future(mandate.revoked()),
    ]
    try:
        await asyncio.wait([work, *stops], return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
            return True
        return False
    finally:
        for waiting in (*tasks, *stops):
            waiting.cancel()
        await asyncio.gather(work, *tasks, *stops, return_exceptions=True)
