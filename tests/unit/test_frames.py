"""Frame bytes, read back by independent decoders: scapy, tcpdump, and the kernel's BPF for the filters."""

from __future__ import annotations

import shutil
import subprocess
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6ND_NS, ICMPv6NDOptDstLLAddr, ICMPv6NDOptSrcLLAddr, IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.utils import PcapWriter

from do_failover import frames
from tests.kernel_filter import passes

if TYPE_CHECKING:
    from pathlib import Path

OURS = bytes.fromhex("02fc00000005")
OURS_TEXT = "02:fc:00:00:00:05"
PEERS = bytes.fromhex("0200000000a1")
PEERS_TEXT = "02:00:00:00:00:a1"
ADDRESS, PEER = IPv4Address("198.18.0.12"), IPv4Address("198.18.0.101")
ADDRESS6, PEER6 = IPv6Address("fd00:18::12"), IPv6Address("fd00:18::ab:cdef")


def is_announceable(address: IPv4Address | IPv6Address) -> bool:
    """Tell whether an address can be one machine's on a link."""
    is_group = address.is_multicast or address == IPv4Address("255.255.255.255")
    return not (is_group or address.is_unspecified or address.is_loopback)


lladdrs = st.binary(min_size=6, max_size=6).filter(lambda lladdr: not lladdr[0] & 1 and any(lladdr))
addresses = st.ip_addresses(v=4).filter(is_announceable)
addresses6 = st.ip_addresses(v=6).filter(is_announceable)


def decode_again(frame: bytes) -> tuple[Ether, Ether]:
    """Return what scapy reads, and what it makes itself of the same fields, lengths and checksums anew."""
    read = Ether(frame)
    fresh = read.copy()
    if IPv6 in fresh:
        del fresh[IPv6].plen
        del fresh[IPv6].payload.cksum
    return read, fresh


@given(address=addresses, lladdr=lladdrs)
def test_both_forms_of_a_gratuitous_arp_say_the_same_to_scapy(address: IPv4Address, lladdr: bytes) -> None:
    request, reply = frames.build_arp_announcement(address, lladdr)
    for frame, operation, target in ((request, 1, "00:00:00:00:00:00"), (reply, 2, lladdr.hex(":"))):
        read, _ = decode_again(frame)
        assert (read.dst, read.src, read.type, len(frame)) == ("ff:ff:ff:ff:ff:ff", lladdr.hex(":"), 0x806, 60)
        arp = read[ARP]
        assert (arp.hwtype, arp.ptype, arp.hwlen, arp.plen, arp.op) == (1, 0x800, 6, 4, operation)
        assert (arp.hwsrc, arp.psrc, arp.hwdst, arp.pdst) == (lladdr.hex(":"), str(address), target, str(address))
        assert bytes(arp.payload).strip(b"\0") == b""


@given(address=addresses, peer=addresses, lladdr=lladdrs, peers=st.none() | lladdrs)
def test_a_directed_arp_asks_the_peer_in_the_name_of_the_address(
    address: IPv4Address, peer: IPv4Address, lladdr: bytes, peers: bytes | None
) -> None:
    if address == peer:
        return
    frame = frames.build_directed_arp(address, lladdr, peer, peers)
    read, _ = decode_again(frame)
    arp = read[ARP]
    assert read.dst == ("ff:ff:ff:ff:ff:ff" if peers is None else peers.hex(":"))
    assert (read.src, arp.hwsrc, arp.op, len(frame)) == (lladdr.hex(":"), lladdr.hex(":"), 1, 60)
    assert (arp.psrc, arp.pdst, arp.hwdst) == (str(address), str(peer), "00:00:00:00:00:00")


@given(address=addresses6, lladdr=lladdrs)
def test_an_unsolicited_na_is_what_scapy_would_build(address: IPv6Address, lladdr: bytes) -> None:
    frame = frames.build_na_announcement(address, lladdr)
    read, fresh = decode_again(frame)
    assert bytes(fresh) == frame  # lengths and checksum
    assert (read.dst, read.src, read.type) == ("33:33:00:00:00:01", lladdr.hex(":"), 0x86DD)
    ip, na = read[IPv6], read[ICMPv6ND_NA]
    assert (IPv6Address(ip.src), ip.dst, ip.hlim, ip.nh, ip.tc, ip.fl) == (address, "ff02::1", 255, 58, 0, 0)
    assert (na.type, na.code, na.R, na.S, na.O, na.res, IPv6Address(na.tgt)) == (136, 0, 0, 0, 1, 0, address)
    option = read[ICMPv6NDOptDstLLAddr]
    assert (option.type, option.len, option.lladdr) == (2, 1, lladdr.hex(":"))
    assert not option.payload


@given(address=addresses6, peer=addresses6, lladdr=lladdrs, peers=st.none() | lladdrs)
def test_a_directed_ns_is_what_scapy_would_build(address: IPv6Address, peer: IPv6Address, lladdr: bytes, peers: bytes | None) -> None:
    if address == peer:
        return
    frame = frames.build_directed_ns(address, lladdr, peer, peers)
    read, fresh = decode_again(frame)
    assert bytes(fresh) == frame
    ip, ns = read[IPv6], read[ICMPv6ND_NS]
    low = peer.packed[13:]
    group = IPv6Address(b"\xff\x02" + bytes(9) + b"\x01\xff" + low)
    to, to_lladdr = (group, b"\x33\x33\xff" + low) if peers is None else (peer, peers)
    assert (IPv6Address(ip.src), IPv6Address(ip.dst), ip.hlim, read.dst) == (address, to, 255, to_lladdr.hex(":"))
    assert (ns.type, ns.code, ns.res, IPv6Address(ns.tgt)) == (135, 0, 0, peer)
    option = read[ICMPv6NDOptSrcLLAddr]
    assert (option.type, option.len, option.lladdr) == (1, 1, lladdr.hex(":"))


def all_frames() -> list[bytes]:
    """Return one of each."""
    return [
        *frames.build_arp_announcement(ADDRESS, OURS),
        frames.build_directed_arp(ADDRESS, OURS, PEER),
        frames.build_directed_arp(ADDRESS, OURS, PEER, PEERS),
        frames.build_na_announcement(ADDRESS6, OURS),
        frames.build_directed_ns(ADDRESS6, OURS, PEER6),
        frames.build_directed_ns(ADDRESS6, OURS, PEER6, PEERS),
    ]


def test_tcpdump_reads_the_same(tmp_path: Path) -> None:
    if shutil.which("tcpdump") is None:
        pytest.skip("tcpdump is not installed")
    pcap = tmp_path / "frames.pcap"
    with PcapWriter(str(pcap), linktype=1) as writer:
        for frame in all_frames():
            writer.write(frame)
    command = ["tcpdump", "-nnvvetr", str(pcap)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "bad" not in text
    assert "wrong" not in text
    assert text.count("[icmp6 sum ok]") == 3
    for expected in (
        "Request who-has 198.18.0.12 tell 198.18.0.12, length 46",
        f"Reply 198.18.0.12 is-at {OURS_TEXT}, length 46",
        "Request who-has 198.18.0.101 tell 198.18.0.12, length 46",
        "tgt is fd00:18::12, Flags [override]",
        f"destination link-address option (2), length 8 (1): {OURS_TEXT}",
        "fd00:18::12 > ff02::1:ffab:cdef: [icmp6 sum ok] ICMP6, neighbor solicitation, length 32",
        "who has fd00:18::ab:cdef",
        "fd00:18::12 > fd00:18::ab:cdef: [icmp6 sum ok]",
        f"source link-address option (1), length 8 (1): {OURS_TEXT}",
        f"{OURS_TEXT} > {PEERS_TEXT}, ethertype ARP",
    ):
        assert expected in text


def arp_reply(**fields: Any) -> bytes:
    """Return the peer's answer to a directed ARP, made by scapy; `fields` of ARP differ."""
    sent: dict[str, Any] = {
        "op": 2,
        "hwsrc": PEERS_TEXT,
        "psrc": str(PEER),
        "hwdst": OURS_TEXT,
        "pdst": str(ADDRESS),
    }
    return bytes(Ether(dst=OURS_TEXT, src=PEERS_TEXT) / ARP(**sent | fields)).ljust(60, b"\0")


def solicited_na(*, option: bool = True, ip: dict[str, Any] | None = None, **fields: Any) -> bytes:
    """Return the peer's answer to a directed NS, made by scapy; fields of the NA and of IPv6 differ."""
    sent_ip: dict[str, Any] = {"src": str(PEER6), "dst": str(ADDRESS6), "hlim": 255}
    sent: dict[str, Any] = {"tgt": str(PEER6), "S": 1, "O": 1, "R": 0}
    head = Ether(dst=OURS_TEXT, src=PEERS_TEXT) / IPv6(**sent_ip | (ip or {}))
    na = ICMPv6ND_NA(**sent | fields)
    return bytes(head / na / ICMPv6NDOptDstLLAddr(lladdr="02:00:00:00:00:a2") if option else head / na)


def test_an_arp_reply_acknowledges() -> None:
    found = frames.read_arp_acknowledgement(arp_reply())
    assert found == frames.Acknowledgement(PEER, PEERS, ADDRESS)
    assert frames.read_na_acknowledgement(arp_reply()) is None


@pytest.mark.parametrize(
    "frame",
    [
        *all_frames(),
        arp_reply(op=1),
        arp_reply(psrc=str(ADDRESS)),
        arp_reply(hwdst="02:00:00:00:00:99"),
        arp_reply(hwsrc="00:00:00:00:00:00"),
        arp_reply(hwsrc="ff:ff:ff:ff:ff:ff"),
        arp_reply(hwtype=6),
        arp_reply(ptype=0x86DD),
        arp_reply()[:41],
        b"",
    ],
)
def test_no_arp_reply_of_a_peer_no_acknowledgement(frame: bytes) -> None:
    assert frames.read_arp_acknowledgement(frame) is None


def test_a_solicited_na_acknowledges_by_its_option_or_by_ethernet() -> None:
    by_option = frames.Acknowledgement(PEER6, bytes.fromhex("0200000000a2"), ADDRESS6)
    assert frames.read_na_acknowledgement(solicited_na()) == by_option
    assert frames.read_na_acknowledgement(solicited_na(option=False)) == frames.Acknowledgement(PEER6, PEERS, ADDRESS6)
    assert frames.read_arp_acknowledgement(solicited_na()) is None


@pytest.mark.parametrize(
    "frame",
    [
        *all_frames(),
        solicited_na(S=0),
        solicited_na(code=1),
        solicited_na(cksum=1),
        solicited_na(tgt="ff02::1"),
        solicited_na(ip={"hlim": 254}),
        solicited_na(ip={"dst": "ff02::1"}),
        solicited_na(ip={"plen": 200}),
        solicited_na(ip={"plen": 16}),
        solicited_na(ip={"nh": 17}),
        solicited_na(ip={"version": 4}),
        solicited_na()[:-1],
        solicited_na()[:77],
        b"",
    ],
)
def test_no_valid_solicited_na_no_acknowledgement(frame: bytes) -> None:
    assert frames.read_na_acknowledgement(frame) is None


@pytest.mark.parametrize("options", [b"\x02\x00" + bytes(6), b"\x02\x02" + PEERS, b"\x02", b"\x02\x01\xff" + bytes(5), bytes(8)])
def test_malformed_options_are_refused(options: bytes) -> None:
    head = Ether(dst=OURS_TEXT, src=PEERS_TEXT) / IPv6(src=str(PEER6), dst=str(ADDRESS6), hlim=255)
    frame = bytes(head / ICMPv6ND_NA(tgt=str(PEER6), S=1) / options)
    assert frames.read_na_acknowledgement(frame) is None


@given(noise=st.binary(max_size=120))
def test_noise_is_read_without_an_exception(noise: bytes) -> None:
    for frame in (noise, *(frame[:14] + noise for frame in all_frames())):
        frames.read_arp_acknowledgement(frame)
        frames.read_na_acknowledgement(frame)
        assert frames.describe_frame(frame).isprintable()


def test_the_kernel_filter_passes_acknowledgements_and_nothing_else() -> None:
    arp, na = (frames.build_acknowledgement_filter(family, OURS) for family in (4, 6))
    assert passes(arp, arp_reply())
    assert passes(na, solicited_na())
    assert passes(na, solicited_na(option=False))
    others = (
        *all_frames(),
        arp_reply(op=1),
        arp_reply(hwdst="02:fc:00:00:00:06"),
        arp_reply(hwdst="03:fc:00:00:00:05"),
        arp_reply(hwtype=6),
        arp_reply(hwlen=8),
        solicited_na(S=0),
        solicited_na(type=135),
        solicited_na(ip={"hlim": 64}),
        solicited_na(ip={"nh": 17}),
        PEERS + arp_reply()[6:],
        PEERS + solicited_na()[6:],
        arp_reply()[:30],
        solicited_na()[:50],
    )
    assert [frame for frame in others if passes(arp, frame) or passes(na, frame)] == []
    assert not passes(arp, solicited_na())
    assert not passes(na, arp_reply())


@given(place=st.integers(0, 85), octet=st.integers(0, 255))
def test_whatever_is_read_as_an_acknowledgement_to_us_passes_the_filter(place: int, octet: int) -> None:
    arp, na = bytearray(arp_reply()), bytearray(solicited_na())
    arp[place % len(arp)] = na[place] = octet
    for frame, read, family in (
        (bytes(arp), frames.read_arp_acknowledgement, 4),
        (bytes(na), frames.read_na_acknowledgement, 6),
    ):
        if frame[:6] == OURS and read(frame) is not None:
            assert passes(frames.build_acknowledgement_filter(4 if family == 4 else 6, OURS), frame)


@given(lladdr=st.binary(min_size=6, max_size=6))
def test_lladdrs_are_written_and_read_back(lladdr: bytes) -> None:
    assert frames.parse_lladdr(frames.format_lladdr(lladdr)) == lladdr
    assert frames.parse_lladdr(frames.format_lladdr(lladdr).upper()) == lladdr


@pytest.mark.parametrize(
    "text",
    [
        "",
        "02:fc:00:00:00",
        OURS_TEXT + ":00",
        "02-fc-00-00-00-05",
        "2:fc:00:00:00:05",
        " 2:fc:00:00:00:05",
        "0x:fc:00:00:00:05",
        "\x1b[31m",
        "0\uff12:fc:00:00:00:05",
    ],
)
def test_what_is_no_lladdr_is_refused_in_printable_words(text: str) -> None:
    with pytest.raises(ValueError, match="is not an Ethernet address") as refusal:
        frames.parse_lladdr(text)
    assert str(refusal.value).isascii()
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize("lladdr", [bytes(6), b"\xff" * 6, b"\x01\0\x5e\0\0\1", b"\2\2", b"\2" * 7])
def test_no_group_and_no_nothing_is_ever_announced_as_lladdr(lladdr: bytes) -> None:
    with pytest.raises(ValueError, match="Ethernet address of one machine"):
        frames.build_arp_announcement(ADDRESS, lladdr)
    with pytest.raises(ValueError, match="Ethernet address of one machine"):
        frames.build_directed_arp(ADDRESS, OURS, PEER, lladdr)
    with pytest.raises(ValueError, match="Ethernet address of one machine"):
        frames.build_na_announcement(ADDRESS6, lladdr)


@pytest.mark.parametrize("text", [IPv4Address(0).compressed, "224.0.0.18", "255.255.255.255", "127.0.0.1"])
def test_no_address_of_many_is_announced(text: str) -> None:
    with pytest.raises(ValueError, match="can't be announced"):
        frames.build_arp_announcement(IPv4Address(text), OURS)
    with pytest.raises(ValueError, match=r"\w"):
        frames.build_directed_arp(IPv4Address(text), OURS, PEER)


@pytest.mark.parametrize("text", ["::", "::1", "ff02::1"])
def test_no_ipv6_address_of_many_is_announced(text: str) -> None:
    with pytest.raises(ValueError, match="can't be announced"):
        frames.build_na_announcement(IPv6Address(text), OURS)


def test_a_peer_is_someone_else() -> None:
    with pytest.raises(ValueError, match="about itself"):
        frames.build_directed_arp(ADDRESS, OURS, ADDRESS)
    with pytest.raises(ValueError, match="about itself"):
        frames.build_directed_ns(ADDRESS6, OURS, ADDRESS6)


def test_each_frame_is_described_in_one_line() -> None:
    assert [frames.describe_frame(frame) for frame in all_frames()] == [
        "ARP request  198.18.0.12 is-at 02:fc:00:00:00:05  broadcast",
        "ARP reply    198.18.0.12 is-at 02:fc:00:00:00:05  broadcast",
        "ARP request  198.18.0.12 is-at 02:fc:00:00:00:05  asks 198.18.0.101  broadcast",
        "ARP request  198.18.0.12 is-at 02:fc:00:00:00:05  asks 198.18.0.101  to 02:00:00:00:00:a1",
        "NA           fd00:18::12 is-at 02:fc:00:00:00:05  all nodes",
        f"NS           fd00:18::12 is-at {OURS_TEXT}  asks fd00:18::ab:cdef  solicited-node group 33:33:ff:ab:cd:ef",
        "NS           fd00:18::12 is-at 02:fc:00:00:00:05  asks fd00:18::ab:cdef  to 02:00:00:00:00:a1",
    ]
    assert frames.describe_frame(b"x") == "1 bytes, too short for Ethernet"
    assert frames.describe_frame(PEERS + OURS + b"\x08\x00").startswith("Ethertype 0x0800 from 02:fc:00:00:00:05, 14 bytes")
