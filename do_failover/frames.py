"""Ethernet frames that announce an address, and the answers that acknowledge it. Pure: bytes in, bytes out.

    build_arp_announcement   gratuitous ARP, request and reply form    updates existing entries, creates none
    build_directed_arp       ARP request to one peer                   creates or updates its entry; it answers
    build_na_announcement    unsolicited NA to all nodes               IPv6's gratuitous ARP
    build_directed_ns        NS to one peer                            IPv6's directed ARP; it answers with an NA

What each does to a neighbour table was measured on Linux 6.x (tests/lab/test_frames_on_link.py does it again).
An acknowledgement tells that the peer's kernel read the frame. It is no proof that the peer's traffic arrives:
a peer behind a router acknowledges too.

Sources: RFC 826 (ARP), RFC 5227 section 2.3 (announcement in request form), RFC 5944 section 4.6 (both forms),
RFC 4861 sections 4.3, 4.4 and 7.2.6 (NS, NA, unsolicited NA), RFC 2464 section 7 (33:33 group addresses).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

Address = IPv4Address | IPv6Address
Family = Literal[4, 6]
"""The IP version, as `address.version` says it; not the number of AF_INET or AF_INET6."""

Program = tuple[tuple[int, int, int, int], ...]
"""Classic BPF: (code, jump if true, jump if false, k) for each instruction."""

_Party = tuple[bytes, IPv4Address]
BROADCAST: Final = b"\xff" * 6
ALL_NODES: Final = IPv6Address("ff02::1")
ETHERTYPE_ARP: Final = 0x0806
ETHERTYPE_IPV6: Final = 0x86DD
ACKNOWLEDGEMENT_ETHERTYPE: Final[Mapping[Family, int]] = {4: ETHERTYPE_ARP, 6: ETHERTYPE_IPV6}

_LLADDR_OCTETS = 6
_SHORTEST_FRAME = 60  # Ethernet's 64 without the FCS
_ETHERNET = struct.Struct("!6s6sH")
_ARP = struct.Struct("!HHBBH6s4s6s4s")
_ARP_HEAD = (1, 0x0800, 6, 4)  # Ethernet, IPv4, and the lengths of their addresses
_ARP_REQUEST, _ARP_REPLY = 1, 2
_IPV6 = struct.Struct("!IHBB16s16s")
_ICMPV6 = 58
_ND_HOP_LIMIT = 255  # RFC 4861 section 7.1: anything lower was forwarded, and is discarded
_ND = struct.Struct("!BBHI16s")
_NS, _NA = 135, 136
_NA_SOLICITED, _NA_OVERRIDE = 0x40000000, 0x20000000
_SOURCE_LLADDR, _TARGET_LLADDR = 1, 2
_OPTION_UNIT = 8

# Classic BPF (linux/bpf_common.h): loads from an absolute offset, jumps, return.
_LOAD: Final = {1: 0x30, 2: 0x28, 4: 0x20}
_JUMP_EQUAL, _JUMP_ANY_BIT, _RETURN = 0x15, 0x45, 0x06


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """A peer's answer to a directed ARP or NS: who answered, from which lladdr, for which announced address."""

    peer: Address
    lladdr: bytes
    announced: Address


def parse_lladdr(text: str) -> bytes:
    """Read `02:fc:00:00:00:05` (either case). Raises ValueError for anything but six colon-separated octets."""
    octets = text.split(":")
    digits = set("0123456789abcdefABCDEF")
    if len(octets) != _LLADDR_OCTETS or any(len(octet) != 2 or not set(octet) <= digits for octet in octets):  # noqa: PLR2004
        msg = f"{text[:40]!a} is not an Ethernet address like 02:fc:00:00:00:05"
        raise ValueError(msg)
    return bytes.fromhex("".join(octets))


def format_lladdr(lladdr: bytes) -> str:
    """Write an Ethernet address as `ip` does: lower case, colons."""
    return lladdr.hex(":")


def build_arp_announcement(address: IPv4Address, lladdr: bytes) -> tuple[bytes, bytes]:
    """Return the gratuitous ARP for `address` in request and in reply form, both to broadcast.

    Send both, spaced: some devices heed only one form (facts.md). The target hardware address is zero in the
    request (RFC 5227) and our own in the reply (RFC 5944). Raises ValueError for an address or lladdr that
    nobody may announce.
    """
    _check(address, lladdr)
    request = _arp(BROADCAST, _ARP_REQUEST, (lladdr, address), (bytes(_LLADDR_OCTETS), address))
    reply = _arp(BROADCAST, _ARP_REPLY, (lladdr, address), (lladdr, address))
    return request, reply


def build_directed_arp(address: IPv4Address, lladdr: bytes, target: IPv4Address, target_lladdr: bytes | None = None) -> bytes:
    """Return an ARP request that asks for `target` and names `address` at `lladdr` as the asker.

    Only `target` creates an entry from it, and answers, wherever the frame is seen; it is broadcast unless
    `target_lladdr` is known. Others that have an entry for `address` update it. Raises ValueError as above.
    """
    _check(address, lladdr)
    _check_target(address, target, target_lladdr)
    return _arp(target_lladdr or BROADCAST, _ARP_REQUEST, (lladdr, address), (bytes(_LLADDR_OCTETS), target))


def build_na_announcement(address: IPv6Address, lladdr: bytes) -> bytes:
    """Return the unsolicited NA for `address`, to all nodes: override set, router and solicited not set.

    It updates existing entries and creates none (RFC 4861 section 7.2.5). A peer that had the entry as a
    router's drops it as such: these Droplets are no IPv6 routers. Raises ValueError as above.
    """
    _check(address, lladdr)
    message = _ND.pack(_NA, 0, 0, _NA_OVERRIDE, address.packed) + _lladdr_option(_TARGET_LLADDR, lladdr)
    return _icmpv6(lladdr, _group_lladdr(ALL_NODES), address, ALL_NODES, message)


def build_directed_ns(address: IPv6Address, lladdr: bytes, target: IPv6Address, target_lladdr: bytes | None = None) -> bytes:
    """Return an NS for `target` from `address`, with our lladdr as its source: the peer's NA acknowledges it.

    It goes to the solicited-node group of `target`, or to `target` itself when its lladdr is known. Raises
    ValueError as above.
    """
    _check(address, lladdr)
    _check_target(address, target, target_lladdr)
    destination = target if target_lladdr is not None else _solicited_node(target)
    message = _ND.pack(_NS, 0, 0, 0, target.packed) + _lladdr_option(_SOURCE_LLADDR, lladdr)
    return _icmpv6(lladdr, target_lladdr or _group_lladdr(destination), address, destination, message)


def read_arp_acknowledgement(frame: bytes) -> Acknowledgement | None:
    """Return what a received frame acknowledges, or None when it is no ARP reply to a directed request."""
    if len(frame) < _ETHERNET.size + _ARP.size:
        return None
    destination, _, ethertype = _ETHERNET.unpack_from(frame)
    *head, operation, sender_lladdr, sender, target_lladdr, target = _ARP.unpack_from(frame, _ETHERNET.size)
    if ethertype != ETHERTYPE_ARP or tuple(head) != _ARP_HEAD or operation != _ARP_REPLY:
        return None
    if sender == target or target_lladdr != destination or not _is_unicast(sender_lladdr):
        return None
    return Acknowledgement(IPv4Address(sender), sender_lladdr, IPv4Address(target))


def read_na_acknowledgement(frame: bytes) -> Acknowledgement | None:
    """Return what a received frame acknowledges, or None when it is no valid solicited NA (RFC 4861 section 7.1.2).

    The lladdr is the target link-layer option's; Linux leaves that out when the NS was unicast (measured), and
    then it is the Ethernet source. The announced address is the NA's destination. An NA behind extension headers
    is not read: no host sends one.
    """
    end = _ETHERNET.size + _IPV6.size
    if len(frame) < end + _ND.size:
        return None
    _, ethernet_source, ethertype = _ETHERNET.unpack_from(frame)
    head, length, next_header, hop_limit, source, destination = _IPV6.unpack_from(frame, _ETHERNET.size)
    message = frame[end : end + length]
    if (ethertype, head >> 28, next_header, hop_limit) != (ETHERTYPE_IPV6, 6, _ICMPV6, _ND_HOP_LIMIT):
        return None
    if len(message) != length or length < _ND.size or _checksum(_pseudo_header(source, destination, length) + message):
        return None
    kind, code, _, flags, target = _ND.unpack_from(message)
    if (kind, code) != (_NA, 0) or not flags & _NA_SOLICITED or destination[0] == 0xFF or target[0] == 0xFF:  # noqa: PLR2004
        return None
    lladdr = _find_lladdr_option(message[_ND.size :], ethernet_source)
    if lladdr is None or not _is_unicast(lladdr):
        return None
    return Acknowledgement(IPv6Address(target), lladdr, IPv6Address(destination))


def build_acknowledgement_filter(family: Family, lladdr: bytes) -> Program:
    """Return the kernel filter for a SOCK_RAW listener: only acknowledgements sent to our lladdr pass.

    Offsets count from the Ethernet header. It lets through whatever read_*_acknowledgement accepts when it is
    addressed to `lladdr`; those still check the rest (checksum, lengths).
    """
    high, low = int.from_bytes(lladdr[:4]), int.from_bytes(lladdr[4:])
    checks = [(4, 0, high), (2, 4, low), (2, 12, ACKNOWLEDGEMENT_ETHERTYPE[family])]
    if family == 4:  # noqa: PLR2004 - the IP version
        checks += [(4, 14, 0x00010800), (2, 18, 0x0604), (2, 20, _ARP_REPLY), (4, 32, high), (2, 36, low)]
        return _build_match(checks)
    checks += [(1, 20, _ICMPV6), (1, 21, _ND_HOP_LIMIT), (2, 54, _NA << 8)]
    return _build_match(checks, any_bit=(1, 58, _NA_SOLICITED >> 24))


def describe_frame(frame: bytes) -> str:
    """Return one line about a frame for a person, such as `ARP request  198.18.0.12 is-at 02:..  broadcast`.

    Any bytes are fine; what this module does not build is named by its Ethertype and size.
    """
    if len(frame) < _ETHERNET.size:
        return f"{len(frame)} bytes, too short for Ethernet"
    destination, source, ethertype = _ETHERNET.unpack_from(frame)
    where = _describe_destination(destination)
    if ethertype == ETHERTYPE_ARP and len(frame) >= _ETHERNET.size + _ARP.size:
        *_, operation, lladdr, sender, _, target = _ARP.unpack_from(frame, _ETHERNET.size)
        kind = {_ARP_REQUEST: "ARP request", _ARP_REPLY: "ARP reply"}.get(operation, f"ARP {operation}")
        asks = "" if sender == target else f"  asks {IPv4Address(target)}"
        return f"{kind:<12} {IPv4Address(sender)} is-at {format_lladdr(lladdr)}{asks}  {where}"
    start = _ETHERNET.size + _IPV6.size
    if ethertype == ETHERTYPE_IPV6 and len(frame) >= start + _ND.size and frame[20] == _ICMPV6:
        kind_number, _, _, _, target = _ND.unpack_from(frame, start)
        if kind_number == _NA:
            lladdr = _find_lladdr_option(frame[start + _ND.size :], source) or source
            return f"{'NA':<12} {IPv6Address(target)} is-at {format_lladdr(lladdr)}  {where}"
        if kind_number == _NS:
            asker = f"{IPv6Address(frame[22:38])} is-at {format_lladdr(source)}"
            return f"{'NS':<12} {asker}  asks {IPv6Address(target)}  {where}"
    return f"Ethertype 0x{ethertype:04x} from {format_lladdr(source)}, {len(frame)} bytes  {where}"


def _describe_destination(lladdr: bytes) -> str:
    if lladdr == BROADCAST:
        return "broadcast"
    if lladdr == _group_lladdr(ALL_NODES):
        return "all nodes"
    if lladdr.startswith(b"\x33\x33\xff"):
        return f"solicited-node group {format_lladdr(lladdr)}"
    return f"to {format_lladdr(lladdr)}"


def _check(address: Address, lladdr: bytes) -> None:
    """Refuse to announce what would harm: a group, nobody's or loopback address, or a lladdr that is none."""
    if len(lladdr) != _LLADDR_OCTETS or not _is_unicast(lladdr):
        msg = f"{format_lladdr(lladdr)} is not the Ethernet address of one machine: nothing can be announced at it"
        raise ValueError(msg)
    is_group = address.is_multicast or address == IPv4Address("255.255.255.255")
    if is_group or address.is_unspecified or address.is_loopback:
        msg = f"{address} is not the address of one machine on a link: it can't be announced"
        raise ValueError(msg)


def _check_target(address: Address, target: Address, target_lladdr: bytes | None) -> None:
    if target == address:
        msg = f"{target} can't be asked about itself: the target has to be the peer's own address"
        raise ValueError(msg)
    if target.version != address.version or target.is_multicast or target.is_unspecified:
        msg = f"{target} is not a peer that {address} can be announced to"
        raise ValueError(msg)
    if target_lladdr is not None and (len(target_lladdr) != _LLADDR_OCTETS or not _is_unicast(target_lladdr)):
        msg = f"{format_lladdr(target_lladdr)} is not the Ethernet address of one machine"
        raise ValueError(msg)


def _is_unicast(lladdr: bytes) -> bool:
    return not lladdr[0] & 1 and any(lladdr)


def _arp(destination: bytes, operation: int, sender: _Party, target: _Party) -> bytes:
    frame = _ETHERNET.pack(destination, sender[0], ETHERTYPE_ARP)
    frame += _ARP.pack(*_ARP_HEAD, operation, sender[0], sender[1].packed, target[0], target[1].packed)
    return frame.ljust(_SHORTEST_FRAME, b"\0")


def _icmpv6(lladdr: bytes, to_lladdr: bytes, source: IPv6Address, to: IPv6Address, message: bytes) -> bytes:
    """Wrap an ICMPv6 message, whose checksum field is zero, and fill that in."""
    checksum = _checksum(_pseudo_header(source.packed, to.packed, len(message)) + message)
    message = message[:2] + checksum.to_bytes(2) + message[4:]
    head = _IPV6.pack(6 << 28, len(message), _ICMPV6, _ND_HOP_LIMIT, source.packed, to.packed)
    return _ETHERNET.pack(to_lladdr, lladdr, ETHERTYPE_IPV6) + head + message


def _pseudo_header(source: bytes, destination: bytes, length: int) -> bytes:
    """RFC 8200 section 8.1."""
    return source + destination + struct.pack("!II", length, _ICMPV6)


def _checksum(data: bytes) -> int:
    """RFC 1071: zero over data that holds its own right checksum."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(word for (word,) in struct.iter_unpack("!H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _lladdr_option(kind: int, lladdr: bytes) -> bytes:
    return struct.pack("!BB6s", kind, 1, lladdr)


def _find_lladdr_option(options: bytes, otherwise: bytes) -> bytes | None:
    """Return the target link-layer option, `otherwise` when there is none, None when the options are malformed."""
    while options:
        size = options[1] * _OPTION_UNIT if len(options) > 1 else 0
        if not 0 < size <= len(options):
            return None
        if options[0] == _TARGET_LLADDR:
            return options[2:8] if size == _OPTION_UNIT else None
        options = options[size:]
    return otherwise


def _solicited_node(address: IPv6Address) -> IPv6Address:
    return IPv6Address(IPv6Address("ff02::1:ff00:0").packed[:13] + address.packed[13:])


def _group_lladdr(group: IPv6Address) -> bytes:
    return b"\x33\x33" + group.packed[12:]


def _build_match(checks: list[tuple[int, int, int]], any_bit: tuple[int, int, int] | None = None) -> Program:
    """Accept when each (size, offset, value) is found, and of `any_bit`'s mask at least one bit is set."""
    tests = [(_JUMP_EQUAL, *check) for check in checks]
    tests += [(_JUMP_ANY_BIT, *any_bit)] if any_bit is not None else []
    program: list[tuple[int, int, int, int]] = []
    for place, (jump, size, offset, value) in enumerate(tests):
        program.append((_LOAD[size], 0, 0, offset))
        program.append((jump, 0, 2 * (len(tests) - place) - 1, value))
    return (*program, (_RETURN, 0, 0, 0xFFFF), (_RETURN, 0, 0, 0))
