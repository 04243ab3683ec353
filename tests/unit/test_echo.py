"""The witness's pattern: built, found in echo requests, and found by the kernel's filter."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_RR
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6, IPv6ExtHdrHopByHop

from do_failover import echo
from tests.kernel_filter import passes

RUN = bytes(range(1, 9))
PATTERN = echo.build_pattern(RUN, 7)
TIMEVAL = bytes(16)
DATA = TIMEVAL + PATTERN * 2 + PATTERN[:8]  # what iputils' ping sends with its default of 56 bytes
SOURCE, DESTINATION = "198.18.0.101", "10.17.0.5"
SOURCE6, DESTINATION6 = "fd00:18::101", "fd00:18::12"

runs = st.binary(min_size=8, max_size=8)
numbers = st.integers(0, 0xFFFF)


def request4(data: bytes = DATA, **ip: Any) -> bytes:
    """Return an IPv4 echo request made by scapy; fields of the IP header may differ."""
    return bytes(IP(**{"src": SOURCE, "dst": DESTINATION} | ip) / ICMP(type=8) / data)


def request6(data: bytes = DATA, **ip: Any) -> bytes:
    """Return an IPv6 echo request made by scapy."""
    return bytes(IPv6(**{"src": SOURCE6, "dst": DESTINATION6} | ip) / ICMPv6EchoRequest(data=data))


@given(run=runs, number=numbers)
def test_a_pattern_names_its_run_and_peer_and_nothing_else(run: bytes, number: int) -> None:
    pattern = echo.build_pattern(run, number)
    assert len(pattern) == 16
    assert pattern[:4] == b"dofo"
    assert bytes.fromhex(echo.format_pattern(pattern)) == pattern
    expected4 = echo.EchoRequest(IPv4Address(SOURCE), IPv4Address(DESTINATION), run, number)
    expected6 = echo.EchoRequest(IPv6Address(SOURCE6), IPv6Address(DESTINATION6), run, number)
    assert echo.read_echo_request(request4(TIMEVAL + pattern)) == expected4
    assert echo.read_echo_request(request6(TIMEVAL + pattern)) == expected6


@given(place=st.integers(0, 15), flip=st.integers(1, 255))
def test_one_wrong_octet_and_it_does_not_count(place: int, flip: int) -> None:
    wrong = bytearray(PATTERN)
    wrong[place] ^= flip
    assert echo.read_echo_request(request4(TIMEVAL + wrong)) is None
    assert echo.read_echo_request(request6(TIMEVAL + wrong)) is None


@pytest.mark.parametrize(("run", "number"), [(b"", 1), (bytes(7), 1), (bytes(9), 1), (RUN, -1), (RUN, 65536)])
def test_a_pattern_takes_what_fits(run: bytes, number: int) -> None:
    with pytest.raises(ValueError, match="a pattern takes"):
        echo.build_pattern(run, number)


def test_options_padding_and_dont_fragment_are_fine() -> None:
    for packet in (
        request4(options=[IPOption_RR(length=39)]),
        request4(flags="DF"),
        request4() + bytes(18),
        request4(TIMEVAL + PATTERN),
        request4(DATA + bytes(900)),
    ):
        found = echo.read_echo_request(packet)
        assert found is not None
        assert found.peer_number == 7
        assert passes(echo.build_echo_filter(4), packet)
    assert echo.read_echo_request(request6() + bytes(18)) is not None


OTHERS4 = (
    request4(flags="MF"),
    request4(frag=3),
    request4(proto=17),
    bytes(IP() / ICMP(type=0) / DATA),
    bytes(IP() / ICMP(type=8, code=1) / DATA),
    bytes(IP() / UDP() / DATA),
    request4(PATTERN * 2),  # ping -s below 16 has no timeval: the pattern is somewhere else
    request4(PATTERN + TIMEVAL),
    request4(b""),
)
OTHERS6 = (
    request6(nh=17),
    bytes(IPv6() / ICMPv6EchoReply(data=DATA)),
    bytes(IPv6() / IPv6ExtHdrHopByHop() / ICMPv6EchoRequest(data=DATA)),
    request6(b""),
)
CUT_OFF = (
    request4(DATA[:31]),
    request6(DATA[:31]),
    request4()[:-1],
    request6()[:-1],
    request4(len=40),
    request4(len=2000),
    request4(ihl=4),
    request6(plen=20),
    request6(plen=2000),
    request4(version=5),
    request4(version=6),
    b"",
    b"E",
    b"`",
    request4()[:19],
    request6()[:39],
)


@pytest.mark.parametrize("packet", [*OTHERS4[:6], *OTHERS4[7:], *OTHERS6, *CUT_OFF])
def test_anything_else_is_no_echo_request_of_ours(packet: bytes) -> None:
    assert echo.read_echo_request(packet) is None


@pytest.mark.parametrize("packet", [*OTHERS4[:6], *OTHERS4[7:], *OTHERS6])
def test_the_kernel_filter_drops_all_others(packet: bytes) -> None:
    assert not passes(echo.build_echo_filter(4), packet)
    assert not passes(echo.build_echo_filter(6), packet)


def test_the_kernel_filter_passes_ours() -> None:
    assert passes(echo.build_echo_filter(4), request4())
    assert passes(echo.build_echo_filter(6), request6())
    with pytest.raises(ValueError, match="4 or 6"):
        echo.build_echo_filter(10)  # type: ignore[arg-type]  # AF_INET6, the likely slip


@given(place=st.integers(0, 103), octet=st.integers(0, 255), noise=st.binary(max_size=120))
def test_whatever_is_read_passes_the_filter_and_noise_raises_nothing(place: int, octet: int, noise: bytes) -> None:
    echo.read_echo_request(noise)
    for packet, family in ((bytearray(request4()), 4), (bytearray(request6()), 6)):
        packet[place % len(packet)] = octet
        if echo.read_echo_request(bytes(packet)) is not None:
            assert passes(echo.build_echo_filter(4 if family == 4 else 6), bytes(packet))


# -- the first data of a TCP connection

PORT = 443


def segment4(data: bytes = PATTERN, ip: dict[str, Any] | None = None, **tcp: Any) -> bytes:
    """Return a TCP segment made by scapy; fields of its headers may differ."""
    return bytes(IP(**{"src": SOURCE, "dst": DESTINATION} | (ip or {})) / TCP(**{"dport": PORT, "flags": "PA"} | tcp) / data)


def segment6(data: bytes = PATTERN, **tcp: Any) -> bytes:
    return bytes(IPv6(src=SOURCE6, dst=DESTINATION6) / TCP(**{"dport": PORT, "flags": "PA"} | tcp) / data)


@given(run=runs, number=numbers, more=st.binary(max_size=40))
def test_first_data_names_its_run_and_peer(run: bytes, number: int, more: bytes) -> None:
    pattern = echo.build_pattern(run, number)
    expected4 = echo.EchoRequest(IPv4Address(SOURCE), IPv4Address(DESTINATION), run, number)
    expected6 = echo.EchoRequest(IPv6Address(SOURCE6), IPv6Address(DESTINATION6), run, number)
    assert echo.read_first_data(segment4(pattern + more), PORT) == expected4
    assert echo.read_first_data(segment6(pattern + more), PORT) == expected6


WITH_OPTIONS = (
    segment4(options=[("NOP", None), ("NOP", None), ("Timestamp", (1, 2))]),
    segment4(options=[("MSS", 1460)] * 10),
    segment4(ip={"options": [IPOption_RR(length=39)]}),
    segment4(ip={"flags": "DF"}) + bytes(6),
    segment4(flags="A"),
    segment4(flags="FPA"),
)


@pytest.mark.parametrize("packet", [*WITH_OPTIONS, segment6(options=[("Timestamp", (1, 2))])])
def test_first_data_behind_options_is_read_and_passes(packet: bytes) -> None:
    assert echo.read_first_data(packet, PORT) is not None
    assert passes(echo.build_first_data_filter(6 if packet[0] >> 4 == 6 else 4, PORT), packet)


DROPPED = (
    segment4(b"", flags="S"),  # a SYN names nobody
    segment4(b"", flags="A"),
    segment4(dport=80),
    segment4(dport=80, sport=PORT),
    segment4(b"GET / HTTP/1.1\r\n\r\n" + PATTERN),
    segment4(b"\0" + PATTERN),
    segment4(ip={"flags": "MF"}),
    segment4(ip={"frag": 3}),
    segment4(ip={"proto": 17}),
    segment6(b"", flags="S"),
    segment6(dport=80),
    segment6(b"\0" + PATTERN),
    request4(),
    request6(),
)
UNREAD = (
    segment4(flags="S"),
    segment4(flags="SA"),
    segment4(PATTERN[:15]),
    segment4(PATTERN[:14] + b"??"),
    segment4()[:-1],
    segment6()[:-1],
    segment4(dataofs=4),
    segment4(ip={"len": 40}),
    b"",
)


@pytest.mark.parametrize("packet", [*DROPPED, *UNREAD])
def test_anything_else_is_no_first_data_of_ours(packet: bytes) -> None:
    assert echo.read_first_data(packet, PORT) is None


@pytest.mark.parametrize("packet", DROPPED)
def test_the_kernel_keeps_other_segments_away(packet: bytes) -> None:
    assert not passes(echo.build_first_data_filter(6 if packet[0] >> 4 == 6 else 4, PORT), packet)


@given(place=st.integers(0, 79), octet=st.integers(0, 255), noise=st.binary(max_size=120))
def test_whatever_first_data_is_read_passes_the_filter(place: int, octet: int, noise: bytes) -> None:
    echo.read_first_data(noise, PORT)
    for packet, family in ((bytearray(segment4()), 4), (bytearray(segment6()), 6)):
        packet[place % len(packet)] = octet
        if echo.read_first_data(bytes(packet), PORT) is not None:
            assert passes(echo.build_first_data_filter(4 if family == 4 else 6, PORT), bytes(packet))


# -- one byte over and over


@pytest.mark.parametrize("octet", [1, 0x5A, 0xFF])
@pytest.mark.parametrize("length", [32, 56, 1400])
def test_a_byte_over_and_over_is_read_and_passes(octet: int, length: int) -> None:
    data = bytes(4) + bytes([octet]) * (length - 4)
    assert echo.read_constant_echo(request4(data)) == echo.ConstantEcho(IPv4Address(SOURCE), IPv4Address(DESTINATION), octet)
    assert echo.read_constant_echo(request6(data)) == echo.ConstantEcho(IPv6Address(SOURCE6), IPv6Address(DESTINATION6), octet)
    assert passes(echo.build_constant_echo_filter(4), request4(data))
    assert passes(echo.build_constant_echo_filter(6), request6(data))


NOT_CONSTANT = (
    request4(bytes(56)),
    request4(TIMEVAL + bytes(range(40))),
    request4(),
    request6(),
    request6(bytes(56)),
    bytes(IP() / ICMP(type=0) / (b"Z" * 56)),
    request4(b"Z" * 56, flags="MF"),
    segment4(b"Z" * 56),
    request4(b"Z" * 20),
)


@pytest.mark.parametrize("packet", [*NOT_CONSTANT, request4(b"Z" * 31), request4(b"Z" * 55 + b"Y"), request4(b"Z" * 56)[:-1], b""])
def test_all_else_is_no_constant_echo(packet: bytes) -> None:
    assert echo.read_constant_echo(packet) is None


@pytest.mark.parametrize("packet", NOT_CONSTANT)
def test_the_kernel_keeps_all_else_away(packet: bytes) -> None:
    assert not passes(echo.build_constant_echo_filter(6 if packet[0] >> 4 == 6 else 4), packet)
