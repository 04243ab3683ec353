"""From a peer to an authenticated connection, in two steps: where it is (ssh_config), then name, TCP, host key, user's key.

Each step has connect_timeout_s; what it waits for its turn (turns.py) does not count. A host behind a jump host is
reached by a channel of that one's connection (jump.py).
ProxyCommand is refused: it would start a program of this machine for each peer, at 3 a.m., by a line in a file that
nobody here has read; what it does beside connecting can't be known.
"""

from __future__ import annotations

import asyncio
import getpass
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import asyncssh

from do_failover.ssh.dial import call_in_thread, find_addresses, open_socket, wait_for_word
from do_failover.ssh.sentences import Target, clean, describe_failure, say
from do_failover.ssh.turns import SILENT_S

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from do_failover.ssh.settings import SshSettings
    from do_failover.ssh.trust import Trusted
    from do_failover.ssh.turns import Turn


class Owner(asyncssh.SSHClient):
    """What asyncssh tells about one connection."""

    def __init__(self, target: Target) -> None:
        """Start as open: the object is only used once the login is over."""
        self._target = target
        self.is_open = True
        self.is_shared = False  # a jump host's: much may be on its way there

    def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
        """Note that there is a way to the host: what follows is SSH."""
        self._target.phase = "login"
        conn.pause_writing = lambda: self._end_unread(conn)  # type: ignore[method-assign]  # asyncssh's own does nothing

    def _end_unread(self, conn: asyncssh.SSHClientConnection) -> None:
        """End a connection on which 64 KiB lie unread: an sshd that asks without end, and reads no answer, would fill our memory."""
        if not self.is_shared:
            self.is_open = False
            conn.abort()

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:  # noqa: ARG002
        """Note the fingerprint of a key that known_hosts does not have, and refuse it."""
        self._target.fingerprint = key.get_fingerprint()
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncssh's signature
        """Note that it is over."""
        self.is_open = False


@dataclass(frozen=True, slots=True)
class Link:
    """One open connection to a peer."""

    connection: asyncssh.SSHClientConnection
    owner: Owner

    @property
    def is_open(self) -> bool:
        """Tell whether it was not lost, as far as TCP and keepalive have noticed."""
        return self.owner.is_open

    def abort(self) -> None:
        """End it at once, without waiting for it."""
        self.owner.is_open = False
        self.connection.abort()

    async def close(self) -> None:
        """End it at once; returns when its socket is closed."""
        self.abort()
        await self.connection.wait_closed()


class Tunnel(Protocol):
    """Opens TCP connections from elsewhere: from a jump host."""

    @property
    def name(self) -> str:
        """Return the jump host's name, for sentences."""
        ...

    async def create_connection(
        self, session_factory: Callable[[], asyncssh.SSHTCPSession[bytes]], remote_host: str, remote_port: int
    ) -> tuple[asyncssh.SSHTCPChannel[bytes], asyncssh.SSHTCPSession[bytes]]:
        """Open one, as asyncssh asks for it."""
        ...


@dataclass(frozen=True, slots=True)
class Wanted:
    """A host as it is named in the fan-out list or in a ProxyJump; None: whatever ssh_config says. `label` begins sentences."""

    label: str
    host: str
    port: int | None
    user: str | None


@dataclass(frozen=True, slots=True)
class Way:
    """Where a login goes, as the fan-out list and ssh_config say it together.

    `name` is what known_hosts is asked for; `jump` is ssh_config's ProxyJump, as written there.
    """

    label: str
    host: str
    port: int
    user: str
    name: str
    options: asyncssh.SSHClientConnectionOptions
    jump: str | None = None


async def find_way(wanted: Wanted, settings: SshSettings, trusted: Trusted) -> Way:
    """Apply ssh_config, where there is one. Raises PeerError, within connect_timeout_s."""
    port = wanted.port or asyncssh.DEFAULT_PORT
    if trusted.shared is not None:
        return Way(wanted.label, wanted.host, port, wanted.user or getpass.getuser(), wanted.host, trusted.shared)
    target = Target(wanted.label, wanted.host, port, wanted.user or "", settings.connect_timeout_s)
    try:
        async with asyncio.timeout(settings.connect_timeout_s):
            return await _apply_ssh_config(wanted, settings.ssh_config or "", trusted)
    except (OSError, ValueError, asyncssh.Error) as error:
        raise describe_failure(error, target, trusted) from error


async def log_in(way: Way, settings: SshSettings, trusted: Trusted, tunnel: Tunnel | None = None, turn: Turn | None = None) -> Link:
    """Return an open connection to a verified host. Raises PeerError within connect_timeout_s, beside what it waits for its turn."""
    target = Target(way.label, way.host, way.port, way.user, settings.connect_timeout_s, way.name)
    if turn is not None:
        await turn.hold(SILENT_S)
    try:
        async with asyncio.timeout(settings.connect_timeout_s) as limit:
            go = _Go(turn, limit, settings.connect_timeout_s)
            link = await (_dial(way, target, trusted, go) if tunnel is None else _tunnel(way, target, trusted, go, tunnel))
    except (OSError, ValueError, asyncssh.Error) as error:
        raise describe_failure(error, target, trusted) from error
    if turn is not None:
        turn.note_success()
    return link


@dataclass(frozen=True, slots=True)
class _Go:
    """The costly part of a login begins: the host has spoken."""

    turn: Turn | None
    limit: asyncio.Timeout
    timeout_s: float

    async def wait(self) -> None:
        """Return when it is this login's turn, still or again."""
        if self.turn is not None:
            await self.turn.hold(self.timeout_s / 2, self.limit)


async def _dial(way: Way, target: Target, trusted: Trusted, go: _Go) -> Link:
    options = way.options
    is_configured = options is not trusted.shared
    addresses = await find_addresses(way.host, way.port, options.family if is_configured else 0)
    target.phase = "tcp"
    target.address = str(addresses[0][1][0]) if addresses else None
    sock = await open_socket(addresses, target.timeout_s, options.local_addr if is_configured else None)
    target.phase = "login"
    try:
        target.address = str(sock.getpeername()[0])
        await wait_for_word(sock)
        await go.wait()
        return await _authenticate(way, target, trusted, sock=sock)
    except BaseException:
        sock.close()  # a no-op where asyncssh has closed it
        raise


@dataclass(frozen=True, slots=True)
class _PacedTunnel:
    """The tunnel, and what a channel has to wait for: what is opened slowly may have lost its turn."""

    tunnel: Tunnel
    go: _Go

    @property
    def name(self) -> str:
        """Return the jump host's name."""
        return self.tunnel.name

    async def create_connection(
        self, session_factory: Callable[[], asyncssh.SSHTCPSession[bytes]], remote_host: str, remote_port: int
    ) -> tuple[asyncssh.SSHTCPChannel[bytes], asyncssh.SSHTCPSession[bytes]]:
        """Open one, and wait for the turn."""
        opened = await self.tunnel.create_connection(session_factory, remote_host, remote_port)
        try:
            await self.go.wait()
        except BaseException:
            opened[0].abort()  # asyncssh doesn't know of it yet
            raise
        return opened


async def _tunnel(way: Way, target: Target, trusted: Trusted, go: _Go, tunnel: Tunnel) -> Link:
    target.via, target.phase = tunnel.name, "channel"
    return await _authenticate(way, target, trusted, tunnel=_PacedTunnel(tunnel, go))


async def _authenticate(
    way: Way, target: Target, trusted: Trusted, *, sock: socket.socket | None = None, tunnel: Tunnel | None = None
) -> Link:
    owner = Owner(target)
    connection = await asyncssh.connect(
        way.host,
        way.port,
        sock=sock,
        tunnel=tunnel,  # never a name: asyncssh would open that jump without our known_hosts
        config=None,
        options=way.options,
        client_factory=lambda: owner,
        server_host_key_algs=trusted.order_algorithms(way.name, target.address or "", way.port),
        host_key_alias=way.name,  # the name that known_hosts is asked for, beside the address
        username=way.user,
        proxy_command=None,
    )
    return Link(connection, owner)


async def _apply_ssh_config(wanted: Wanted, path: str, trusted: Trusted) -> Way:
    """Read HostName, Port, User, HostKeyAlias, IdentityFile, ProxyJump ...

    What the fan-out list says wins; but port 22 is its default, so there ssh_config's Port counts.
    """
    said: dict[str, Any] = {"host": wanted.host}
    if wanted.port is not None and wanted.port != asyncssh.DEFAULT_PORT:
        said["port"] = wanted.port
    if wanted.user:
        said["username"] = wanted.user

    def read() -> asyncssh.SSHClientConnectionOptions:
        options = asyncssh.SSHClientConnectionOptions(config=[Path(path).expanduser()], **trusted.arguments, **said)
        if options.config.has_match_final():  # asyncssh reads it again when it connects: too late for HostName and ProxyJump
            options.update(host=options.host, reload=True, canonical=False, final=True)
        return options

    try:
        options = await call_in_thread(read)
    except (OSError, ValueError, asyncssh.Error) as error:
        reason = clean((error.strerror if isinstance(error, OSError) else None) or str(error))
        sentence = f"ssh_config {path} cannot be used ({reason}): no peer is reached; see peers.ssh_config"
        raise say(wanted.label, sentence, "unreachable") from error
    if options.proxy_command is not None and not options.tunnel:
        sentence = (
            f"ssh_config {path} sends it through ProxyCommand, which is never run: use ProxyJump for it, list an address that "
            f"this Droplet reaches directly, or set `ProxyCommand none`"
        )
        raise say(wanted.label, sentence, "unreachable")
    jump = options.tunnel if isinstance(options.tunnel, str) and options.tunnel else None
    return Way(wanted.label, options.host, options.port, options.username, options.host_key_alias or options.host, options, jump)
