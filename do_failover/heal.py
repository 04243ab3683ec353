"""One peer's part of the story: it is told, made to ping, and watched for, until the proof is there.

Measures grow from try to try:

    1, 2    directed ARP or NS, where it shares the link; it pings the public address, then the reserved IP
    3       at once, and all addresses are announced to everybody again (once a second for all peers together)
    4 ...   the same, after 0.5 s, 1 s, 2 s ...

A peer is given up at the story's deadline, or _PATIENCE_S after its first try. The bound is ours: what ten seconds of
trying didn't mend, the sixtieth won't, and the report, which says whom to look at, shall not wait for it; the daemon
tries those peers again while the IP is here. Where nothing is done but looking (`verify`), and where a permanent entry
stands, which nothing from here changes, it is three tries.

Guarantee: whatever one peer does or fails to do ends in its own evidence, and delays no other (I7).
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from do_failover import echo, frames, refresh
from do_failover.errors import PeerError
from do_failover.verify import has_foreign_entry

if TYPE_CHECKING:
    from collections.abc import Iterable

    from do_failover.announce import Announcer
    from do_failover.clock import Clock, Deadline
    from do_failover.model import Peer
    from do_failover.verify import PeerEvidence, Witness

_PATIENCE_S = 10.0
_QUICK_TRIES = 3
_FIRST_PAUSE_S = 0.5
_LEAST_TRY_S = 1.0  # a try needs as long: none is begun that the deadline would cut off
_PUBLIC_PROBE_S = 1.0
_LATE_ARRIVAL_S = 0.2  # how long after its pings a peer's echo request may still be under way


@dataclass(frozen=True, slots=True)
class Healer:
    """What all peers of one run share.

    `announcer` is None where nothing may be announced, `public` where the owner's public address is not
    known; `can_prove` is false where arrivals can't be witnessed, for the owner is another Droplet. `probe_port`:
    where peers also connect to by TCP, through their sshd, if the shell can do that.
    """

    clock: Clock
    shell: refresh.PeerShell
    witness: Witness
    announcer: Announcer | None
    lladdr: bytes | None
    address: str
    public: str | None
    can_prove: bool
    is_public_pinged: bool
    deadline: Deadline
    probe_port: int | None = None
    sources: dict[Peer, str] = field(default_factory=dict)
    kinds: dict[Peer, str] = field(default_factory=dict)  # of its ping
    seen_as: dict[Peer, str] = field(default_factory=dict)  # the address that its packets to the reserved IP come from

    async def heal(self, evidence: PeerEvidence, looking: asyncio.Task[refresh.PeerView]) -> None:
        """Refresh one peer until something of it has arrived here, or the tries are over."""
        evidence.is_asked, evidence.can_be_witnessed = True, self.can_prove
        started = self.clock.now()
        try:
            self._note_view(evidence, await looking)
            await self._try_until_proven(evidence, started)
        except PeerError as error:
            evidence.error = error
        finally:
            evidence.duration_s = evidence.duration_s or self.clock.now() - started
            evidence.is_witnessed = self.can_prove and self.witness.has_seen(evidence.peer)
            evidence.is_weakly_seen = self._is_weakly_seen(evidence.peer)
            evidence.proof = self.witness.proofs.get(evidence.peer.number)
            self._note_acknowledgement(evidence)

    async def _try_until_proven(self, evidence: PeerEvidence, started: float) -> None:
        patience = self.deadline.no_later_than(_PATIENCE_S)
        while True:
            evidence.attempts += 1
            evidence.measure = self._announce_to(evidence)
            await self._take_try(evidence, started)
            if not evidence.can_be_witnessed or not (evidence.is_marked or evidence.port):
                return
            if has_foreign_entry(evidence, self.address):
                self.witness.forget(evidence.peer)  # the entry went back to the old owner: what was seen is no proof any more
            elif self.witness.has_seen(evidence.peer):
                return
            pause_s = _find_pause(evidence.attempts)
            if self._is_hopeless(evidence) or patience.remaining_s() < pause_s + _LEAST_TRY_S:
                return
            await self._pause(evidence.peer, pause_s)

    def _is_weakly_seen(self, peer: Peer) -> bool:
        """Tell whether one byte of its pattern came from its address, which no other peer has."""
        source = self.seen_as.get(peer)
        return source is not None and list(self.seen_as.values()).count(source) == 1 and self.witness.has_seen_byte(peer, source)

    def _is_hopeless(self, evidence: PeerEvidence) -> bool:
        entry = evidence.neighbour
        is_permanent = entry is not None and entry.nud == "PERMANENT" and has_foreign_entry(evidence, self.address)
        return evidence.attempts >= _QUICK_TRIES and (is_permanent or not self.is_public_pinged)

    async def _pause(self, peer: Peer, pause_s: float) -> None:
        """Wait before the next try, which begins at once when something late arrives: its entry is to be read then."""
        if not pause_s:
            return
        sleeping = asyncio.ensure_future(self.clock.sleep(pause_s))
        try:
            await asyncio.wait([sleeping, self.witness.watch_for(peer)], return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel_all([sleeping])

    async def _take_try(self, evidence: PeerEvidence, started: float) -> None:
        try:
            await self._refresh(evidence)
            evidence.duration_s = self.clock.now() - started
            await self._read_neighbour(evidence)
        except asyncio.CancelledError:
            if not self.witness.has_seen(evidence.peer):
                evidence.attempts -= 1  # the try that was cut off tells nothing
            raise

    def _note_view(self, evidence: PeerEvidence, view: refresh.PeerView) -> None:
        if view.kind is not None:
            self.kinds[evidence.peer] = view.kind
        if view.route_to_reserved is not None:
            evidence.on_link = view.route_to_reserved.is_on_link
            if view.route_to_reserved.source is not None:
                self.seen_as[evidence.peer] = view.route_to_reserved.source
        evidence.expected_lladdr = frames.format_lladdr(self.lladdr) if self.lladdr is not None else None
        source = _find_link_address(view)
        if source is not None:
            self.sources[evidence.peer] = source
        if evidence.on_link and self.announcer is not None:
            self.announcer.include(self.address)

    def _announce_to(self, evidence: PeerEvidence) -> str:
        """Send the directed frames to a peer on the same link, from the third try on also to all; return this try's measures.

        The peer's address on the link is known from its routes.
        """
        again = " again" if evidence.attempts > 1 else ""
        measures = [f"ping{again}"] + ([f"TCP{again}"] if self.probe_port is not None else [])
        source = self.sources.get(evidence.peer)
        if self.announcer is not None and source is not None:
            told = self.public is not None and self.announcer.announce_to(self.public, source)
            if evidence.on_link:
                told |= self.announcer.announce_to(self.address, source)
            if told:
                measures.insert(0, f"directed {'NS' if ':' in source else 'ARP'}{again}")
        if self.announcer is not None and evidence.attempts >= _QUICK_TRIES and self.announcer.announce_again(self.clock.now()):
            measures.insert(0, "announced to all again")
        return f"try {evidence.attempts}: {', '.join(measures)}"

    async def _refresh(self, evidence: PeerEvidence) -> None:
        """Take one try: the peer pings; done as soon as something of it has arrived here."""
        peer, public = evidence.peer, self.public if self.is_public_pinged else None
        pattern = echo.build_pattern(self.witness.run, peer.number)
        kind = self.kinds.get(peer)
        pinging = refresh.refresh_peer(self.shell, peer, public, self.address, pattern=echo.format_pattern(pattern), kind=kind)
        refreshing = asyncio.create_task(pinging)
        work: list[asyncio.Task[Any]] = [refreshing]
        if self.probe_port is not None and self.can_prove and isinstance(self.shell, refresh.TcpProber):
            work.append(asyncio.create_task(self._probe(self.shell, self.probe_port, evidence, public, pattern)))
        arrival = self.witness.watch_for(peer)
        try:
            while not arrival.done() and (under_way := [task for task in work if not task.done()]):
                await asyncio.wait([arrival, *under_way], return_when=asyncio.FIRST_COMPLETED)
            if not arrival.done():
                echoes = await refreshing
                evidence.public_answered, evidence.reserved_answered = echoes.public_answered, echoes.reserved_answered
                evidence.is_marked = echoes.is_marked
                await self._pause(peer, _LATE_ARRIVAL_S)
        finally:
            await cancel_all(work)
            evidence.is_witnessed = self.can_prove and self.witness.has_seen(peer)

    async def _probe(self, shell: refresh.TcpProber, port: int, evidence: PeerEvidence, public: str | None, pattern: bytes) -> None:
        """Let the peer connect by TCP too: to the public address, which makes the network learn, then to the reserved IP."""
        evidence.port = port
        if public is not None:
            with contextlib.suppress(PeerError, TimeoutError):  # a refusal is told by the next one
                async with asyncio.timeout(_PUBLIC_PROBE_S):
                    await shell.probe_tcp(evidence.peer, public, port, b"")
        try:
            evidence.connected = await shell.probe_tcp(evidence.peer, self.address, port, pattern)
        except PeerError as error:
            evidence.probe_error = error

    async def _read_neighbour(self, evidence: PeerEvidence) -> None:
        """Ask for what its kernel remembers: where that can disprove what was seen, or explain what was not."""
        shown = self.address if evidence.on_link else self.public
        if shown is not None and (evidence.on_link or not evidence.is_witnessed):
            evidence.neighbour = await refresh.read_neighbour(self.shell, evidence.peer, shown)

    def _note_acknowledgement(self, evidence: PeerEvidence) -> None:
        source = self.sources.get(evidence.peer)
        if self.announcer is not None and source is not None:
            evidence.acknowledged = source in self.announcer.acknowledged


def _find_pause(attempts: int) -> float:
    """Return the seconds before the next try: none, and from the third on more each time."""
    return 0.0 if attempts < _QUICK_TRIES else _FIRST_PAUSE_S * 2 ** (attempts - _QUICK_TRIES)


def _find_link_address(view: refresh.PeerView) -> str | None:
    """Return the peer's own address on our link: the source of its gateway-less route to us."""
    for route in (view.route_to_public, view.route_to_reserved):
        if route is not None and route.is_on_link and route.source is not None:
            return route.source
    return None


async def cancel_all(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """End the tasks and wait until they have ended."""
    pending = list(tasks)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
