"""What the frames do to a real neighbour table, and what a real kernel answers."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

import pytest
from two_hosts import PATIENCE_S, Link, open_link, until

from do_failover import frames
from do_failover.packets import LinkSender, PacketListener

if TYPE_CHECKING:
    from collections.abc import Iterator

    from do_failover.model import Neighbour

pytestmark = pytest.mark.root

RESERVED = IPv4Address("198.18.0.200")
RESERVED6 = IPv6Address("fd00:18::200")
OLD_OWNER = "02:00:00:00:00:99"


@pytest.fixture(scope="module")
def cable() -> Iterator[Link]:
    with open_link() as made:
        yield made


@pytest.fixture
def link(cable: Link) -> Link:
    """The same link for all tests (a new one takes a second), without a memory of the one before."""
    for host in (cable.ours, cable.peer):
        host.ip("neigh", "flush", "dev", "eth0", "nud", "all")
    return cable


def send(link: Link, *sent: bytes) -> None:
    with link.ours.inside(), LinkSender("eth0") as sender:
        for frame in sent:
            sender.send(frame)


def points_at_us(link: Link, entry: Neighbour | None) -> bool:
    return entry is not None and entry.lladdr == link.ours.lladdr.hex(":")


async def exchange(link: Link, family: frames.Family, frame: bytes) -> frames.Acknowledgement:
    """Send a directed frame and return the first acknowledgement that the kernel's filter lets through."""
    program = frames.build_acknowledgement_filter(family, link.ours.lladdr)
    read = {4: frames.read_arp_acknowledgement, 6: frames.read_na_acknowledgement}[family]
    with link.ours.inside():
        listener = PacketListener(frames.ACKNOWLEDGEMENT_ETHERTYPE[family], program, "eth0", is_raw=True)
    with listener:
        send(link, frame)
        async with asyncio.timeout(PATIENCE_S):
            packet = await anext(listener)
    found = read(packet.data)
    assert found is not None
    return found


@pytest.mark.parametrize("form", [0, 1], ids=["request", "reply"])
@pytest.mark.parametrize("nud", ["reachable", "stale"])
def test_each_form_of_a_gratuitous_arp_updates_an_entry(link: Link, form: int, nud: str) -> None:
    link.peer.remember(RESERVED, OLD_OWNER, nud)
    send(link, frames.build_arp_announcement(RESERVED, link.ours.lladdr)[form])
    until(lambda: points_at_us(link, link.peer.neighbour(RESERVED)), "the entry names us")


def test_a_permanent_entry_ignores_everything(link: Link) -> None:
    link.peer.remember(RESERVED, OLD_OWNER, "permanent")
    other = IPv4Address("198.18.0.201")
    link.peer.remember(other, OLD_OWNER)
    directed = frames.build_directed_arp(RESERVED, link.ours.lladdr, link.peer.address)
    later = frames.build_arp_announcement(other, link.ours.lladdr)[0]
    send(link, *frames.build_arp_announcement(RESERVED, link.ours.lladdr), directed, later)
    until(lambda: points_at_us(link, link.peer.neighbour(other)), "the later frame was read")
    entry = link.peer.neighbour(RESERVED)
    assert entry is not None
    assert (entry.lladdr, entry.nud) == (OLD_OWNER, "PERMANENT")


async def test_a_gratuitous_arp_creates_nothing_a_directed_one_does_and_is_answered(link: Link) -> None:
    send(link, *frames.build_arp_announcement(RESERVED, link.ours.lladdr))
    other = IPv4Address("198.18.0.201")
    await exchange(link, 4, frames.build_directed_arp(other, link.ours.lladdr, link.peer.address))
    assert link.peer.neighbour(RESERVED) is None  # the frames before `other`'s were read by now
    answer = await exchange(link, 4, frames.build_directed_arp(RESERVED, link.ours.lladdr, link.peer.address))
    assert answer == frames.Acknowledgement(link.peer.address, link.peer.lladdr, RESERVED)
    assert points_at_us(link, link.peer.neighbour(RESERVED))


async def test_a_directed_arp_to_a_known_lladdr_updates_within_the_lock_time(link: Link) -> None:
    link.peer.remember(RESERVED, OLD_OWNER)
    frame = frames.build_directed_arp(RESERVED, link.ours.lladdr, link.peer.address, link.peer.lladdr)
    answer = await exchange(link, 4, frame)
    assert answer.announced == RESERVED
    until(lambda: points_at_us(link, link.peer.neighbour(RESERVED)), "the entry names us")


@pytest.mark.parametrize("nud", ["reachable", "stale"])
def test_an_unsolicited_na_updates_an_entry(link: Link, nud: str) -> None:
    link.peer.remember(RESERVED6, OLD_OWNER, nud)
    send(link, frames.build_na_announcement(RESERVED6, link.ours.lladdr))
    until(lambda: points_at_us(link, link.peer.neighbour(RESERVED6)), "the entry names us")


@pytest.mark.parametrize("is_known", [False, True], ids=["multicast", "unicast"])
async def test_an_na_creates_nothing_a_directed_ns_does_and_is_answered(link: Link, is_known: bool) -> None:
    send(link, frames.build_na_announcement(RESERVED6, link.ours.lladdr))
    peers = link.peer.lladdr if is_known else None
    other = IPv6Address("fd00:18::201")
    await exchange(link, 6, frames.build_directed_ns(other, link.ours.lladdr, link.peer.address6, peers))
    assert link.peer.neighbour(RESERVED6) is None
    answer = await exchange(link, 6, frames.build_directed_ns(RESERVED6, link.ours.lladdr, link.peer.address6, peers))
    assert answer == frames.Acknowledgement(link.peer.address6, link.peer.lladdr, RESERVED6)
    assert points_at_us(link, link.peer.neighbour(RESERVED6))


async def test_a_directed_ns_updates_a_stale_entry(link: Link) -> None:
    link.peer.remember(RESERVED6, OLD_OWNER)
    await exchange(link, 6, frames.build_directed_ns(RESERVED6, link.ours.lladdr, link.peer.address6))
    until(lambda: points_at_us(link, link.peer.neighbour(RESERVED6)), "the entry names us")


def test_a_wrong_checksum_would_be_noticed(link: Link) -> None:
    """The oracle's own test: the kernel discards an NA with one bit wrong."""
    other = IPv6Address("fd00:18::201")
    for address in (RESERVED6, other):
        link.peer.remember(address, OLD_OWNER)
    spoiled = bytearray(frames.build_na_announcement(RESERVED6, link.ours.lladdr))
    spoiled[56] ^= 1
    send(link, bytes(spoiled), frames.build_na_announcement(other, link.ours.lladdr))
    until(lambda: points_at_us(link, link.peer.neighbour(other)), "the later frame was read")
    assert not points_at_us(link, link.peer.neighbour(RESERVED6))
