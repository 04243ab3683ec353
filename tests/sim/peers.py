"""The peers: each keeps a path to the reserved IP that only its ping to the owner's public address renews.

Their answers are what Linux would print (refresh.py reads them); an echo request arrives at the Droplet
where the peer's path leads, and the witness of a story that runs there sees it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import struct
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from do_failover.errors import PeerError
from do_failover.model import Peer
from tests.sim.cloud import IP

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from random import Random

    from tests.sim.cloud import Cloud
    from tests.sim.node import Node

ANCHOR = "10.17.0.6"
_PINGED = re.compile(r"-W 1 ([0-9.]+) >")
_PATTERN = re.compile(r"-p ([0-9a-f]+)'")
_ROUTES = re.compile(r"route get ([0-9.]+)")


@dataclass
class Host:
    """One peer."""

    peer: Peer
    path: int | None  # the Droplet to which its packets for the reserved IP go
    is_up: bool = True
    up_since: float = 0.0
    takes_s: float = 0.01


@dataclass
class Fleet:
    """All peers, and who listens where."""

    rng: Random
    cloud: Cloud
    hosts: dict[str, Host]
    listeners: dict[int, list[Callable[[bytes], None]]] = field(default_factory=dict)

    def peers(self) -> tuple[Peer, ...]:
        return tuple(host.peer for host in self.hosts.values())

    @contextlib.asynccontextmanager
    async def open_from(self, node: Node) -> AsyncIterator[Shell]:
        yield Shell(self, node)

    def is_reached(self, address: str) -> int | None:
        """Return the Droplet that answers at this public address."""
        for droplet in self.cloud.droplets.values():
            if droplet.public == address and droplet.answers and droplet.status == "active":
                return droplet.id
        return None


@dataclass
class Shell:
    """The connections of one story."""

    fleet: Fleet
    node: Node

    async def run(self, peer: Peer, command: str) -> str:
        host, rng = self.fleet.hosts[peer.host], self.fleet.rng
        if not host.is_up or self.node.is_dark:
            await asyncio.sleep(0.5 + rng.random())
            msg = f"{peer.host} can't be reached"
            raise PeerError(msg, kind="unreachable")
        await asyncio.sleep(host.takes_s * (0.5 + rng.random()))
        if not host.is_up or self.node.is_dark:
            msg = f"{peer.host}: the connection was cut"
            raise PeerError(msg, kind="unreachable")
        if "route get" in command:
            return "".join(_write_route(host, address) for address in dict.fromkeys(_ROUTES.findall(command)))
        if "neigh show" in command:
            return json.dumps([{"dst": command.rsplit(" ", 1)[1], "dev": "eth0", "lladdr": "02:00:00:00:00:0c", "state": ["REACHABLE"]}])
        return self._ping(host, command)

    def _ping(self, host: Host, command: str) -> str:
        pinged = _PINGED.findall(command)
        if "do-failover owner" in command:
            statuses = [int(self.fleet.is_reached(address) is None) for address in pinged]
            return f"@do-failover owner\n{statuses[0]}\n@do-failover us\n{statuses[1]}\n"
        answer = "@do-failover kind\nmarked\n"
        for address in pinged:
            if address != IP:
                reached = self.fleet.is_reached(address)
                if reached is not None and reached == self.fleet.cloud.owner:
                    host.path = reached
                answer += f"@do-failover public\n{int(reached is None)}\n"
        pattern = _PATTERN.search(command)
        if pattern is not None and host.path is not None:
            packet = echo_request(f"198.18.1.{host.peer.number + 1}", ANCHOR, bytes.fromhex(pattern[1]))
            for note in list(self.fleet.listeners.get(host.path, [])):
                note(packet)
        is_answered = host.path is not None and self.fleet.cloud.droplets[host.path].answers
        return f"{answer}@do-failover reserved\n{int(not is_answered)}\n"


def _write_route(host: Host, address: str) -> str:
    gateway = {"gateway": "198.18.0.1"} if address == IP else {}
    route = {"dst": address, **gateway, "dev": "eth0", "prefsrc": f"198.18.1.{host.peer.number + 1}"}
    return f"@do-failover route {address}\n{json.dumps([route])}\n"


def echo_request(source: str, destination: str, pattern: bytes) -> bytes:
    """Build what iputils' ping sends: 8 octets of ICMP, 16 of time stamp, then the pattern over and over."""
    data = bytes(16) + pattern + pattern + pattern[:8]
    icmp = struct.pack("!BBHHH", 8, 0, 0, 7, 1) + data
    total = 20 + len(icmp)
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, total, 1, 0x4000, 64, 1, 0, IPv4Address(source).packed, IPv4Address(destination).packed)
    return head + icmp
