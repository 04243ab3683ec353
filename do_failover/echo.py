"""The witness's language: a pattern of this run and this peer, inside an echo request or first on a TCP connection. Pure.

A peer runs `ping -p HEX` (iputils); the witness on the new owner looks for that pattern in the echo requests
that arrive. 16 bytes, as many as -p takes:

    "dofo"   run (8 bytes, random)   peer number (2)   check (2: CRC-16 of the 14 before it)

The check and the run keep garbage and other runs from counting. It is no authentication: whoever can see a
peer's echo request can send the same again.

Where ping puts it (measured, iputils 20221126): -p fills the data from its start, over and over; the first 16
bytes are then overwritten with a struct timeval. So bytes 16 to 31 of the data are one whole pattern, given
`-s` of at least 32 (the default is 56). With a smaller -s the pattern is cut off and is not read.
BusyBox's ping takes one byte for -p; given HEX it says "invalid number" and sends nothing (measured, 1.35.0): such
a peer can't be witnessed by its pings. A ping of its own carries the pattern's last byte, which fills the data from byte 4 on, and
ICMP's code as well (measured; so the pings that refresh stay plain). With the source address it is weak evidence, never
proof: other tools send constant data too.

Where ICMP is filtered, the pattern is the first data of a TCP connection that the peer makes (`probe = "tcp:443"`). A SYN
alone would prove nothing: it carries no name, the peer's kernel chooses its source port, and a peer is a client that
connects to that port all the time; its source address may be shared. The pattern in the first data names run and peer
like an echo request's does, and data comes behind the handshake: the peer's SYN arrived here and this machine answered it
(or the way came here between the two: it leads here now). So nothing is proven where nobody accepts connections on that
port here. Whoever listens there gets 16 bytes of nonsense and then the connection's end.
"""

from __future__ import annotations

import binascii
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

MAGIC: Final = b"dofo"
RUN_OCTETS: Final = 8
PATTERN_OCTETS: Final = 16
LAST_PEER_NUMBER: Final = 0xFFFF
SMALLEST_DATA: Final = 32
"""The smallest `ping -s` that carries a whole pattern."""
ECHO_ETHERTYPE: Final[Mapping[Family, int]] = {4: 0x0800, 6: 0x86DD}

_PATTERN = struct.Struct("!4s8sHH")
_CHECKED = PATTERN_OCTETS - 2
_ICMP_HEADER = 8
_PATTERN_AT = _ICMP_HEADER + 16  # behind ping's struct timeval
_IPV4_SHORTEST, _IPV6_HEADER = 20, 40
_IS_FRAGMENT = 0x3FFF  # more fragments, or an offset
_ICMP, _TCP, _ICMPV6 = 1, 6, 58
_TCP_HEADER, _SYN_ACK, _ACK = 20, 0x12, 0x10
_ECHO_REQUEST: Final[Mapping[Family, int]] = {4: 0x0800, 6: 0x8000}  # type and code


@dataclass(frozen=True, slots=True)
class EchoRequest:
    """An echo request of a run, or the first data of its TCP connection: where it came from and to, and the peer that sent it.

    `destination` is the anchor IP where DigitalOcean translated; `source` may be shared by several peers.
    """

    source: Address
    destination: Address
    run: bytes
    peer_number: int


def build_pattern(run: bytes, peer_number: int) -> bytes:
    """Return the 16 bytes for one peer of a run. Raises ValueError unless run is 8 bytes, the number 0 to 65535."""
    if len(run) != RUN_OCTETS or not 0 <= peer_number <= LAST_PEER_NUMBER:
        msg = f"a pattern takes a run of {RUN_OCTETS} bytes and a peer number up to {LAST_PEER_NUMBER}"
        raise ValueError(msg)
    checked = _PATTERN.pack(MAGIC, run, peer_number, 0)[:_CHECKED]
    return checked + _check(checked)


def format_pattern(pattern: bytes) -> str:
    """Write a pattern as the HEX of iputils' `ping -p HEX`."""
    return pattern.hex()


def read_echo_request(packet: bytes) -> EchoRequest | None:
    """Read a packet from its IP header on; None when it is no whole echo request with a right pattern.

    Any bytes are fine, also bytes behind the packet's end (Ethernet's padding). IPv4 options are skipped;
    fragments are refused, and so is IPv6 with extension headers: ping sends neither. The checksums of IP
    and ICMP are not looked at, the pattern has its own.
    """
    found = _split_packet(packet, _ICMP, _ICMPV6)
    if found is None:
        return None
    source, destination, message = found
    if int.from_bytes(message[:2]) != _ECHO_REQUEST[4 if source.version == 4 else 6]:  # noqa: PLR2004 - the IP version
        return None
    return _read_pattern(message[_PATTERN_AT : _PATTERN_AT + PATTERN_OCTETS], source, destination)


@dataclass(frozen=True, slots=True)
class ConstantEcho:
    """An echo request whose data is one byte over and over: BusyBox's `ping -p HH`."""

    source: Address
    destination: Address
    octet: int


def read_constant_echo(packet: bytes) -> ConstantEcho | None:
    """Read an echo request whose data, where a pattern of ours would stand, is one byte over and over, but not 0; None for all else."""
    found = _split_packet(packet, _ICMP, _ICMPV6)
    if found is None:
        return None
    source, destination, message = found
    data = message[_PATTERN_AT:]
    is_request = message[:1] == (b"\x08" if source.version == 4 else b"\x80")  # noqa: PLR2004 - the IP version
    if not is_request or len(data) < PATTERN_OCTETS or data[0] == 0 or data.count(data[0]) != len(data):
        return None
    return ConstantEcho(source, destination, data[0])


def read_first_data(packet: bytes, port: int) -> EchoRequest | None:
    """Read a TCP segment to that port whose data begins with a right pattern, from its IP header on; None for all else.

    As for echo requests: padding is fine, IPv4 options are skipped, fragments and extension headers refused, checksums not
    looked at.
    """
    found = _split_packet(packet, _TCP, _TCP)
    if found is None:
        return None
    source, destination, segment = found
    if len(segment) < _TCP_HEADER or int.from_bytes(segment[2:4]) != port:
        return None
    start, flags = (segment[12] >> 4) * 4, segment[13]
    if flags & _SYN_ACK != _ACK:  # a SYN that carries data itself (TCP Fast Open) shows no handshake
        return None
    return _read_pattern(segment[start : start + PATTERN_OCTETS], source, destination) if start >= _TCP_HEADER else None


def build_echo_filter(family: Family) -> Program:
    """Return the kernel filter for a SOCK_DGRAM listener: only echo requests with the magic pass.

    Offsets count from the IP header. Whatever `read_echo_request` accepts passes; run, number and check are
    left to it.
    """
    magic = int.from_bytes(MAGIC)
    accept, drop = (0x06, 0, 0, 0xFFFF), (0x06, 0, 0, 0)
    if family == 4:  # noqa: PLR2004
        return (
            (0x28, 0, 0, 6),  # ldh flags and fragment offset
            (0x45, 8, 0, _IS_FRAGMENT),  # jset
            (0x30, 0, 0, 9),  # ldb protocol
            (0x15, 0, 6, _ICMP),  # jeq
            (0xB1, 0, 0, 0),  # ldx the header's length
            (0x48, 0, 0, 0),  # ldh type and code
            (0x15, 0, 3, _ECHO_REQUEST[4]),
            (0x40, 0, 0, _PATTERN_AT),  # ld, behind the header
            (0x15, 0, 1, magic),
            accept,
            drop,
        )
    if family != 6:  # noqa: PLR2004
        msg = f"no IP version {family}: it is 4 or 6"
        raise ValueError(msg)
    return (
        (0x30, 0, 0, 6),  # ldb next header
        (0x15, 0, 5, _ICMPV6),
        (0x28, 0, 0, _IPV6_HEADER),  # ldh type and code
        (0x15, 0, 3, _ECHO_REQUEST[6]),
        (0x20, 0, 0, _IPV6_HEADER + _PATTERN_AT),  # ld
        (0x15, 0, 1, magic),
        accept,
        drop,
    )


def build_constant_echo_filter(family: Family) -> Program:
    """Return the kernel filter for what `read_constant_echo` reads: the first two words of that data are the same, and not 0."""
    accept, drop = (0x06, 0, 0, 0xFFFF), (0x06, 0, 0, 0)
    if family == 4:  # noqa: PLR2004
        return (
            (0x28, 0, 0, 6),
            (0x45, 12, 0, _IS_FRAGMENT),
            (0x30, 0, 0, 9),
            (0x15, 0, 10, _ICMP),
            (0xB1, 0, 0, 0),
            (0x50, 0, 0, 0),  # ldb the type, behind the header
            (0x15, 0, 7, _ECHO_REQUEST[4] >> 8),
            (0x40, 0, 0, _PATTERN_AT),  # ld, behind the header
            (0x15, 5, 0, 0),
            (0x02, 0, 0, 0),  # st
            (0x40, 0, 0, _PATTERN_AT + 4),
            (0x61, 0, 0, 0),  # ldx what was stored
            (0x1D, 0, 1, 0),  # jeq x
            accept,
            drop,
        )
    return (
        (0x30, 0, 0, 6),
        (0x15, 0, 9, _ICMPV6),
        (0x30, 0, 0, _IPV6_HEADER),
        (0x15, 0, 7, _ECHO_REQUEST[6] >> 8),
        (0x20, 0, 0, _IPV6_HEADER + _PATTERN_AT),
        (0x15, 5, 0, 0),
        (0x02, 0, 0, 0),
        (0x20, 0, 0, _IPV6_HEADER + _PATTERN_AT + 4),
        (0x61, 0, 0, 0),
        (0x1D, 0, 1, 0),
        accept,
        drop,
    )


def build_first_data_filter(family: Family, port: int) -> Program:
    """Return the kernel filter for what `read_first_data` reads: TCP to that port, data that begins with the magic."""
    magic = int.from_bytes(MAGIC)
    to_data = (
        (0x74, 0, 0, 4),  # rsh: the header's length is in the upper half, in words
        (0x64, 0, 0, 2),  # lsh: in bytes
        (0x0C, 0, 0, 0),  # add x
        (0x07, 0, 0, 0),  # tax
    )
    accept, drop = (0x06, 0, 0, 0xFFFF), (0x06, 0, 0, 0)
    if family == 4:  # noqa: PLR2004
        return (
            (0x28, 0, 0, 6),  # ldh flags and fragment offset
            (0x45, 13, 0, _IS_FRAGMENT),
            (0x30, 0, 0, 9),  # ldb protocol
            (0x15, 0, 11, _TCP),
            (0xB1, 0, 0, 0),  # ldx the header's length
            (0x48, 0, 0, 2),  # ldh the port, behind the header
            (0x15, 0, 8, port),
            (0x50, 0, 0, 12),  # ldb where the data begins, behind the header
            *to_data,
            (0x40, 0, 0, 0),  # ld the data
            (0x15, 0, 1, magic),
            accept,
            drop,
        )
    return (
        (0x30, 0, 0, 6),  # ldb next header
        (0x15, 0, 11, _TCP),
        (0x28, 0, 0, _IPV6_HEADER + 2),  # ldh the port
        (0x15, 0, 9, port),
        (0x01, 0, 0, _IPV6_HEADER),  # ldx the header's length
        (0x50, 0, 0, 12),
        *to_data,
        (0x40, 0, 0, 0),
        (0x15, 0, 1, magic),
        accept,
        drop,
    )


def _split_packet(packet: bytes, protocol4: int, protocol6: int) -> tuple[Address, Address, bytes] | None:
    """Return source, destination and what the IP header holds, for one protocol; None for anything else."""
    version = packet[0] >> 4 if packet else 0
    if version == 4:  # noqa: PLR2004 - the IP version
        return _split_ipv4(packet, protocol4)
    return _split_ipv6(packet, protocol6) if version == 6 else None  # noqa: PLR2004


def _split_ipv4(packet: bytes, wanted: int) -> tuple[Address, Address, bytes] | None:
    if len(packet) < _IPV4_SHORTEST:
        return None
    header, length = (packet[0] & 0xF) * 4, int.from_bytes(packet[2:4])
    fragment, protocol = int.from_bytes(packet[6:8]), packet[9]
    if fragment & _IS_FRAGMENT or protocol != wanted or not _IPV4_SHORTEST <= header <= length <= len(packet):
        return None
    return IPv4Address(packet[12:16]), IPv4Address(packet[16:20]), packet[header:length]


def _split_ipv6(packet: bytes, wanted: int) -> tuple[Address, Address, bytes] | None:
    end = _IPV6_HEADER + int.from_bytes(packet[4:6])
    if not _IPV6_HEADER <= end <= len(packet) or packet[6] != wanted:
        return None
    return IPv6Address(packet[8:24]), IPv6Address(packet[24:40]), packet[_IPV6_HEADER:end]


def _read_pattern(pattern: bytes, source: Address, destination: Address) -> EchoRequest | None:
    if len(pattern) != PATTERN_OCTETS:
        return None
    magic, run, peer_number, _ = _PATTERN.unpack(pattern)
    if magic != MAGIC or pattern[_CHECKED:] != _check(pattern[:_CHECKED]):
        return None
    return EchoRequest(source, destination, run, peer_number)


def _check(checked: bytes) -> bytes:
    return binascii.crc_hqx(checked, 0xFFFF).to_bytes(2)
