"""One armed channel: bytes in from a peer that may lie, time that passes, and callers that leave. In virtual time, without SSH."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from do_failover.errors import PeerError
from do_failover.ssh.armed_channel import ArmedChannel, LostChannelError
from tests.virtual_time import run_virtually


class Wire:
    """Stands for asyncssh's channel: keeps what is written, and can be broken."""

    def get_extra_info(self, _: str) -> None:
        return None

    def __init__(self) -> None:
        self.written: list[str] = []
        self.aborts = 0
        self.is_broken = False

    def write(self, data: bytes) -> None:
        if self.is_broken:
            raise BrokenPipeError("Channel not open for sending")
        self.written.append(data.decode())

    def abort(self) -> None:
        self.aborts += 1


class Bench:
    """A greeted channel whose commands may take 4 s."""

    def __init__(self) -> None:
        self.ends = 0
        self.wire: Any = Wire()
        self.channel = ArmedChannel("app1", 4.0, on_end=self._count)
        self.nonce = self.channel._nonce
        self.channel.connection_made(self.wire)
        self.channel.data_received(f"{self.nonce} hello\n".encode(), None)
        assert self.channel.greeted.done()

    def _count(self) -> None:
        self.ends += 1

    def answer(self, number: int, output: str = "fine") -> None:
        self.channel.data_received(f"{self.nonce} {number} 0\n{output}\n{self.nonce}.\n".encode(), None)

    def start(self, *commands: str) -> list[asyncio.Task[str]]:
        return [asyncio.create_task(self.channel.run(command)) for command in commands]


async def turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_commands_get_their_own_answers_in_any_order() -> None:
    async def story() -> None:
        bench = Bench()
        first, second, third = bench.start("a", "b b", "c")
        await turn()
        assert bench.wire.written == ["1 a\n", "2 b b\n", "3 c\n"]
        bench.answer(2, "two\n\n")
        bench.answer(1, "")
        assert await second == "two\n"
        assert await first == ""
        bench.channel.data_received(f"{bench.nonce} 3 1\n\n{bench.nonce}.\n".encode(), None)
        with pytest.raises(LostChannelError):  # too long for the channel: another way is tried
            await third
        assert bench.ends == bench.wire.aborts == 0
        assert bench.channel._waiting == {}

    run_virtually(story())


def test_a_caller_that_leaves_takes_nothing_along() -> None:
    async def story() -> None:
        bench = Bench()
        (gone,) = bench.start("ping")
        await turn()
        gone.cancel()
        (next_one,) = bench.start("neighbour")
        await turn()
        bench.answer(2, "entry")
        bench.answer(1, "late")
        assert await next_one == "entry\n"
        assert gone.cancelled()
        assert bench.ends == 0

    run_virtually(story())


def test_a_slow_command_is_bounded_and_the_channel_stays() -> None:
    async def story() -> None:
        bench, loop = Bench(), asyncio.get_running_loop()
        started = loop.time()
        (slow,) = bench.start("sleep 9")
        await asyncio.sleep(1.7)
        assert bench.wire.written == ["1 sleep 9\n", "2 :\n"]  # asked whether it is there
        bench.answer(2, "")
        with pytest.raises(PeerError, match=r"^app1: 'sleep 9' was not done within 4 s; it has to end by itself$") as caught:
            await slow
        assert caught.value.kind == "command"
        assert loop.time() - started == pytest.approx(4.0)
        (fast,) = bench.start("true")
        await turn()
        bench.answer(3, "")
        assert await fast == ""
        bench.answer(1, "at last")
        await asyncio.sleep(60)
        assert (bench.ends, bench.channel._waiting) == (0, {})

    run_virtually(story())


def test_a_loop_without_a_sign_of_life_is_given_up_before_the_commands_time_is_over() -> None:
    async def story() -> None:
        bench, loop = Bench(), asyncio.get_running_loop()
        complaints: list[object] = []
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        started = loop.time()
        waiting = bench.start("a", "b")
        await asyncio.wait(waiting)
        assert [type(task.exception()) for task in waiting] == [LostChannelError] * 2
        assert loop.time() - started == pytest.approx(2.8)  # 1.6 s of patience, 1.2 s to answer
        assert bench.channel.is_link_dead
        assert bench.channel.ended.result() == "no sign of life for 1.2 s"
        assert (bench.ends, bench.wire.aborts, bench.wire.written) == (1, 1, ["1 a\n", "2 b\n", "3 :\n"])
        gc.collect()
        await turn()
        assert complaints == []  # of a future that nobody looked at

    run_virtually(story())


def test_any_answer_is_a_sign_of_life() -> None:
    async def story() -> None:
        bench = Bench()
        slow, other = bench.start("a", "b")
        await asyncio.sleep(2)
        bench.answer(2)
        await asyncio.sleep(1.5)
        bench.answer(1)
        assert [await slow, await other] == ["fine\n"] * 2
        assert not bench.channel.is_link_dead

    run_virtually(story())


def test_a_quick_command_sets_no_timer_that_outlives_it() -> None:
    async def story() -> None:
        bench = Bench()
        (quick,) = bench.start("a")
        await turn()
        bench.answer(1)
        await quick
        timers = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
        assert [timer for timer in timers if not timer.cancelled()] == []
        assert bench.wire.written == ["1 a\n"]

    run_virtually(story())


@pytest.mark.parametrize("command", ["a\nb", "a\0b"])
def test_what_is_not_one_line_goes_another_way(command: str) -> None:
    async def story() -> None:
        bench = Bench()
        with pytest.raises(LostChannelError):
            await bench.channel.run(command)
        assert bench.wire.written == []

    run_virtually(story())


def test_a_channel_found_broken_while_a_command_is_sent() -> None:
    async def story() -> None:
        bench = Bench()
        (waiting,) = bench.start("a")
        await turn()
        bench.wire.is_broken = True
        for _ in range(2):
            with pytest.raises(LostChannelError):
                await bench.channel.run("b")
        with pytest.raises(LostChannelError):
            await waiting
        assert bench.ends == 1

    run_virtually(story())


def test_a_loop_that_answers_nothing_for_long_is_given_up() -> None:
    async def story() -> None:
        bench = Bench()
        waiting = bench.start(*["hang"] * 256)
        await turn()
        with pytest.raises(LostChannelError):
            await bench.channel.run("one more")
        await asyncio.wait(waiting)
        assert bench.channel.ended.result() == "256 commands are unanswered"

    run_virtually(story())


@pytest.mark.parametrize(("error", "status", "reason"), [(None, 0, "it ended with status 0"), (OSError("cut\x1b"), None, "cut")])
def test_the_end_of_the_channel(error: Exception | None, status: int | None, reason: str) -> None:
    async def story() -> None:
        bench = Bench()
        waiting = bench.start("a", "b")
        await turn()
        if status is not None:
            bench.channel.exit_status_received(status)
        bench.channel.connection_lost(error)
        assert bench.ends == 1  # at once, not when somebody looks
        assert bench.channel.ended.result() == reason
        await asyncio.wait(waiting)
        assert [type(task.exception()) for task in waiting] == [LostChannelError] * 2
        assert bench.wire.aborts == 0  # it is over already

    run_virtually(story())


HOSTILE = {
    "garbage": b"\x1b]0;owned\x07\xff\xfe",
    "megabytes": b"a" * 1_000_000,
    "long answer": b"NONCE 1 0\n" + b"a" * 1_000_000,
    "foreign": b"NONCE 7 0\nx\nNONCE.\n",
    "twice": b"NONCE 1 0\nx\nNONCE.\nNONCE 1 0\nx\nNONCE.\n",
    "after the answer": b"NONCE 2 0\nx\nNONCE.\n\x1b[2Jrm -rf",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_peer_that_lies_loses_its_channel(name: str) -> None:
    async def story() -> None:
        bench = Bench()
        waiting = bench.start("a", "b", "c")
        await turn()
        data = HOSTILE[name].replace(b"NONCE", bench.nonce.encode())
        for start in range(0, len(data), 8192):
            bench.channel.data_received(data[start : start + 8192], None)
        await asyncio.wait(waiting)
        errors = [error for task in waiting if (error := task.exception()) is not None]
        assert len(errors) >= 2
        for error in errors:
            assert isinstance(error, PeerError)
            assert error.kind == "command"
            assert error.message.startswith("app1: its answer is not to be trusted: ")
            assert error.message.isprintable()
        assert (bench.ends, bench.wire.aborts) == (1, 1)
        with pytest.raises(LostChannelError):  # the next command is started anew
            await bench.channel.run("d")

    run_virtually(story())


def test_what_the_loop_says_on_stderr_is_nothing() -> None:
    async def story() -> None:
        bench = Bench()
        bench.channel.data_received(b"sh: warning\n" * 10_000, 1)
        (fine,) = bench.start("a")
        await turn()
        bench.answer(1)
        assert await fine == "fine\n"

    run_virtually(story())


@given(st.lists(st.one_of(st.binary(max_size=100), st.integers(0, 6)), max_size=12))
def test_whatever_a_peer_sends_every_command_ends(sent: list[bytes | int]) -> None:
    async def story() -> None:
        bench = Bench()
        waiting = bench.start("a", "b", "c")
        await turn()
        for piece in sent:
            if isinstance(piece, int):
                bench.answer(piece)
            else:
                bench.channel.data_received(piece, None)
        done, _ = await asyncio.wait(waiting)
        assert len(done) == 3
        for task in done:
            with contextlib.suppress(PeerError, LostChannelError):
                assert await task == "fine\n"
        assert bench.ends <= 1

    run_virtually(story())
