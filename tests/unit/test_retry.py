from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from do_failover.clock import Deadline
from do_failover.errors import DeadlineError, PermanentError, SupersededError, TemporaryError
from do_failover.mandate import Mandate
from do_failover.retry import Attempts, Backoff, call_with_retries, finish_or_stop, pause
from tests.virtual_time import VirtualClock, run_virtually

STEADY = Backoff(first_s=1.0, most_s=8.0, jitter=0.0)


class Script:
    """Raises or returns what it was given, one a call; the last one for ever."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)
        self.times: list[float] = []

    async def __call__(self) -> object:
        self.times.append(round(asyncio.get_running_loop().time() - 1000.0, 3))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def call(
    script: Script, deadline_s: float, mandate: Mandate | None = None, attempts: Attempts | None = None, wake_at: float | None = None
) -> object:
    async def scene() -> object:
        wake = asyncio.Event()
        if wake_at is not None:
            asyncio.get_running_loop().call_later(wake_at, wake.set)
        return await call_with_retries(
            script,
            deadline=Deadline.after(VirtualClock(), deadline_s),
            mandate=mandate or Mandate(),
            backoff=STEADY,
            wake=wake,
            attempts=attempts,
        )

    return run_virtually(scene())


def test_waits_double_up_to_the_cap() -> None:
    script = Script(*[TemporaryError("busy")] * 6, "done")
    assert call(script, 60) == "done"
    assert script.times == [0, 1, 3, 7, 15, 23, 31]


def test_a_named_time_is_waited_instead() -> None:
    script = Script(TemporaryError("limit", retry_after_s=5), "done")
    assert call(script, 60) == "done"
    assert script.times == [0, 5]


def test_a_named_time_beyond_the_deadline_ends_it_at_once() -> None:
    script = Script(TemporaryError("API rate limit exceeded", retry_after_s=500))
    with pytest.raises(DeadlineError, match=r"after 1 try; the last cause: API rate limit exceeded"):
        call(script, 60)
    assert script.times == [0]


def test_the_last_try_is_at_the_deadline_and_the_error_names_the_cause() -> None:
    script = Script(TemporaryError("first"), TemporaryError("second", request_id="r2"))
    attempts = Attempts()
    with pytest.raises(DeadlineError, match="after 5 tries; the last cause: second") as caught:
        call(script, 10, attempts=attempts)
    assert script.times == [0, 1, 3, 7, 10]
    assert caught.value.request_id == "r2"
    assert attempts.count == 5


def test_a_permanent_error_is_not_tried_again() -> None:
    script = Script(PermanentError("no"))
    with pytest.raises(PermanentError, match="no"):
        call(script, 60)
    assert script.times == [0]


def test_a_wake_up_ends_the_wait_early() -> None:
    script = Script(*[TemporaryError("busy")] * 3, "done")
    assert call(script, 60, wake_at=3.5) == "done"
    assert script.times == [0, 1, 3, 3.5]


def test_a_revoked_mandate_ends_the_wait_at_once() -> None:
    mandate = Mandate()
    script = Script(TemporaryError("busy"))

    async def scene() -> float:
        asyncio.get_running_loop().call_later(1.25, mandate.revoke, "superseded by BACKUP")
        with pytest.raises(SupersededError, match="superseded by BACKUP"):
            await call_with_retries(script, deadline=Deadline.after(VirtualClock(), 60), mandate=mandate, backoff=STEADY)
        return asyncio.get_running_loop().time()

    assert run_virtually(scene()) == 1001.25
    assert script.times == [0, 1]


@given(st.floats(0, 1), st.integers(1, 100))
def test_jitter_only_shortens(draw: float, attempt: int) -> None:
    backoff = Backoff(first_s=0.5, most_s=4.0, jitter=0.5, draw=lambda: draw)
    full = min(4.0, 0.5 * 2.0 ** min(attempt - 1, 30))
    assert full / 2 <= backoff.wait_s(attempt) <= full


def test_finish_or_stop() -> None:
    async def scene(work_s: float, revoke_s: float | None, deadline_s: float) -> tuple[bool, float]:
        clock, mandate = VirtualClock(), Mandate()
        if revoke_s is not None:
            asyncio.get_running_loop().call_later(revoke_s, mandate.revoke, "stop")
        tasks = [asyncio.create_task(clock.sleep(work_s)), asyncio.create_task(clock.sleep(0.5))]
        is_whole = await finish_or_stop(tasks, deadline=Deadline.after(clock, deadline_s), mandate=mandate)
        assert all(task.done() for task in tasks)
        return is_whole, asyncio.get_running_loop().time() - 1000.0

    assert run_virtually(scene(2, None, 10)) == (True, 2)
    assert run_virtually(scene(20, None, 10)) == (False, 10)
    assert run_virtually(scene(20, 1, 10)) == (False, 1)


def test_pause_leaves_no_task() -> None:
    async def scene() -> int:
        await pause(1, clock=VirtualClock(), mandate=Mandate(), wake=asyncio.Event())
        return len(asyncio.all_tasks())

    assert run_virtually(scene()) == 1


def test_a_task_that_fails_takes_its_siblings_with_it() -> None:
    async def scene() -> bool:
        async def fail() -> None:
            raise PermanentError("no")

        clock = VirtualClock()
        sibling = asyncio.create_task(clock.sleep(100))
        with pytest.raises(PermanentError):
            await finish_or_stop([asyncio.create_task(fail()), sibling], deadline=Deadline.after(clock, 1000), mandate=Mandate())
        return sibling.cancelled()

    assert run_virtually(scene())
