"""Builds the edges from the configuration. Everything that a run may not need is imported when it is needed."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

from do_failover import do_metadata, iproute, neigh, packets
from do_failover.clock import RealClock
from do_failover.config import expand_path
from do_failover.do_api.client import DigitalOceanApi
from do_failover.errors import FailoverError
from do_failover.peerlist import PeerList, parse_peers
from do_failover.request import Edges
from do_failover.threads import run_in_thread
from do_failover.token import TokenSource

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from do_failover.config import Config, FailoverConfig, PeersConfig
    from do_failover.model import Peer
    from do_failover.ssh import PeerConnections


def make_api(config: Config) -> DigitalOceanApi:
    """Return the API's client. No request is made; the token is read at the first one."""
    settings = config.digitalocean
    tokens = TokenSource(settings.token_file, os.environ)
    ca_file = str(expand_path(settings.ca_file)) if settings.ca_file is not None else None
    return DigitalOceanApi(api_url=settings.api_url, tokens=tokens, ca_file=ca_file)


def make_edges(config: Config, entry: FailoverConfig, api: DigitalOceanApi) -> Edges:
    """Return the real outside for one reserved IP."""
    family = ipaddress.ip_address(entry.reserved_ip).version
    return Edges(
        clock=RealClock(),
        api=api,
        read_identity=lambda: do_metadata.read_identity(config.digitalocean, family=family),
        open_link=lambda: RealLink(entry.interface),
        open_peers=lambda: LazyPeers(config.peers),
        is_on_link=lambda address: is_on_link(entry.interface, address),
    )


def read_peers(config: Config) -> PeerList:
    """Read the fan-out list. A list that can't be read is a nit: the IP moves all the same (I9)."""
    settings, text, nits = config.peers, "", []
    if settings.file is not None:
        try:
            path = expand_path(settings.file)
            if path.exists() and not path.is_file():
                raise IsADirectoryError(errno.EISDIR, "it is not a file")
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            nits.append(f"the fan-out list {settings.file} cannot be read ({reason}): its peers are not refreshed")
    found = parse_peers(text, str(settings.file), settings.hosts)
    if not found.peers:
        nits.append("the fan-out list is empty: no Droplet will be refreshed; name them in peers.file or peers.hosts")
    return PeerList(found.peers, (*nits, *found.nits))


async def is_on_link(interface: str, address: str) -> bool:
    """Tell whether an address lies in one of the interface's own prefixes, or is reached without a gateway."""
    wanted = ipaddress.ip_address(address)
    try:
        own = await iproute.read_addresses(interface)
        if any(wanted in prefix.network and prefix.network.num_addresses > 1 for prefix in own):
            return True
        route = neigh.parse_route(await iproute.read_route(wanted))
    except (FailoverError, ValueError):
        return False
    return route.is_on_link and route.device == interface


class RealLink:
    """One interface: frames out, and what the filters let in. Closes all of it at the end."""

    def __init__(self, interface: str) -> None:
        """Nothing is opened yet."""
        self._name = interface
        self._stack = ExitStack()
        self.lladdr = b""

    async def __aenter__(self) -> Self:
        """Open the interface. Raises ConfigError, RefusedError."""
        self.lladdr = packets.read_interface(self._name).lladdr
        self._sender = self._stack.enter_context(packets.LinkSender(self._name))
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the sockets."""
        self._stack.close()

    def send(self, frame: bytes) -> None:
        """Send one frame."""
        self._sender.send(frame)

    def listen(
        self,
        ethertype: int,
        program: Sequence[tuple[int, int, int, int]],
        note: Callable[[bytes], None],
        *,
        is_raw: bool = False,
    ) -> None:
        """Call `note` with each packet that the filter lets through, until the end."""
        listener = packets.PacketListener(ethertype, program, self._name, is_raw=is_raw)
        self._stack.enter_context(listener)
        listener.start(lambda packet: note(packet.data))


class LazyPeers:
    """Connections to the peers; asyncssh is imported beside the first API call, not before it."""

    def __init__(self, settings: PeersConfig) -> None:
        """Nothing is imported or opened yet."""
        self._settings = settings
        self._opening: asyncio.Task[PeerConnections] | None = None

    async def __aenter__(self) -> Self:
        """Open nothing yet."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connections."""
        if self._opening is None:
            return
        await asyncio.wait([self._opening])
        if not self._opening.cancelled() and self._opening.exception() is None:
            await self._opening.result().close()

    async def run(self, peer: Peer, command: str) -> str:
        """Run a command on a peer and return its standard output. Raises PeerError."""
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
        connections = await asyncio.shield(self._opening)
        return (await connections.run(peer, command)).stdout

    async def _open(self) -> PeerConnections:
        return await run_in_thread(lambda: _make_connections(self._settings))


def _make_connections(settings: PeersConfig) -> PeerConnections:
    from do_failover import ssh

    def expand(name: str | None) -> Any:  # noqa: ANN401 - str where one was given
        return str(expand_path(name)) if name is not None else None

    return ssh.PeerConnections(
        ssh.SshSettings(
            user=settings.user,
            identity_file=expand(settings.identity_file),
            known_hosts=expand(settings.known_hosts),
            ssh_config=expand(settings.ssh_config),
            connect_timeout_s=settings.connect_timeout_s,
            command_timeout_s=settings.command_timeout_s,
            concurrency=settings.concurrency,
        )
    )
