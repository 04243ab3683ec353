"""A whole story in virtual time: a scripted API, peers that answer as Linux would, and a link that remembers frames."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import struct
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any, Self

from do_failover.assign import Contest
from do_failover.config import FailoverConfig
from do_failover.errors import FailoverError, PeerError
from do_failover.failover import run_failover
from do_failover.mandate import Mandate
from do_failover.model import (
    Action,
    ActionStatus,
    Droplet,
    FailoverReport,
    Identity,
    NotifyEvent,
    NotifyType,
    Peer,
    Refusal,
    ReservedIp,
    VrrpState,
)
from do_failover.request import ALL_STEPS, Edges, Request
from do_failover.retry import Backoff
from do_failover.rounds import run_rounds
from tests.virtual_time import VirtualClock, run_virtually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

IP, PUBLIC, ANCHOR, OLD, ME = "203.0.113.47", "198.18.0.12", "10.17.0.6", 1, 2
LLADDR = bytes.fromhex("02000000000c")
MASTER = NotifyEvent(NotifyType.INSTANCE, "VI_1", VrrpState.MASTER, 150)


@dataclass
class Region:
    """The simulated outside. A peer's path to the reserved IP leads to the old owner until it pings `PUBLIC`."""

    owner: int | None = OLD
    action_s: float = 1.0
    works_from: float = 0.0  # before that (virtual seconds) the API answers nothing useful
    api_error: FailoverError | None = None
    is_stubborn: frozenset[str] = frozenset()  # peers whose path never heals
    on_link: frozenset[str] = frozenset()
    busybox: frozenset[str] = frozenset()
    peer_errors: dict[str, PeerError] = field(default_factory=dict)
    slow_peers: dict[str, float] = field(default_factory=dict)
    answers_pings: bool = True
    identity: Identity = field(default_factory=lambda: Identity(ME, "nyc3", "lb2", PUBLIC, None, ANCHOR))
    stolen_at: float | None = None
    posts: list[tuple[float, int]] = field(default_factory=list)
    frames: list[bytes] = field(default_factory=list)
    frame_times: list[float] = field(default_factory=list)
    commands: list[tuple[float, str, str]] = field(default_factory=list)
    healed: set[str] = field(default_factory=set)
    notes: list[tuple[int, bool, Callable[[bytes], None]]] = field(default_factory=list)
    open_links: int = 0
    open_shells: int = 0
    link_error: FailoverError | None = None
    send_error: FailoverError | None = None
    fails_from: float = 1e18  # from then on (virtual seconds) the API answers nothing useful
    droplet_region: str = "nyc3"
    public_shown: str | None = None
    entries: dict[str, list[str]] = field(default_factory=dict)  # the lladdr that a peer shows, one a look; the last for ever
    nud: str = "REACHABLE"
    calls: int = 0
    is_owner_visible: bool = True
    owner_status: str | None = "active"
    silent: frozenset[str] = frozenset()  # addresses that answer nobody
    newest_action_id: int | None = None  # None: our own last one
    route_sources: dict[str, str] = field(default_factory=dict)
    moves: list[tuple[float, int]] = field(default_factory=list)
    lladdr = LLADDR

    # -- the API

    def now(self) -> float:
        return asyncio.get_running_loop().time() - 1000.0

    async def _call(self) -> None:
        self.calls += 1
        await asyncio.sleep(0.05)
        for at, droplet in [move for move in self.moves if move[0] <= self.now()]:
            self.owner = droplet
            self.moves.remove((at, droplet))
        if self.stolen_at is not None and self.now() >= self.stolen_at:
            self.owner, self.stolen_at = OLD, None
        if not self.works_from <= self.now() < self.fails_from and self.api_error is not None:
            raise self.api_error

    async def read_reserved_ip(self, address: str, timeout_s: float) -> ReservedIp:
        await self._call()
        public = {OLD: "198.18.0.11", ME: PUBLIC}.get(self.owner or 0) if self.public_shown is None else self.public_shown
        return ReservedIp(IP, "nyc3", self.owner, self.is_owner_visible, bool(self.moves), public, self.owner_status)

    async def read_newest_action(self, address: str, timeout_s: float) -> Action | None:
        await self._call()
        newest = len(self.posts) if self.newest_action_id is None else self.newest_action_id
        return Action(newest, ActionStatus.IN_PROGRESS if self.moves else ActionStatus.COMPLETED)

    async def explain_refusal(self, address: str, droplet_id: int, timeout_s: float) -> Refusal:
        return Refusal(None, await self.read_reserved_ip(address, timeout_s))

    def count_calls(self) -> int:
        return self.calls

    def poll_factor(self) -> float:
        return 1.0

    async def read_droplet(self, droplet_id: int, timeout_s: float) -> Droplet:
        await self._call()
        return Droplet(droplet_id, f"lb{droplet_id}", self.droplet_region, ())

    async def post_assign(self, address: str, droplet_id: int, timeout_s: float) -> Action:
        await self._call()
        self.posts.append((self.now(), droplet_id))
        self.moves.append((self.now() + self.action_s, droplet_id))
        return Action(len(self.posts), ActionStatus.IN_PROGRESS)

    async def read_action(self, address: str, action_id: int, timeout_s: float) -> Action:
        await self._call()
        return Action(action_id, ActionStatus.IN_PROGRESS if self.moves else ActionStatus.COMPLETED)

    # -- the link

    async def __aenter__(self) -> Self:
        if self.link_error is not None:
            raise self.link_error
        self.open_links += 1
        return self

    async def __aexit__(self, *_: object) -> None:
        self.open_links -= 1
        self.notes.clear()

    def send(self, frame: bytes) -> None:
        assert self.owner == ME, "a frame left a Droplet that is not the owner"
        if self.send_error is not None:
            raise self.send_error
        self.frames.append(frame)
        self.frame_times.append(self.now())

    def listen(self, ethertype: int, program: Any, note: Callable[[bytes], None], *, is_raw: bool = False) -> None:
        self.notes.append((ethertype, is_raw, note))

    # -- the peers

    async def run(self, peer: Peer, command: str) -> str:
        self.commands.append((self.now(), peer.host, command))
        await asyncio.sleep(self.slow_peers.get(peer.host, 0.02))
        error = self.peer_errors.get(peer.host)
        if error is not None:
            raise error
        if "route get" in command:
            return "".join(f"@do-failover route {address}\n{self._route(peer, address)}\n" for address in _find_routes(command))
        if "neigh show" in command:
            address = command.rsplit(" ", 1)[1]
            lladdr = self.entries.get(peer.host, ["02:00:00:00:00:0c"])
            shown = lladdr.pop(0) if len(lladdr) > 1 else lladdr[0]
            return json.dumps([{"dst": address, "dev": "eth0", "lladdr": shown, "state": [self.nud]}])
        if "@do-failover owner" in command:
            owner, us = re.findall(r"-W 1 ([0-9.]+)", command)
            return "".join(f"@do-failover {name}\n{int(at in self.silent)}\n" for name, at in (("owner", owner), ("us", us)))
        return self._ping(peer, command)

    def _route(self, peer: Peer, address: str) -> str:
        has_gateway = address == IP and peer.host not in self.on_link
        gateway = {"gateway": "198.18.0.1"} if has_gateway else {}
        return json.dumps(
            [{"dst": address, **gateway, "dev": "eth0", "prefsrc": self.route_sources.get(peer.host, f"198.18.1.{peer.number + 1}")}]
        )

    def _ping(self, peer: Peer, command: str) -> str:
        if PUBLIC in command and peer.host not in self.is_stubborn:
            self.healed.add(peer.host)
        pattern = re.search(r"-p ([0-9a-f]+)'", command)
        assert pattern is not None
        if peer.host in self.healed and self.owner == ME and peer.host not in self.busybox:
            packet = echo_request(f"198.18.1.{peer.number + 1}", ANCHOR, bytes.fromhex(pattern[1]))
            for ethertype, _, note in list(self.notes):
                if ethertype == 0x0800:
                    note(packet)
        status = 0 if self.answers_pings else 1
        public = f"@do-failover public\n{status}\n" if f" {PUBLIC} " in command else ""
        kind = "plain" if peer.host in self.busybox else "marked"
        return f"@do-failover kind\n{kind}\n{public}@do-failover reserved\n{status}\n"


class Shells:
    """Gives the region's peers as a context of their own."""

    def __init__(self, region: Region) -> None:
        self.region = region

    async def __aenter__(self) -> Region:
        self.region.open_shells += 1
        return self.region

    async def __aexit__(self, *_: object) -> None:
        self.region.open_shells -= 1


def _find_routes(command: str) -> list[str]:
    return list(dict.fromkeys(re.findall(r"route get ([0-9a-f.:]+)", command)))


def echo_request(source: str, destination: str, pattern: bytes) -> bytes:
    """Build what iputils' ping sends: 8 octets of ICMP, 16 of time stamp, then the pattern over and over."""
    data = bytes(16) + pattern + pattern + pattern[:8]
    icmp = struct.pack("!BBHHH", 8, 0, 0, 7, 1) + data
    total = 20 + len(icmp)
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, total, 1, 0x4000, 64, 1, 0, IPv4Address(source).packed, IPv4Address(destination).packed)
    return head + icmp


def first_data(source: str, destination: str, port: int, data: bytes) -> bytes:
    """Build the segment that carries the first data of a TCP connection."""
    segment = struct.pack("!HHIIBBHHH", 40000, port, 1, 1, 0x50, 0x18, 512, 0, 0) + data
    addresses = IPv4Address(source).packed, IPv4Address(destination).packed
    return struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(segment), 1, 0x4000, 64, 6, 0, *addresses) + segment


@dataclass
class Told:
    """What came of it."""

    reports: list[FailoverReport]
    region: Region
    ended_s: float

    @property
    def report(self) -> FailoverReport:
        return self.reports[-1]


def tell(
    region: Region,
    *,
    peers: int = 3,
    event: NotifyEvent | None = MASTER,
    revoke_at: float | None = None,
    steps: frozenset[str] = ALL_STEPS,
    to_droplet: int | None = None,
    deadline_s: float = 30.0,
    reserved_ip: str = IP,
    is_on_link: bool = False,
    rounds: bool = False,
    probe_port: int | None = None,
) -> Told:
    """Run the real story against the region."""
    reports: list[FailoverReport] = []
    contest = Contest()

    @contextlib.asynccontextmanager
    async def nullturn() -> AsyncIterator[None]:
        yield

    async def on_link(_: str) -> bool:
        return is_on_link

    async def identity() -> Identity:
        return region.identity

    async def scene() -> float:
        mandate = Mandate()
        if revoke_at is not None:
            asyncio.get_running_loop().call_later(revoke_at, mandate.revoke, "superseded by INSTANCE VI_1 BACKUP")
        edges = Edges(
            clock=VirtualClock(),
            api=region,
            read_identity=identity,
            open_link=lambda: region,
            open_peers=lambda: Shells(region),
            is_on_link=on_link,
            backoff=Backoff(jitter=0.0),
            probe_port=probe_port,
        )

        def make_request(number: int) -> Request:
            return Request(
                entry=FailoverConfig(reserved_ip, instance="VI_1", deadline_s=deadline_s),
                peers=tuple(Peer(number, f"app{number + 1}") for number in range(peers)),
                run=b"run-%04d" % number,
                id=f"id-{number}",
                at="2026-01-01T00:00:00+00:00",
                node="lb2",
                heard_at=asyncio.get_running_loop().time(),
                event=event,
                to_droplet=to_droplet,
                steps=steps,
                round=number,
                contest=contest,
            )

        if rounds:
            await run_rounds(make_request, edges, mandate, take_turn=nullturn, observe=lambda _: None, keep=reports.append)
        else:
            reports.append(await run_failover(make_request(1), edges, mandate, lambda _: None))
        assert len(asyncio.all_tasks()) == 1, "the story left a task behind"
        assert (region.open_links, region.open_shells) == (0, 0), "the story left a link or a connection open"
        return region.now()

    return Told(reports, region, run_virtually(scene()))
