"""One command on an open connection: its output bounded, its time bounded, its end told to the peer."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import asyncssh

from do_failover.ssh.sentences import clean, say
from do_failover.ssh.settings import CommandResult

if TYPE_CHECKING:
    from collections.abc import Callable

    from do_failover.errors import PeerError
    from do_failover.ssh.login import Link

MOST_STDOUT = 64 * 1024
MOST_STDERR = 2 * 1024
# What a peer may send before we have read it: bounds what a flood costs.
_WINDOW = 128 * 1024


class NotStartedError(Exception):
    """The connection turned out to be dead before the command was sent: another one may be tried."""


class Session(asyncssh.SSHClientSession[bytes]):
    """Collects what a command writes."""

    def __init__(self, on_open: Callable[[], None]) -> None:
        """`on_open` is called when the channel is open, just before the command is sent."""
        self._on_open = on_open
        self.channel: asyncssh.SSHClientChannel[bytes] | None = None
        self.ended = asyncio.Event()
        self.stdout = bytearray()
        self.stderr = bytearray()
        self.exit_status: int | None = None
        self.signal: str | None = None
        self.error: Exception | None = None
        self.is_closed = False

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        """Note the channel."""
        self.channel = chan
        self._on_open()

    def data_received(self, data: bytes, datatype: int | None) -> None:
        """Keep all of stdout up to its bound, and the end of stderr."""
        if datatype == asyncssh.EXTENDED_DATA_STDERR:
            self.stderr += data
            del self.stderr[:-MOST_STDERR]
            return
        self.stdout += data
        if len(self.stdout) > MOST_STDOUT:
            self.ended.set()

    def exit_status_received(self, status: int) -> None:
        """Note how it ended."""
        self.exit_status = status

    def exit_signal_received(self, signal: str, core_dumped: bool, msg: str, lang: str) -> None:  # noqa: ARG002, FBT001
        """Note which signal ended it."""
        self.signal = signal

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the channel is closed, or the whole connection lost."""
        self.error = exc
        self.is_closed = True
        self.ended.set()

    def end(self) -> None:
        """Tell the remote command to end (TERM), and close the channel without waiting for it.

        OpenSSH passes the signal on to an unprivileged user's command only, not to root's and not to a forced one
        (session_signal_req in its session.c): those see a closed stdin and stdout, and have to end by themselves.
        """
        if self.channel is not None and not self.is_closed:
            with contextlib.suppress(OSError):  # it is half closed already
                self.channel.terminate()
            self.channel.abort()


class Runner:
    """Runs commands on one peer's link."""

    def __init__(self, label: str, open_timeout_s: float) -> None:
        """`label` names the peer in sentences; `open_timeout_s` bounds the opening of a channel."""
        self._label = label
        self._open_timeout_s = open_timeout_s

    async def run(self, link: Link, command: str, stdin: bytes, timeout_s: float) -> CommandResult:
        """Return the result. The command is sent once at most.

        Raises NotStartedError when the link was dead before the command was sent, PeerError otherwise.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._open_timeout_s) as limit:
                session = Session(lambda: limit.reschedule(loop.time() + timeout_s))
                await self._exchange(session, link, command, stdin)
        except TimeoutError:
            if session.channel is None:
                raise NotStartedError from None
            sentence = f"{clean(command)!r} was not done within {timeout_s:g} s; it was told to end"
            raise say(self._label, sentence, "command") from None
        return self._conclude(session, link, command)

    async def _exchange(self, session: Session, link: Link, command: str, stdin: bytes) -> None:
        try:
            channel, _ = await link.connection.create_session(
                lambda: session, command, encoding=None, window=_WINDOW, env=None, send_env=None, request_pty=False
            )
            with contextlib.suppress(OSError):  # the command may be over before it reads anything
                channel.write(stdin)
                channel.write_eof()
            await session.ended.wait()
        except asyncio.CancelledError:
            if session.channel is None:
                link.connection.abort()  # nothing else can take back the channel that may still be opened
            raise
        except (OSError, ValueError, asyncssh.Error) as error:
            raise self._describe_refusal(error, session, link, command) from error
        finally:
            session.end()

    def _describe_refusal(self, error: Exception, session: Session, link: Link, command: str) -> NotStartedError | PeerError:
        if session.channel is None and not link.is_open:
            return NotStartedError()
        if not link.is_open:
            return self._cut(command, error)
        sentence = f"its sshd does not start {clean(command)!r} ({clean(str(error))}); check MaxSessions and the key's options"
        return say(self._label, sentence, "command")

    def _conclude(self, session: Session, link: Link, command: str) -> CommandResult:
        if len(session.stdout) > MOST_STDOUT:
            sentence = f"{clean(command)!r} wrote more than {MOST_STDOUT // 1024} KiB; it was told to end"
            raise say(self._label, sentence, "command")
        is_unfinished = session.exit_status is None and session.signal is None
        if session.error is not None or (is_unfinished and not link.is_open):
            raise self._cut(command, session.error)
        return CommandResult(
            stdout=session.stdout.decode(errors="replace"),
            exit_status=session.exit_status,
            stderr=session.stderr.decode(errors="replace"),
            signal=session.signal,
        )

    def _cut(self, command: str, error: Exception | None) -> PeerError:
        reason = f" ({clean(str(error))})" if error is not None else ""
        sentence = (
            f"the connection was cut{reason} while {clean(command)!r} ran: whether it did its work is unknown; "
            f"the next command connects again"
        )
        return say(self._label, sentence, "unreachable")
