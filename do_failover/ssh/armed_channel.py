"""One channel on which the remote loop runs: commands out, answers in, several under way at once.

A command costs one write, one future and two timers; no task. Nothing here waits for the end of the channel: who has a
command under way then gets LostChannelError, and may send it again by another way, for it was a ping or a read.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Any

import asyncssh

from do_failover.errors import PeerError
from do_failover.peer_words import NOTHING, PeerCommand, frame_line
from do_failover.ssh.armed_loop import AnswerReader, HostileAnswerError, make_loop_command, make_nonce
from do_failover.ssh.sentences import clean, say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from do_failover.ssh.login import Link

# Frames are shorter than 4 KiB: this bounds what a flood costs.
_WINDOW = 16 * 1024
# A command's row stays until its answer comes, though its caller may have gone.
_MOST_UNANSWERED = 256
# A loop that has been silent that long is asked whether it is there: a peer that was cut off without a word should
# not cost a failover the whole command_timeout_s. Both as shares of it: a thousand peers on two cores answer within 2 s,
# and asking each of them once more would cost as much as the first time.
_PATIENCE, _PATIENCE_MOST_S, _LIFE = 0.4, 2.0, 0.3


class LostChannelError(Exception):
    """The channel ended before the answer was there, or the answer doesn't fit it: another way may be tried."""


def trim(output: str) -> str:
    """Return output with one line end at its end, if it has any text: what is left of it in a shell's `$(...)`."""
    text = output.rstrip("\n")
    return text and f"{text}\n"


class ArmedChannel(asyncssh.SSHClientSession[bytes]):
    """The session of one remote loop. `ended` is done when it is over; its result is a part of a sentence.

    `is_link_dead` tells that nothing came back over the connection, though nobody closed it.
    """

    def __init__(self, label: str, timeout_s: float, *, on_end: Callable[[], None]) -> None:
        """`timeout_s` bounds each command; `on_end` is called once, as soon as the channel is over."""
        loop = asyncio.get_running_loop()
        self._label, self._timeout_s, self._on_end = label, timeout_s, on_end
        self._nonce = make_nonce()
        self._reader = AnswerReader(self._nonce)
        self._channel: asyncssh.SSHClientChannel[bytes] | None = None
        self._waiting: dict[int, asyncio.Future[bytes | None]] = {}
        self._last_number = 0
        self._probe: asyncio.TimerHandle | None = None
        self._exit_status: int | None = None
        self.is_link_dead = False
        self.greeted: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[str] = loop.create_future()

    async def open(self, link: Link, timeout_s: float) -> None:
        """Start the loop and wait for its greeting.

        Raises PeerError: kind "unreachable" where the link died, "command" where the peer runs no loop.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._start(link)
                outcomes: list[asyncio.Future[Any]] = [self.greeted, self.ended]
                await asyncio.wait(outcomes, return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            if self._channel is None:
                sentence = f"no answer on its open connection within {timeout_s:g} s: it was cut without a word"
                raise say(self._label, sentence, "unreachable") from None
            self.end("silent")
            reason = f"no greeting within {timeout_s:g} s{self._quote_noise()}"
            raise self._refuse(reason) from None
        except asyncio.CancelledError:
            self.end("cancelled")
            raise
        if not self.greeted.done():
            if not link.is_open:
                sentence = f"the connection was cut while the loop was started ({self.ended.result()})"
                raise say(self._label, sentence, "unreachable")
            raise self._refuse(self.ended.result())

    @property
    def speaks_words(self) -> bool:
        """Tell whether do-failover-peer is at the other end: its key runs nothing else."""
        return self._reader.speaks_words

    async def run(self, command: str) -> str:
        """Return what the command wrote. Raises PeerError("command") when it takes too long, LostChannelError.

        do-failover-peer gets the words of a PeerCommand; another command is none for it.
        """
        answer = self._send(command)
        loop = asyncio.get_running_loop()
        patience = loop.call_later(min(_PATIENCE_MOST_S, self._timeout_s * _PATIENCE), self._ask_for_life, answer)
        try:
            async with asyncio.timeout(self._timeout_s):
                output = await answer
        except TimeoutError:
            sentence = f"{clean(command)!r} was not done within {self._timeout_s:g} s; it has to end by itself"
            raise say(self._label, sentence, "command") from None
        finally:
            patience.cancel()
        if output is None:
            raise LostChannelError
        return trim(output.decode(errors="replace"))

    def end(self, reason: str, error: PeerError | None = None) -> None:
        """End the channel now; the connection stays. Whoever waits gets the error, or else LostChannelError."""
        if self.ended.done():
            return
        self.ended.set_result(reason)
        if self._probe is not None:
            self._probe.cancel()
        if self._channel is not None:
            self._channel.abort()
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(LostChannelError() if error is None else PeerError(error.message, kind=error.kind))
        self._waiting.clear()
        self._on_end()

    async def _start(self, link: Link) -> None:
        command = make_loop_command(self._nonce)
        try:
            await link.connection.create_session(
                lambda: self, command, encoding=None, window=_WINDOW, env=None, send_env=None, request_pty=False
            )
        except asyncio.CancelledError:
            if self._channel is None:
                link.abort()  # nothing else can take back the channel that may still be opened
            raise
        except (OSError, ValueError, asyncssh.Error) as error:
            if not link.is_open:
                sentence = f"the connection was cut while the loop was started ({clean(str(error))})"
                raise say(self._label, sentence, "unreachable") from error
            self.end("refused")
            reason = f"its sshd does not start it: {clean(str(error))}"
            raise self._refuse(reason) from error

    def _refuse(self, reason: str) -> PeerError:
        sentence = (
            f"it does not run the loop that waits for commands ({reason}), so each command is started anew there, which "
            f"takes longer; check its user's shell and the key's forced command"
        )
        return say(self._label, sentence, "command")

    def _send(self, command: str) -> asyncio.Future[bytes | None]:
        if self.ended.done() or self._channel is None or "\n" in command or "\0" in command:
            raise LostChannelError
        line = command.words if self.speaks_words and isinstance(command, PeerCommand) else str(command)
        if len(self._waiting) >= _MOST_UNANSWERED:
            self.end(f"{_MOST_UNANSWERED} commands are unanswered")
            raise LostChannelError
        self._last_number = number = self._last_number + 1
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            with _in_one_segment(self._channel):
                self._channel.write(frame_line(number, line).encode())
        except OSError as error:
            answer.cancel()
            self.end(clean(str(error)))
            raise LostChannelError from error
        return answer

    def _ask_for_life(self, answer: asyncio.Future[bytes | None]) -> None:
        """Have the loop run nothing, beside a command that takes long."""
        if answer.done() or self._probe is not None:
            return
        with contextlib.suppress(LostChannelError):
            self._send(NOTHING).cancel()
            self._probe = asyncio.get_running_loop().call_later(self._timeout_s * _LIFE, self._give_up)

    def _give_up(self) -> None:
        self.is_link_dead = True
        self.end(f"no sign of life for {self._timeout_s * _LIFE:g} s")

    # -- what asyncssh tells

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        """Note the channel."""
        self._channel = chan

    def data_received(self, data: bytes, datatype: int | None) -> None:
        """Hand each answer to who waits for it."""
        if datatype is not None:
            return  # the loop's stderr: nothing in it is for us
        try:
            answers = self._reader.feed(data)
        except HostileAnswerError as error:
            self._distrust(str(error))
            return
        if self._probe is not None and answers:
            self._probe.cancel()
            self._probe = None
        if self._reader.is_greeted and not self.greeted.done():
            self.greeted.set_result(None)
        for number, output in answers:
            waiting = self._waiting.pop(number, None)
            if waiting is None:
                self._distrust("it answered what it was not asked")
                return
            if not waiting.done():
                waiting.set_result(output)

    def exit_status_received(self, status: int) -> None:
        """Note how the loop ended."""
        self._exit_status = status

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the channel is over, or the whole connection."""
        self._channel = None
        if exc is not None:
            self.end(clean(str(exc)))
            return
        status = "the loop ended" if self._exit_status is None else f"it ended with status {self._exit_status}"
        self.end(f"{status}{self._quote_noise()}")

    def _quote_noise(self) -> str:
        said = clean(self._reader.noise.decode(errors="replace"))
        return said and f", and said {said!r}"

    def _distrust(self, reason: str) -> None:
        sentence = f"its answer is not to be trusted: {reason}; look at that Droplet, and at the shell of its user"
        self.end(reason, say(self._label, sentence, "command"))


_CORK = getattr(socket, "TCP_CORK", None)


@contextlib.contextmanager
def _in_one_segment(channel: asyncssh.SSHClientChannel[bytes]) -> Iterator[None]:
    """Hold back TCP until all of a line is written: asyncssh sends an ignored packet before each, and two would wake the peer twice."""
    door = channel.get_extra_info("socket")  # none behind a jump host
    if door is None or _CORK is None:
        yield
        return
    with contextlib.suppress(OSError):
        door.setsockopt(socket.IPPROTO_TCP, _CORK, 1)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            door.setsockopt(socket.IPPROTO_TCP, _CORK, 0)
