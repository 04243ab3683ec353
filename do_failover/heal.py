"""One peer's part of the story: it is told, made to ping, and watched for, until the proof is there.

Guarantee: whatever one peer does or fails to do ends in its own evidence, and delays no other (I7).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from do_failover import echo, frames, refresh
from do_failover.errors import PeerError
from do_failover.verify import has_foreign_entry

if TYPE_CHECKING:
    from collections.abc import Iterable

    from do_failover.announce import Announcer
    from do_failover.clock import Clock
    from do_failover.model import Peer
    from do_failover.verify import PeerEvidence, Witness

_TRIES = 3
_LATE_ARRIVAL_S = 0.2  # how long after its pings a peer's echo request may still be under way


@dataclass(frozen=True, slots=True)
class Healer:
    """What all peers of one run share.

    `announcer` is None where nothing may be announced, `public` where the owner's public address is not
    known; `can_prove` is false where arrivals can't be witnessed, for the owner is another Droplet.
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
    sources: dict[Peer, str] = field(default_factory=dict)

    async def heal(self, evidence: PeerEvidence, looking: asyncio.Task[refresh.PeerView]) -> None:
        """Refresh one peer until its echo request has arrived here, or the tries are over."""
        evidence.is_asked, evidence.can_be_witnessed = True, self.can_prove
        started = self.clock.now()
        try:
            self._note_view(evidence, await looking)
            for evidence.attempts in range(1, _TRIES + 1):
                self._announce_to(evidence)
                await self._refresh(evidence)
                evidence.duration_s = self.clock.now() - started
                await self._read_neighbour(evidence)
                if not (evidence.can_be_witnessed and evidence.is_marked):
                    break
                if has_foreign_entry(evidence, self.address):
                    self.witness.forget(evidence.peer)  # the entry went back to the old owner: what was seen is no proof any more
                elif self.witness.has_seen(evidence.peer):
                    break
        except PeerError as error:
            evidence.error = error
        except asyncio.CancelledError:
            if not self.witness.has_seen(evidence.peer):
                evidence.attempts = max(0, evidence.attempts - 1)  # the try that was cut off tells nothing
            raise
        finally:
            evidence.duration_s = evidence.duration_s or self.clock.now() - started
            evidence.is_witnessed = self.can_prove and self.witness.has_seen(evidence.peer)
            self._note_acknowledgement(evidence)

    def _note_view(self, evidence: PeerEvidence, view: refresh.PeerView) -> None:
        if view.route_to_reserved is not None:
            evidence.on_link = view.route_to_reserved.is_on_link
        evidence.expected_lladdr = frames.format_lladdr(self.lladdr) if self.lladdr is not None else None
        source = _find_link_address(view)
        if source is not None:
            self.sources[evidence.peer] = source
        if evidence.on_link and self.announcer is not None:
            self.announcer.include(self.address)

    def _announce_to(self, evidence: PeerEvidence) -> None:
        """Send the directed frames to a peer on the same link: its address there is known from its routes."""
        source = self.sources.get(evidence.peer)
        if self.announcer is None or source is None:
            return
        if self.public is not None:
            self.announcer.announce_to(self.public, source)
        if evidence.on_link:
            self.announcer.announce_to(self.address, source)

    async def _refresh(self, evidence: PeerEvidence) -> None:
        """Take one try: the peer pings; done as soon as its echo request has arrived here."""
        peer, public = evidence.peer, self.public if self.is_public_pinged else None
        pattern = echo.format_pattern(echo.build_pattern(self.witness.run, peer.number))
        refreshing = asyncio.create_task(refresh.refresh_peer(self.shell, peer, public, self.address, pattern))
        seeing = asyncio.create_task(self.witness.wait_for(peer))
        late = asyncio.create_task(self._wait_for_late_arrivals(refreshing))
        try:
            await asyncio.wait([late, seeing], return_when=asyncio.FIRST_COMPLETED)
            if not seeing.done():
                echoes = await refreshing
                evidence.public_answered, evidence.reserved_answered = echoes.public_answered, echoes.reserved_answered
                evidence.is_marked = echoes.is_marked
        finally:
            await cancel_all([refreshing, seeing, late])
            evidence.is_witnessed = self.can_prove and self.witness.has_seen(peer)

    async def _wait_for_late_arrivals(self, refreshing: asyncio.Task[refresh.Echoes]) -> None:
        await asyncio.wait([refreshing])
        if refreshing.exception() is None:
            await self.clock.sleep(_LATE_ARRIVAL_S)

    async def _read_neighbour(self, evidence: PeerEvidence) -> None:
        shown = self.address if evidence.on_link else self.public
        if shown is not None:
            evidence.neighbour = await refresh.read_neighbour(self.shell, evidence.peer, shown)

    def _note_acknowledgement(self, evidence: PeerEvidence) -> None:
        source = self.sources.get(evidence.peer)
        if self.announcer is not None and source is not None:
            evidence.acknowledged = source in self.announcer.acknowledged


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
