"""What proves a peer's path, and how long and by which measures that proof is sought, in virtual time."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from do_failover import echo, frames, verify
from do_failover.errors import PeerError
from do_failover.model import Outcome, PeerOutcome
from do_failover.report import render_lines
from tests.story import ANCHOR, IP, ME, PUBLIC, Region, echo_request, first_data, tell

if TYPE_CHECKING:
    from collections.abc import Callable

    from do_failover.model import Peer

PORT = 443
FORBIDDEN = PeerError("app1: its sshd does not permit it", kind="command")


@dataclass
class Filtered(Region):
    """ICMP to the reserved IP comes through for nobody; a shell that can let peers connect by TCP."""

    tcp: str = "listens"  # here; or: closed, old (the old owner accepts), forbidden
    probes: list[tuple[str, str, bytes]] = field(default_factory=list)
    passes_icmp: bool = False

    def _ping(self, peer: Peer, command: str) -> str:
        answer = super()._ping(peer, command)
        return answer if self.passes_icmp else re.sub(r"reserved\n0", "reserved\n1", answer)

    def listen(self, ethertype: int, program: Any, note: Callable[[bytes], None], *, is_raw: bool = False) -> None:
        def note_passed(packet: bytes) -> None:
            if packet[9] != 1:
                note(packet)

        super().listen(ethertype, program, note if is_raw or self.passes_icmp else note_passed, is_raw=is_raw)

    async def probe_tcp(self, peer: Peer, address: str, port: int, data: bytes) -> bool:
        self.probes.append((peer.host, address, data))
        await asyncio.sleep(0.02)
        if self.tcp == "forbidden":
            raise FORBIDDEN
        if address == IP and self.tcp == "listens" and peer.host in self.healed:
            segment = first_data(f"198.18.1.{peer.number + 1}", ANCHOR, port, data)
            for ethertype, is_raw, note in list(self.notes):
                if ethertype == 0x0800 and not is_raw:
                    note(segment)
        return self.tcp != "closed"


def test_where_icmp_is_filtered_the_first_data_of_a_connection_proves() -> None:
    region = Filtered()
    told = tell(region, probe_port=PORT)
    assert told.report.outcome is Outcome.DONE
    assert {(peer.outcome, peer.proof, peer.attempts) for peer in told.report.peers} == {(PeerOutcome.HEALED, "tcp:443", 1)}
    assert [address for host, address, _ in region.probes if host == "app1"] == [PUBLIC, IP]
    assert any("what it sent by TCP (tcp:443) arrived here" in line.text for line in render_lines(told.report))


def test_an_echo_request_still_proves_and_nothing_else_is_claimed() -> None:
    told = tell(Filtered(passes_icmp=True, tcp="closed"), probe_port=PORT)
    assert {(peer.outcome, peer.proof) for peer in told.report.peers} == {(PeerOutcome.HEALED, "icmp")}
    assert {(peer.proof, peer.measure) for peer in tell(Region()).report.peers} == {("icmp", "try 1: directed ARP, ping")}


@pytest.mark.parametrize(
    ("tcp", "outcome", "part"),
    [
        ("closed", PeerOutcome.STALE, f"don't arrive here; nobody accepts its connection to {IP} port 443"),
        ("old", PeerOutcome.STALE, "port 443 accepts its connection, but what it sends there doesn't arrive here: the old owner answers"),
        ("forbidden", PeerOutcome.STALE, f"don't arrive here; {FORBIDDEN.message}"),
    ],
)
def test_without_an_arrival_nothing_is_proven(tcp: str, outcome: PeerOutcome, part: str) -> None:
    row = tell(Filtered(tcp=tcp), probe_port=PORT).report.peers[0]
    assert (row.outcome, row.proof, row.measure) == (outcome, None, None)
    assert part in (row.error or "")


@pytest.mark.parametrize(
    ("tcp", "part"),
    [("closed", f"nobody accepts its connection to {IP} port 443"), ("forbidden", FORBIDDEN.message)],
)
def test_where_no_ping_is_answered_the_row_says_what_tcp_lacks(tcp: str, part: str) -> None:
    row = tell(Filtered(tcp=tcp, answers_pings=False), probe_port=PORT).report.peers[0]
    assert row.outcome is PeerOutcome.UNPROVEN
    assert part in (row.error or "")


def test_a_peer_whose_ping_carries_no_pattern_is_proven_by_tcp() -> None:
    told = tell(Filtered(busybox=frozenset({"app1"})), probe_port=PORT)
    assert (told.report.peers[0].outcome, told.report.peers[0].proof) == (PeerOutcome.HEALED, "tcp:443")
    for passes_icmp in (False, True):  # an answer to pings that name nobody is no sign of an old owner
        region = Filtered(busybox=frozenset({"app1"}), tcp="closed", passes_icmp=passes_icmp)
        silent = tell(region, probe_port=PORT).report.peers[0]
        assert silent.outcome is PeerOutcome.UNPROVEN
        assert "(BusyBox); nobody accepts" in (silent.error or "")


def test_a_shell_that_knows_no_tcp_is_used_as_before() -> None:
    told = tell(Region(busybox=frozenset({"app2"})), probe_port=PORT)
    assert [(peer.outcome, peer.proof) for peer in told.report.peers[::2]] == [(PeerOutcome.HEALED, "icmp")] * 2
    assert "BusyBox" in (told.report.peers[1].error or "")


def test_what_counts_as_an_arrival_of_this_run() -> None:
    run, other = b"run-0001", b"run-0002"
    witness = verify.Witness(run, not_to=PUBLIC)
    pattern = echo.build_pattern(run, 0)
    for data in (b"", b"\x16\x03\x01" + bytes(40), b"GET / HTTP/1.1\r\n\r\n", echo.build_pattern(other, 0), pattern[:12]):
        witness.note_segment(first_data("198.18.1.1", ANCHOR, PORT, data), PORT)
    witness.note_segment(first_data("198.18.1.1", ANCHOR, 80, pattern), PORT)
    witness.note_segment(first_data("198.18.1.1", PUBLIC, PORT, pattern), PORT)  # to this Droplet's own address
    assert (witness.arrivals, witness.proofs) == ({}, {})
    witness.note_segment(first_data("198.18.1.1", ANCHOR, PORT, pattern), PORT)
    witness.note_packet(echo_request("198.18.1.2", ANCHOR, echo.build_pattern(run, 1)))
    assert witness.proofs == {0: "tcp:443", 1: "icmp"}


# -- growing measures


@dataclass
class Slow(Region):
    """The network learns from a peer's n-th ping of the public address only."""

    learns_at: dict[str, int] = field(default_factory=dict)
    pinged: dict[str, int] = field(default_factory=dict)
    late: dict[str, float] = field(default_factory=dict)  # when the echo request of the first try arrives here

    def _ping(self, peer: Peer, command: str) -> str:
        self.pinged[peer.host] = self.pinged.get(peer.host, 0) + 1
        is_ready = self.pinged[peer.host] >= self.learns_at.get(peer.host, 1)
        return super()._ping(peer, command if is_ready else command.replace(PUBLIC, "198.18.0.99"))


def tries_of(region: Region, host: str) -> list[float]:
    return [at for at, name, command in region.commands if name == host and "reserved" in command]


@pytest.mark.parametrize(
    ("at", "measure"),
    [
        (1, "try 1: directed ARP, ping"),
        (2, "try 2: directed ARP again, ping again"),
        (3, "try 3: announced to all again, directed ARP again, ping again"),
        (5, "try 5: announced to all again, directed ARP again, ping again"),
    ],
)
def test_measures_grow_and_the_row_says_what_worked(at: int, measure: str) -> None:
    told = tell(Slow(learns_at={"app1": at}, on_link=frozenset({"app1"})))
    first, *others = told.report.peers
    assert (first.outcome, first.attempts, first.measure) == (PeerOutcome.HEALED, at, measure)
    assert {(peer.attempts, peer.measure) for peer in others} == {(1, "try 1: directed ARP, ping")}
    assert all(peer.duration_s < 0.5 for peer in others)
    assert told.report.outcome is Outcome.DONE


def test_a_row_shows_its_measure_only_where_the_first_try_failed() -> None:
    shown = [line.text for line in render_lines(tell(Slow(learns_at={"app1": 2})).report) if "    app" in line.text]
    assert ["healed at try 2: directed ARP again, ping again" in line for line in shown] == [True, False, False]


def test_a_hopeless_peer_costs_ten_seconds_at_most_with_pauses_that_grow() -> None:
    told = tell(Slow(is_stubborn=frozenset({"app1"})), deadline_s=60.0)
    row, times = told.report.peers[0], tries_of(told.region, "app1")
    assert (row.outcome, row.attempts) == (PeerOutcome.STALE, len(times))
    assert len(times) >= 5
    gaps = [second - first for first, second in pairwise(times)]
    assert all(longer >= shorter - 1e-6 for shorter, longer in pairwise(gaps))
    assert times[-1] - times[0] <= 10.0
    assert told.ended_s <= 1.0 + 12.0
    assert [peer.attempts for peer in told.report.peers[1:]] == [1, 1]
    assert announced_at(told.region)[-1] == pytest.approx(times[-1])


def announced_at(region: Region) -> list[float]:
    """When all addresses were announced to everybody: the reply form is used for nothing else."""
    replies = ["ARP reply" in frames.describe_frame(frame) for frame in region.frames]
    return [at for at, is_reply in zip(region.frame_times, replies, strict=True) if is_reply]


def test_a_hundred_hopeless_peers_share_the_broadcasts() -> None:
    one, many = (tell(Region(is_stubborn=frozenset(f"app{n}" for n in range(1, 101))), peers=peers) for peers in (1, 100))
    counts = [len(announced_at(told.region)) for told in (one, many)]
    assert counts[0] == counts[1] > 3


def test_no_try_is_begun_that_the_deadline_would_cut_off() -> None:
    told = tell(Region(action_s=0.1, is_stubborn=frozenset({"app1"})), deadline_s=4.0)
    assert told.ended_s < 4.0
    assert told.report.peers[0].outcome is PeerOutcome.STALE
    assert told.report.peers[0].attempts >= 3
    assert not any("deadline" in warning for warning in told.report.warnings)


def test_a_permanent_entry_is_not_waited_for() -> None:
    region = Region(on_link=frozenset({"app1"}), entries={"app1": ["02:00:00:00:00:0b"]}, nud="PERMANENT")
    row = tell(region).report.peers[0]
    assert (row.outcome, row.attempts) == (PeerOutcome.STALE, 3)
    assert "permanent" in (row.error or "")


def test_looking_alone_is_not_repeated_for_long() -> None:
    told = tell(Region(owner=ME, is_stubborn=frozenset({"app1"})), event=None, steps=frozenset({"verify"}))
    assert told.report.peers[0].attempts == 3
    assert told.ended_s < 1.5


# -- weaker than proof


@dataclass
class OneByte(Region):
    """BusyBox peers: their pings carry the last byte of the pattern."""

    source: str | None = None  # where those pings come from; None: the peer's own address

    def _ping(self, peer: Peer, command: str) -> str:
        answer = super()._ping(peer, command)
        octet = re.search(r"-p '?([0-9a-f]{2})'", command)
        assert octet is not None
        if peer.host in self.busybox and peer.host in self.healed:
            packet = echo_request(self.source or f"198.18.1.{peer.number + 1}", ANCHOR, bytes.fromhex(octet[1]) * 16)
            for ethertype, is_raw, note in list(self.notes):
                if ethertype == 0x0800 and not is_raw:
                    note(packet)
        return answer.replace("plain", "byte")


def test_one_byte_from_the_peers_address_is_said_and_is_no_proof() -> None:
    row = tell(OneByte(busybox=frozenset({"app2"}))).report.peers[1]
    assert (row.outcome, row.witnessed, row.proof, row.attempts) == (PeerOutcome.UNPROVEN, False, None, 1)
    assert "weak evidence" in (row.error or "")


@pytest.mark.parametrize(
    "region",
    [
        OneByte(busybox=frozenset({"app2"}), is_stubborn=frozenset({"app2"})),  # nothing arrived
        OneByte(busybox=frozenset({"app2"}), source="198.18.1.77"),  # from somewhere else
        OneByte(busybox=frozenset({"app2"}), route_sources={"app1": "10.0.0.9", "app2": "10.0.0.9"}, source="10.0.0.9"),  # shared
    ],
)
def test_without_that_not_even_weak_evidence_is_claimed(region: Region) -> None:
    row = tell(region).report.peers[1]
    assert row.outcome is PeerOutcome.UNPROVEN
    assert "weak" not in (row.error or "")


def test_a_flood_of_pings_costs_no_memory() -> None:
    witness = verify.Witness(b"run-0001")
    for number in range(20_000):
        witness.note_constant_echo(echo_request(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", ANCHOR, b"Z" * 16))
    assert len(witness.bytes_seen) == 10_000
