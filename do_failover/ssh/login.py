"""From a peer to an authenticated connection: name, TCP, host key, user's key, all under one time-out."""

from __future__ import annotations

import asyncio
import getpass
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncssh

from do_failover.ssh.dial import call_in_thread, find_addresses, open_socket
from do_failover.ssh.sentences import Target, clean, describe_failure, say

if TYPE_CHECKING:
    import socket

    from do_failover.model import Peer
    from do_failover.ssh.settings import SshSettings
    from do_failover.ssh.trust import Trusted


class Owner(asyncssh.SSHClient):
    """What asyncssh tells about one connection."""

    def __init__(self, target: Target) -> None:
        """Start as open: the object is only used once the login is over."""
        self._target = target
        self.is_open = True

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


async def log_in(peer: Peer, settings: SshSettings, trusted: Trusted) -> Link:
    """Return an open connection to a verified host. Raises PeerError within connect_timeout_s."""
    user = peer.user or settings.user
    target = Target(peer.host, peer.host, peer.port, user or "", settings.connect_timeout_s)
    try:
        async with asyncio.timeout(settings.connect_timeout_s):
            return await _log_in(peer, settings, trusted, target)
    except (OSError, ValueError, asyncssh.Error) as error:
        raise describe_failure(error, target, trusted) from error


async def _log_in(peer: Peer, settings: SshSettings, trusted: Trusted, target: Target) -> Link:
    options = trusted.shared
    family, local = 0, None
    target.name = peer.host
    if options is None:
        options = await _apply_ssh_config(peer, settings.ssh_config or "", trusted, target)
        family, local = options.family, options.local_addr
    elif not target.user:
        target.user = getpass.getuser()
    addresses = await find_addresses(target.host, target.port, family)
    target.phase = "tcp"
    target.address = str(addresses[0][1][0]) if addresses else None
    sock = await open_socket(addresses, settings.connect_timeout_s, local)
    target.address = str(sock.getpeername()[0])
    target.phase = "login"
    algorithms = trusted.order_algorithms(target.name, target.address, target.port)
    return await _authenticate(sock, options, target, algorithms)


async def _authenticate(
    sock: socket.socket, options: asyncssh.SSHClientConnectionOptions, target: Target, algorithms: tuple[str, ...]
) -> Link:
    owner = Owner(target)
    try:
        connection = await asyncssh.run_client(
            sock,
            config=None,
            options=options,
            client_factory=lambda: owner,
            server_host_key_algs=algorithms,
            host_key_alias=target.name,  # the name that known_hosts is asked for, beside the address
            port=target.port,
            username=target.user,
            tunnel=None,  # never a jump that would be opened without our known_hosts
            proxy_command=None,
        )
    except BaseException:
        sock.close()  # a no-op where asyncssh has closed it
        raise
    return Link(connection, owner)


async def _apply_ssh_config(peer: Peer, path: str, trusted: Trusted, target: Target) -> asyncssh.SSHClientConnectionOptions:
    """Read HostName, Port, User, HostKeyAlias, IdentityFile ... and refuse a jump.

    Port 22 in the fan-out list is its default, so ssh_config's Port wins over it; any other wins over ssh_config.
    """
    wanted: dict[str, Any] = {"host": peer.host}
    if peer.port != asyncssh.DEFAULT_PORT:
        wanted["port"] = peer.port
    if target.user:
        wanted["username"] = target.user

    def read() -> asyncssh.SSHClientConnectionOptions:
        return asyncssh.SSHClientConnectionOptions(config=[Path(path).expanduser()], **trusted.arguments, **wanted)

    try:
        options = await call_in_thread(read)
    except (OSError, ValueError, asyncssh.Error) as error:
        reason = clean((error.strerror if isinstance(error, OSError) else None) or str(error))
        sentence = f"ssh_config {path} cannot be used ({reason}): no peer is reached; see peers.ssh_config"
        raise say(peer.host, sentence, "unreachable") from error
    if options.tunnel is not None or options.proxy_command is not None:
        sentence = (
            f"ssh_config {path} sends it through ProxyJump or ProxyCommand, which is not supported: list an address "
            f"that this Droplet reaches directly, or set `ProxyJump none` for it"
        )
        raise say(peer.host, sentence, "unreachable")
    target.host, target.port, target.user = options.host, options.port, options.username
    target.name = options.host_key_alias or options.host
    return options
