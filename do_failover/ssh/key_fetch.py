"""What host keys the peers show, and the jump hosts on the way to them: each reached as the story reaches it.

Guarantees: a host that known_hosts doesn't vouch for is sent nothing but a key exchange. A jump host is logged in to only
when known_hosts has its key, whatever an ssh_config says: what is behind it can be looked at after that key was recorded.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import asyncssh

from do_failover.errors import PeerError
from do_failover.ssh.dial import find_addresses, open_socket
from do_failover.ssh.host_keys import HostKey, describe_key, write_entry
from do_failover.ssh.jump import JumpHosts, name_hop
from do_failover.ssh.login import Tunnel, Wanted, Way, find_way, log_in
from do_failover.ssh.sentences import Target, clean, describe_failure, say
from do_failover.ssh.trust import Trust, trust_nobody

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from do_failover.model import Peer
    from do_failover.ssh.host_keys import KnownHosts
    from do_failover.ssh.settings import SshSettings
    from do_failover.ssh.trust import Trusted

_AT_ONCE = 32
_ALGORITHMS = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "rsa-sha2-512", "rsa-sha2-256")


@dataclass(frozen=True, slots=True)
class Host:
    """A peer or a jump host. `name` and `port` are what known_hosts is asked for, by ssh_config; `jumps`: how many come before it."""

    label: str
    name: str
    port: int
    way: Way
    peer: Wanted
    jumps: int
    is_jump: bool = False

    @property
    def entry(self) -> str:
        """Return the name by which known_hosts has it."""
        return write_entry(self.name, self.port)


@dataclass(frozen=True, slots=True)
class Shown:
    """The key that a host showed. `is_vouched`: a host CA of known_hosts signed it, so the story accepts it."""

    key: HostKey
    address: str = ""
    is_vouched: bool = False


class _Noted:
    """A jump host as a tunnel that notes when the channel is open: what follows is SSH."""

    def __init__(self, tunnel: Tunnel, target: Target) -> None:
        self._tunnel, self._target = tunnel, target
        target.via, target.phase = tunnel.name, "channel"

    async def create_connection(
        self, session_factory: Callable[[], asyncssh.SSHTCPSession[bytes]], remote_host: str, remote_port: int
    ) -> tuple[asyncssh.SSHTCPChannel[bytes], asyncssh.SSHTCPSession[bytes]]:
        """Open a channel, as asyncssh asks for it."""
        made = await self._tunnel.create_connection(session_factory, remote_host, remote_port)
        self._target.phase = "login"
        return made


async def find_hosts(peers: Sequence[Peer], settings: SshSettings) -> tuple[list[Host], list[Host | PeerError]]:
    """Return the jump hosts, the nearest first and each once, and what each peer is by ssh_config. Connects to nobody."""
    jumps, turns = JumpHosts(settings), asyncio.Semaphore(_AT_ONCE)
    trusted = trust_nobody(settings)

    async def find(peer: Peer) -> tuple[Host, list[Host]] | PeerError:
        wanted = Wanted(peer.host, peer.host, peer.port, peer.user or settings.user)
        async with turns:
            try:
                way = await find_way(wanted, settings, trusted)
                chain = await jumps.find_chain(way, trusted)
            except PeerError as error:
                return error
        hops = [Host(name_hop(hop), hop.name, hop.port, hop, wanted, number, is_jump=True) for number, hop in enumerate(chain)]
        return Host(peer.host, way.name, way.port, way, wanted, len(chain)), hops

    found = await asyncio.gather(*map(find, peers))
    nearest: dict[str, Host] = {}
    for each in found:
        for hop in () if isinstance(each, PeerError) else each[1]:
            if hop.entry not in nearest or hop.jumps < nearest[hop.entry].jumps:
                nearest[hop.entry] = hop
    hosts = [each if isinstance(each, PeerError) else each[0] for each in found]
    return sorted(nearest.values(), key=lambda hop: hop.jumps), hosts


async def fetch_host_keys(hosts: Sequence[Host], settings: SshSettings, known: KnownHosts) -> list[Shown | PeerError]:
    """Return what each host shows, of a known type where there is one; each within connect_timeout_s, and as long for each jump host."""
    jumps, turns, trust = JumpHosts(settings), asyncio.Semaphore(_AT_ONCE), Trust(settings)

    async def fetch(host: Host) -> Shown | PeerError:
        try:
            async with turns:
                if not host.jumps and not known.has_any_authority(host.name, host.port):
                    return await _fetch(host, settings, known, None)
                return await _fetch_with_trust(host, settings, known, jumps, trust)
        except PeerError as error:
            return error

    try:
        return list(await asyncio.gather(*map(fetch, hosts)))
    finally:
        await jumps.close()


async def _fetch_with_trust(host: Host, settings: SshSettings, known: KnownHosts, jumps: JumpHosts, trust: Trust) -> Shown:
    """Log in to the jump hosts before it, as the story does: with our key, and checked against known_hosts."""
    try:
        trusted = trust.load()
    except PeerError as error:
        raise say(host.label, error.message, error.kind) from error
    way = await find_way(host.peer, settings, trusted)
    chain = await jumps.find_chain(way, trusted)
    way = replace(chain[host.jumps] if host.is_jump else way, label=host.label)
    tunnel = await jumps.open(way, chain[: host.jumps], trusted)
    shown = await _fetch(host, settings, known, tunnel)
    if not known.has_any_authority(host.name, host.port):
        return shown
    return replace(shown, is_vouched=await _is_accepted(way, settings, trusted, tunnel))


async def _is_accepted(way: Way, settings: SshSettings, trusted: Trusted, tunnel: Tunnel | None) -> bool:
    """Tell whether the story accepts the host's key: it comes as far as our own."""
    try:
        link = await log_in(way, settings, trusted, tunnel=tunnel)
    except PeerError as error:
        return error.kind == "refused"
    await link.close()
    return True


async def _fetch(host: Host, settings: SshSettings, known: KnownHosts, tunnel: Tunnel | None) -> Shown:
    way = host.way
    target = Target(host.label, way.host, way.port, "", settings.connect_timeout_s, way.name)
    types = [key.type for key in known.find(host.name, host.port)]
    first = [name for name in _ALGORITHMS if name in types or ("ssh-rsa" in types and name.startswith("rsa-"))]
    wanted: dict[str, Any] = {"server_host_key_algs": list(dict.fromkeys([*first, *_ALGORITHMS])), "config": None, "options": way.options}
    try:
        async with asyncio.timeout(settings.connect_timeout_s):
            if tunnel is None:
                key = await _fetch_directly(way, target, settings, wanted)
            else:
                through: Any = _Noted(tunnel, target)  # asyncssh wants a whole connection's type, and uses this much of it
                key = await asyncssh.get_server_host_key(way.host, way.port, tunnel=through, **wanted)
    except (TimeoutError, OSError, asyncssh.ChannelOpenError) as error:
        raise describe_failure(error, target, trust_nobody(settings)) from error
    except (ValueError, asyncssh.Error) as error:
        sentence = f"it shows no host key at port {way.port} ({clean(str(error))}): is its sshd running, and reached from here?"
        raise say(host.label, sentence, "unreachable") from error
    if key is None:
        raise say(host.label, "it shows no host key of a usual type", "unreachable")
    return Shown(describe_key(key), target.address or "")


async def _fetch_directly(way: Way, target: Target, settings: SshSettings, wanted: dict[str, Any]) -> asyncssh.SSHKey | None:
    options = way.options
    is_configured = settings.ssh_config is not None
    addresses = await find_addresses(way.host, way.port, options.family if is_configured else 0)
    target.phase = "tcp"
    target.address = str(addresses[0][1][0]) if addresses else None
    sock = await open_socket(addresses, settings.connect_timeout_s, options.local_addr if is_configured else None)
    target.address = str(sock.getpeername()[0])
    target.phase = "login"
    try:
        return await asyncssh.get_server_host_key(way.host, way.port, sock=sock, **wanted)
    finally:
        sock.close()
