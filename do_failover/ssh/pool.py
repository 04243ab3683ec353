"""PeerConnections: one connection a peer, opened once, kept open, reopened when it was cut."""

from __future__ import annotations

import asyncio
import contextlib
import resource
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from do_failover.errors import PeerError
from do_failover.peer_words import PeerCommand, frame_line, speaks_words, unwrap_answer
from do_failover.ssh.jump import JumpHosts
from do_failover.ssh.login import Link, Wanted, find_way, log_in
from do_failover.ssh.sentences import clean, say
from do_failover.ssh.session import NotStartedError, Runner
from do_failover.ssh.tcp_channel import send_from_peer
from do_failover.ssh.trust import Trust
from do_failover.ssh.turns import Turns

if TYPE_CHECKING:
    from types import TracebackType

    from do_failover.model import Peer
    from do_failover.ssh.settings import CommandResult, SshSettings

Key = tuple[str, int, str | None]


class PeerConnections:
    """Open connections to peers, to be used as an async context manager or ended by `close`.

    Guarantees: one connection and at most one login under way for each (host, port, user); at most
    `settings.concurrency` turns to log in at once (turns.py; a login's time-out starts when its turn comes, and when its
    jump hosts are connected to); one connection to each jump host; a failed login is forgotten, so the next caller tries anew; a
    failure of one peer touches no other. It belongs to one event loop.
    """

    def __init__(self, settings: SshSettings) -> None:
        """Nothing is read or opened yet; but this process may from now on open as many files as it can be allowed (RLIMIT_NOFILE)."""
        _allow_files()
        self._settings = settings
        self._trust = Trust(settings)
        self._jumps = JumpHosts(settings)
        self._turns = Turns(settings.concurrency)
        self._links: dict[Key, Link] = {}
        self._logins: dict[Key, asyncio.Task[Link]] = {}
        self._ending: set[asyncio.Task[Any]] = set()
        self._openings: set[asyncio.Task[Any]] = set()
        self._is_closed = False

    async def __aenter__(self) -> Self:
        """Return itself."""
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Close everything."""
        await self.close()

    async def connect(self, peer: Peer) -> None:
        """Open the peer's connection unless it is open. Raises PeerError.

        A caller that is cancelled does not cancel the login: others may wait for it, and it is bounded anyway.
        """
        await self.obtain(peer)

    async def run(self, peer: Peer, command: str, *, stdin: str | None = None, timeout_s: float | None = None) -> CommandResult:
        """Run a command line in the peer's login shell (or its forced command), connecting if needed.

        The command is sent once at most: a connection found dead *before* it was sent is reopened once, one that is cut
        afterwards is a PeerError("unreachable"). A nonzero exit is a result. `timeout_s` (default command_timeout_s)
        bounds the command; opening its channel may take connect_timeout_s more, and so may one new login. When its time
        is over, or stdout exceeds 64 KiB, or the caller is cancelled, sshd is told to send SIGTERM and the channel is
        closed; the connection stays. OpenSSH sends no signal to root's commands and forced ones: bound their own time.

        A PeerCommand's words stand on its stdin: where do-failover-peer is the forced command it reads those, and the
        result is what it answered; a shell's command doesn't look. No `stdin` then.
        """
        if isinstance(command, PeerCommand) and stdin is None:
            stdin = frame_line(_COLD, command.words)
        runner = Runner(peer.host, self._settings.connect_timeout_s)
        bound = self._settings.command_timeout_s if timeout_s is None else timeout_s
        for _ in range(2):
            link = await self.obtain(peer)
            try:
                result = await runner.run(link, command, (stdin or "").encode(), bound)
            except NotStartedError:
                await self._drop(peer, link)
            else:
                return _unwrap(peer, result)
        sentence = "its connections are cut as soon as they are open: its sshd or a firewall ends them"
        raise say(peer.host, sentence, "unreachable")

    async def probe_tcp(self, peer: Peer, address: str, port: int, data: bytes) -> bool:
        """Let the peer's sshd connect to an address by TCP, and send `data` there; connecting to the peer if needed.

        Tell whether somebody accepted within 2.5 s. Raises PeerError, also where its sshd doesn't permit it ("command").
        """
        link = await self.obtain(peer)
        return await send_from_peer(link, peer.host, (address, port), data, self._openings)

    def is_connected(self, peer: Peer) -> bool:
        """Tell whether its connection is open, as far as TCP and keepalive (45 s) have noticed."""
        link = self._links.get(key_of(peer))
        return link is not None and link.is_open

    async def obtain(self, peer: Peer) -> Link:
        """Return the peer's open connection, opened if needed; as `connect`. It belongs to the pool. Raises PeerError."""
        key = key_of(peer)
        link = self._links.get(key)
        if link is not None and link.is_open:
            return link
        if self._is_closed:
            raise say(peer.host, _CLOSED, "unreachable")
        attempt = self._logins.get(key)
        if attempt is None:
            attempt = self._logins[key] = asyncio.create_task(self._log_in(key, peer))
            attempt.add_done_callback(_look_at_outcome)
        await asyncio.wait([attempt])
        if attempt.cancelled():
            raise self._describe_cancelled(peer)
        error = attempt.exception()
        if isinstance(error, PeerError):
            raise PeerError(error.message, kind=error.kind) from error  # each waiter gets its own
        if error is not None:  # what a broken or hostile sshd can provoke in the library's parsers (I7)
            sentence = f"the SSH login failed in a way that has no name yet ({type(error).__name__}: {clean(str(error))})"
            raise say(peer.host, sentence, "unreachable") from error
        return attempt.result()

    def _describe_cancelled(self, peer: Peer) -> PeerError:
        return say(peer.host, _CLOSED if self._is_closed else _RELEASED, "unreachable")

    def release(self, peer: Peer, link: Link | None = None) -> None:
        """End the peer's connection or login, if there is one, without waiting for it. The next use connects anew.

        With `link` only that connection is ended, not one that has taken its place.
        """
        key = key_of(peer)
        if link is None and (login := self._logins.pop(key, None)) is not None:
            login.cancel()
            self._see_out(login)
        current = self._links.get(key)
        if current is not None and (link is None or link is current):
            del self._links[key]
            self._see_out(asyncio.create_task(current.close()))

    def _see_out(self, task: asyncio.Task[Any]) -> None:
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """End all logins and connections. Afterwards no task and no socket is left; a later use is a PeerError."""
        self._is_closed = True
        logins = list(self._logins.values())
        for login in logins:
            login.cancel()
        if ending := {*logins, *self._ending}:
            await asyncio.wait(ending)
        links = list(self._links.values())
        self._links.clear()
        await asyncio.gather(*(link.close() for link in links))
        await self._jumps.close()
        if self._openings:
            await asyncio.wait(set(self._openings))

    async def _log_in(self, key: Key, peer: Peer) -> Link:
        try:
            link = self._links[key] = await self._reach(peer)
            return link
        finally:
            if self._logins.get(key) is asyncio.current_task():
                del self._logins[key]

    async def _reach(self, peer: Peer) -> Link:
        """Log in, by way of the peer's jump hosts; where one turns out to be cut, once more. No turn is held while waiting for one."""
        async with self._turns.take() as turn:
            try:
                trusted = self._trust.load()
            except PeerError as error:
                raise say(peer.host, error.message, error.kind) from error
            wanted = Wanted(peer.host, peer.host, peer.port, peer.user or self._settings.user)
            way = await find_way(wanted, self._settings, trusted)
            chain = await self._jumps.find_chain(way, trusted)
            if not chain:
                return await log_in(way, self._settings, trusted, None, turn)
        for is_last in (False, True):
            jump = await self._jumps.open(way, chain, trusted)
            try:
                async with self._turns.take() as turn:
                    return await log_in(way, self._settings, trusted, jump, turn)
            except PeerError:
                if is_last or jump is None or jump.is_open:
                    raise
        raise AssertionError  # the second try returns or raises

    async def _drop(self, peer: Peer, link: Link) -> None:
        if self._links.get(key_of(peer)) is link:
            del self._links[key_of(peer)]
        await link.close()


_COLD = 1  # the number of the only line on a channel


def _unwrap(peer: Peer, result: CommandResult) -> CommandResult:
    """Return what do-failover-peer answered, where it is what ran. Raises PeerError where it answered nothing."""
    if not speaks_words(result.stdout):
        return result
    answer = unwrap_answer(result.stdout, _COLD)
    if answer is None:
        sentence = (
            "its key runs do-failover-peer only, which gave no answer: the command is none of its words, or it ended too early; "
            "look at that Droplet's log (journalctl -t do-failover-peer)"
        )
        raise say(peer.host, sentence, "command")
    return replace(result, stdout=answer)


_CLOSED = "not connected: the connections to the peers are being closed"
_RELEASED = "not connected: it was taken off the list of peers while it was logged in to"


def _allow_files() -> None:
    """Raise the soft limit, 1024 under systemd and in shells for the sake of select(2), which nobody here uses, to the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):  # macOS: more than the kernel's own bound
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _look_at_outcome(attempt: asyncio.Task[Link]) -> None:
    """Keep asyncio from printing the error of a login that all its callers have left."""
    if not attempt.cancelled():
        attempt.exception()


def key_of(peer: Peer) -> Key:
    """Return what makes a peer the same one: not its place in the list."""
    return (peer.host, peer.port, peer.user)
