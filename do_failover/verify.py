"""Step 6: the proof. What arrived here, what the peers' kernels say, and what both mean.

The witness listens on this machine for the echo requests that the peers sent to the reserved IP,
each with the pattern of this run and this peer; with `probe = "tcp:PORT"` also for the same pattern as the first data of
a TCP connection that the peer made. Only an arrival proves that peer's path (I7, facts.md:
an old owner whose kernel still answers makes every other sign look healthy).

    evidence                                                   outcome
    the peer's echo request arrived here, and no later sign speaks against it   healed
    no SSH: not reachable / key or host key refused            unreachable / refused
    nothing can be witnessed here (the owner is elsewhere)     unproven
    the failover ended before it was refreshed                 unproven
    its ping can't carry the pattern (BusyBox)                 unproven  says so where its one byte came from the peer's address
    a reserved IP on its link, and its entry names another     stale
    the reserved IP answered, yet nothing arrived here         stale     somebody else answers: the old owner
    it accepted a TCP connection, whose data didn't arrive     stale     likewise
    it can ping this Droplet, but not the reserved IP          stale
    else: no ping came through at all, ICMP may be filtered    unproven  also where TCP is not permitted, or not accepted here
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from do_failover import echo
from do_failover.model import Neighbour, Peer, PeerOutcome, PeerResult

if TYPE_CHECKING:
    from do_failover.errors import PeerError


_MOST_BYTES_SEEN = 10_000  # whoever floods us with pings costs no memory


@dataclass(slots=True)
class Witness:
    """Collects the arrivals of one run."""

    run: bytes
    not_to: str | None = None
    arrivals: dict[int, str] = field(default_factory=dict)
    proofs: dict[int, str] = field(default_factory=dict)
    bytes_seen: set[tuple[str, int]] = field(default_factory=set)
    _watched: dict[int, asyncio.Future[None]] = field(default_factory=dict)

    def note_packet(self, packet: bytes) -> None:
        """Take a packet from the wire; what is not an echo request of this run is ignored.

        An echo request to this Droplet's own public address (`not_to`) proves nothing about the reserved IP.
        """
        self._note(echo.read_echo_request(packet), "icmp")

    def note_segment(self, packet: bytes, port: int) -> None:
        """Take a packet from the wire; what is not the first data of a peer's TCP connection to that port is ignored."""
        self._note(echo.read_first_data(packet, port), f"tcp:{port}")

    def note_constant_echo(self, packet: bytes) -> None:
        """Take a packet from the wire; of an echo request that carries one byte only, keep where it came from. It is no arrival."""
        seen = echo.read_constant_echo(packet)
        if seen is not None and str(seen.destination) != self.not_to and len(self.bytes_seen) < _MOST_BYTES_SEEN:
            self.bytes_seen.add((str(seen.source), seen.octet))

    def has_seen_byte(self, peer: Peer, source: str) -> bool:
        """Tell whether the last byte of this peer's pattern came from that address: weak evidence."""
        return (source, echo.build_pattern(self.run, peer.number)[-1]) in self.bytes_seen

    def _note(self, arrival: echo.EchoRequest | None, proof: str) -> None:
        if arrival is None or arrival.run != self.run or str(arrival.destination) == self.not_to:
            return
        self.arrivals.setdefault(arrival.peer_number, str(arrival.source))
        self.proofs.setdefault(arrival.peer_number, proof)
        watched = self._watched.get(arrival.peer_number)
        if watched is not None and not watched.done():
            watched.set_result(None)

    def watch_for(self, peer: Peer) -> asyncio.Future[None]:
        """Return what is done as soon as something of this peer has arrived: shared, so nobody cancels it."""
        watched = self._watched.get(peer.number)
        if watched is None:
            watched = self._watched[peer.number] = asyncio.get_running_loop().create_future()
            if self.has_seen(peer):
                watched.set_result(None)
        return watched

    def forget(self, peer: Peer) -> None:
        """Drop what was seen of a peer: a later sign spoke against it."""
        self.arrivals.pop(peer.number, None)
        self.proofs.pop(peer.number, None)
        self._watched.pop(peer.number, None)

    def has_seen(self, peer: Peer) -> bool:
        """Tell whether something of this peer has arrived."""
        return peer.number in self.arrivals


@dataclass(slots=True)
class PeerEvidence:
    """Everything that is known of one peer in this run; it grows as the steps go."""

    peer: Peer
    is_asked: bool = True
    can_be_witnessed: bool = True
    is_marked: bool = True
    is_weakly_seen: bool = False
    is_witnessed: bool = False
    on_link: bool | None = None
    neighbour: Neighbour | None = None
    expected_lladdr: str | None = None
    acknowledged: bool | None = None
    public_answered: bool | None = None
    reserved_answered: bool | None = None
    port: int | None = None  # where `probe` lets it be reached by TCP
    connected: bool | None = None  # by TCP: with whomever
    probe_error: PeerError | None = None
    proof: str | None = None
    measure: str | None = None
    attempts: int = 0
    duration_s: float = 0.0
    error: PeerError | None = None


_UNMARKED = "it was refreshed, but its ping can't carry the pattern (BusyBox): install iputils-ping there"
_WEAK = (
    "it was refreshed, and an echo request with one byte of its pattern came from its address: weak evidence, for its ping carries "
    "no more (BusyBox); install iputils-ping there, or set peers.probe"
)


def judge_peer(evidence: PeerEvidence, reserved_ip: str) -> PeerResult:
    """Return the peer's row: the table above, first match wins."""
    outcome, sentence = _judge(evidence, reserved_ip)
    return PeerResult(
        host=evidence.peer.host,
        outcome=outcome,
        on_link=evidence.on_link,
        neighbour=evidence.neighbour,
        acknowledged=evidence.acknowledged,
        witnessed=evidence.is_witnessed,
        duration_s=round(evidence.duration_s, 4),
        attempts=evidence.attempts,
        error=sentence,
        proof=evidence.proof if evidence.is_witnessed else None,
        measure=evidence.measure if evidence.is_witnessed else None,
    )


def _judge(evidence: PeerEvidence, reserved_ip: str) -> tuple[PeerOutcome, str | None]:
    if evidence.is_witnessed:
        return PeerOutcome.HEALED, None
    if not evidence.is_asked:
        return PeerOutcome.SKIPPED, None
    error = evidence.error
    if error is not None and error.kind != "command":
        outcome = PeerOutcome.UNREACHABLE if error.kind == "unreachable" else PeerOutcome.REFUSED
        return outcome, error.message
    if not evidence.can_be_witnessed:
        return PeerOutcome.UNPROVEN, "the owner is another Droplet: its arrivals can't be witnessed from here"
    if evidence.attempts == 0:
        return PeerOutcome.UNPROVEN, error.message if error is not None else "the failover ended before this peer was refreshed"
    if not evidence.is_marked and evidence.port is None:
        return PeerOutcome.UNPROVEN, _WEAK if evidence.is_weakly_seen else _UNMARKED
    return _judge_silence(evidence, reserved_ip)


def _judge_silence(evidence: PeerEvidence, reserved_ip: str) -> tuple[PeerOutcome, str | None]:
    """Say what it means that a peer was refreshed and nothing of it arrived."""
    error = evidence.error
    if has_foreign_entry(evidence, reserved_ip):
        entry = evidence.neighbour
        held = entry.lladdr if entry is not None else None
        kind = " (permanent: remove it on the peer)" if entry is not None and entry.nud == "PERMANENT" else ""
        return PeerOutcome.STALE, f"its neighbour entry of {reserved_ip} names {held}{kind}, not this Droplet"
    if evidence.reserved_answered and evidence.is_marked:
        return PeerOutcome.STALE, f"{reserved_ip} answers it, but its echo requests don't arrive here: the old owner answers"
    if evidence.connected:
        where = f"{reserved_ip} port {evidence.port}"
        return PeerOutcome.STALE, f"{where} accepts its connection, but what it sends there doesn't arrive here: the old owner answers"
    probe = _describe_probe(evidence, reserved_ip)
    if evidence.public_answered and evidence.is_marked:
        sentence = f"it reaches this Droplet, but its echo requests to {reserved_ip} don't arrive here"
        return PeerOutcome.STALE, f"{sentence}; {probe}" if probe is not None else sentence
    if error is not None:
        return PeerOutcome.UNPROVEN, error.message
    if probe is not None:
        pings = "none of its echo requests arrived here" if evidence.is_marked else "its ping can't carry the pattern (BusyBox)"
        return PeerOutcome.UNPROVEN, f"{pings}; {probe}"
    return (
        PeerOutcome.UNPROVEN,
        f"none of its echo requests arrived here; is ICMP filtered, or ping not permitted there? ({reserved_ip})",
    )


def _describe_probe(evidence: PeerEvidence, reserved_ip: str) -> str | None:
    """Say why the TCP connection shows nothing; None where none was tried."""
    if evidence.probe_error is not None:
        return evidence.probe_error.message
    if evidence.connected is False:
        return f"nobody accepts its connection to {reserved_ip} port {evidence.port}: does anything listen there?"
    return None


def has_foreign_entry(evidence: PeerEvidence, reserved_ip: str) -> bool:
    """Tell whether the reserved IP is on the peer's link and its entry names somebody else than this Droplet."""
    entry = evidence.neighbour
    return (
        bool(evidence.on_link)
        and entry is not None
        and entry.address == reserved_ip
        and entry.lladdr is not None
        and evidence.expected_lladdr is not None
        and entry.lladdr.lower() != evidence.expected_lladdr.lower()
    )
