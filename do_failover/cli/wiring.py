"""Builds the edges from the configuration. Everything that a run may not need is imported when it is needed."""

from __future__ import annotations

import asyncio
import ipaddress
import os
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from do_failover import discovery, do_metadata, iproute, neigh, packets
from do_failover.clock import RealClock
from do_failover.config import expand_path
from do_failover.do_api.client import DigitalOceanApi
from do_failover.errors import FailoverError
from do_failover.fanout import FoundPeers, find_peers, recall_kept_identity
from do_failover.request import Edges
from do_failover.threads import run_in_thread
from do_failover.token import TokenSource

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from do_failover.config import Config, FailoverConfig, PeersConfig
    from do_failover.discovery import Discovery
    from do_failover.model import Identity, Peer
    from do_failover.ssh import PeerConnections, SshSettings
    from do_failover.tree.shell import TreeShell

_PATIENCE_S = 5.0


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
        open_peers=lambda: make_shell(config.peers),
        is_on_link=lambda address: is_on_link(entry.interface, address),
        probe_port=config.peers.probe_port,
    )


def read_peers(config: Config, me: Identity | None = None) -> FoundPeers:
    """Return the peers by the list and the kept discovery; asks nobody. What can't be read is a nit: the IP moves all the same (I9)."""
    return find_peers(config, me)


def read_peers_by_hand(config: Config) -> FoundPeers:
    """Do as read_peers; where the tagged Droplets were never asked for, ask the API now: a person has these seconds."""
    if discovery.is_kept(config):
        return read_peers(config)
    nits, fresh = [], None
    try:
        fresh = asyncio.run(ask_for_droplets(config, _PATIENCE_S))
        discovery.save_discovery(discovery.locate_discovery(config), fresh)
    except FailoverError as error:
        nits.append(f"the Droplets of tag {config.peers.tag}: {error.message}")
    found = find_peers(config, fresh=fresh)
    return replace(found, nits=(*nits, *found.nits))


async def ask_for_droplets(config: Config, timeout_s: float = discovery.TIMEOUT_S) -> Discovery:
    """Ask the API for the Droplets of the configured tag, by a client of its own. Raises what the API raises. Keeps nothing."""
    me = await read_identity(config)
    api = make_api(config)
    try:
        return await discovery.refresh_discovery(api, config.peers.tag or "", me=me, at=RealClock().wall(), timeout_s=timeout_s)
    finally:
        api.close()


async def read_identity(config: Config) -> Identity:
    """Ask the metadata service who this Droplet is; where it doesn't answer, what the configuration and the kept discovery say."""
    try:
        return await do_metadata.read_identity(config.digitalocean)
    except FailoverError:
        return recall_kept_identity(config)


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
        return (await (await self._reach()).run(peer, command)).stdout

    async def probe_tcp(self, peer: Peer, address: str, port: int, data: bytes) -> bool:
        """Let a peer connect by TCP; see PeerConnections.probe_tcp."""
        return await (await self._reach()).probe_tcp(peer, address, port, data)

    async def _reach(self) -> PeerConnections:
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
        return await asyncio.shield(self._opening)

    async def _open(self) -> PeerConnections:
        return await run_in_thread(lambda: _make_connections(self._settings))


def make_shell(settings: PeersConfig) -> LazyPeers | TreeShell:
    """Return the way to the peers that is configured. Nothing is opened yet."""
    return make_tree(settings) if settings.is_tree else LazyPeers(settings)


def make_tree(settings: PeersConfig) -> TreeShell:
    """Return the way through ClusterShell's gateways. Nothing is started yet."""
    from do_failover.tree.settings import TreeSettings
    from do_failover.tree.shell import TreeShell

    def expand(name: str | None) -> str | None:
        return str(expand_path(name).absolute()) if name is not None else None

    return TreeShell(
        TreeSettings(
            topology=expand(settings.topology),
            user=settings.user,
            gateway_user=settings.gateway_user or settings.user,
            identity_file=expand(settings.identity_file),
            known_hosts=expand(settings.known_hosts) or settings.known_hosts,
            ssh_config=expand(settings.ssh_config),
            connect_timeout_s=settings.connect_timeout_s,
            command_timeout_s=settings.command_timeout_s,
            fanout=settings.concurrency,
        )
    )


def _make_connections(settings: PeersConfig) -> PeerConnections:
    from do_failover import ssh

    return ssh.PeerConnections(make_ssh_settings(settings))


def make_ssh_settings(settings: PeersConfig) -> SshSettings:
    """Return what the configuration says about SSH."""
    from do_failover import ssh

    def expand(name: str | None) -> Any:  # noqa: ANN401 - str where one was given
        return str(expand_path(name)) if name is not None else None

    return ssh.SshSettings(
        user=settings.user,
        identity_file=expand(settings.identity_file),
        known_hosts=expand(settings.known_hosts),
        ssh_config=expand(settings.ssh_config),
        connect_timeout_s=settings.connect_timeout_s,
        command_timeout_s=settings.command_timeout_s,
        concurrency=settings.concurrency,
    )
