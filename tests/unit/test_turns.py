"""Turns to log in, in virtual time: when a time-out starts, whom the dead hold up, and that no turn is lost."""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest

from do_failover.ssh.turns import PATIENCE, SILENT_S, Turns
from tests.virtual_time import run_virtually

TIMEOUT_S = 3.0
SLOW_S = TIMEOUT_S / 2


class Crowd:
    """Peers that are logged in to, as login.py does it: silent for a while, then at work for a while."""

    def __init__(self, count: int) -> None:
        self.turns = Turns(count)
        self.at_work = self.most_at_work = 0
        self.done: dict[str, float] = {}
        self.late: dict[str, float] = {}
        self._began = asyncio.get_running_loop().time()

    async def log_in(self, name: str, silent_s: float, work_s: float) -> None:
        async with self.turns.take() as turn:
            await turn.hold(SILENT_S)
            try:
                async with asyncio.timeout(TIMEOUT_S) as limit:
                    await asyncio.sleep(silent_s)
                    await turn.hold(SLOW_S, limit)
                    self.at_work += 1
                    self.most_at_work = max(self.most_at_work, self.at_work)
                    try:
                        await asyncio.sleep(work_s)
                    finally:
                        self.at_work -= 1
            except TimeoutError:
                self.late[name] = self.now()
            else:
                turn.note_success()
                self.done[name] = self.now()

    def now(self) -> float:
        return asyncio.get_running_loop().time() - self._began


def test_the_time_out_starts_with_the_turn() -> None:
    async def story() -> None:
        crowd = Crowd(2)
        await asyncio.gather(*(crowd.log_in(str(number), 0.0, 0.9) for number in range(40)))
        assert (len(crowd.done), crowd.late, crowd.most_at_work) == (40, {}, 2)
        assert crowd.now() == pytest.approx(20 * 0.9)  # six times the time-out

    run_virtually(story())


def test_the_dead_hold_up_the_living_for_a_moment_each() -> None:
    async def story() -> None:
        crowd = Crowd(10)
        dead = [crowd.log_in(f"dead{number}", 1e6, 0.0) for number in range(100)]
        await asyncio.gather(*dead, *(crowd.log_in(f"app{number}", 0.001, 0.02) for number in range(900)))
        living = [at for name, at in crowd.done.items()]
        assert len(living) == 900
        assert max(living) == pytest.approx(10 * SILENT_S + 90 * 0.021)
        assert len(crowd.late) == 100
        assert min(crowd.late.values()) == pytest.approx(TIMEOUT_S)

    run_virtually(story())


def test_one_that_speaks_late_gets_the_next_turn_and_loses_no_time_by_waiting_for_it() -> None:
    async def story() -> None:
        crowd = Crowd(1)
        late = asyncio.create_task(crowd.log_in("late", SILENT_S + 0.1, 2.5))  # 2.9 of 3 s; it waits 0.7 s
        await asyncio.sleep(0)
        others = [asyncio.create_task(crowd.log_in(f"app{number}", 0.2, 0.6)) for number in range(5)]
        await asyncio.wait([late])
        assert crowd.late == {}
        # app0 has the turn when it speaks, and app1 only after SLOW_S of the late one's work
        assert crowd.done == pytest.approx({"app0": SILENT_S + 0.8, "app1": SILENT_S + 0.8 + SLOW_S + 0.8, "late": SILENT_S + 0.8 + 2.5})
        await asyncio.gather(*others)
        assert len(crowd.done) == 6

    run_virtually(story())


def test_no_time_runs_for_one_that_waits_for_another_turn() -> None:
    async def story() -> None:
        crowd = Crowd(1)
        late = asyncio.create_task(crowd.log_in("late", SILENT_S + 0.1, 0.5))
        await asyncio.sleep(SILENT_S + 0.05)
        async with crowd.turns.take(1e6):
            await asyncio.sleep(10 * TIMEOUT_S)
        await late
        assert (crowd.late, crowd.done) == ({}, {"late": pytest.approx(10 * TIMEOUT_S + SILENT_S + 0.05 + 0.5)})

    run_virtually(story())


def test_where_all_logins_are_slow_each_keeps_its_turn() -> None:
    async def story() -> None:
        crowd = Crowd(4)
        await asyncio.gather(*(crowd.log_in(str(number), 0.5, 1.5) for number in range(200)))
        settled = Crowd(4)
        settled.turns = crowd.turns
        await asyncio.gather(*(settled.log_in(str(number), 0.5, 1.5) for number in range(40)))
        assert (crowd.late, settled.late, settled.most_at_work) == ({}, {}, 4)
        assert crowd.turns.be_patient(SLOW_S) == pytest.approx(PATIENCE * 2.0, rel=0.1)

    run_virtually(story())


@pytest.mark.parametrize("seed", range(20))
def test_no_turn_is_lost_whatever_ends_a_login(seed: int) -> None:
    async def story() -> None:
        draw, crowd = random.Random(seed), Crowd(3)  # noqa: S311 - a test's dice
        silences, works = (0.0, 0.1, 0.4, 1e6), (0.0, 0.3, 1.2)
        tasks = [
            asyncio.create_task(crowd.log_in(str(number), draw.choice(silences), draw.choice(works)), name=str(number))
            for number in range(60)
        ]
        while pending := [task for task in tasks if not task.done()]:
            await asyncio.sleep(draw.choice((0.0, 0.05, 0.3)))
            if draw.random() < 0.3:
                draw.choice(pending).cancel()
        assert crowd.most_at_work >= 3
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(3):
                await stack.enter_async_context(crowd.turns.take(1e6))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1.0):
                    await crowd.turns.wait()
        async with asyncio.timeout(1.0):
            await crowd.turns.wait()  # who gave up waiting took none with it

    run_virtually(story())
