"""Step 4: the link layer hears who owns what now.

Broadcast: both forms of a gratuitous ARP (or an unsolicited NA), repeated and spaced, because some
devices heed only one form and older kernels lock an entry for a second. Directed: one ARP request
(or NS) to each peer on the same link, which a peer answers: its acknowledgement.

Guarantees: no frame unless the API named this Droplet as owner; none after the mandate was revoked.
An acknowledgement is evidence for the report, never proof: a peer behind a router acknowledged and
kept sending to the old owner (facts.md).
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from do_failover import frames
from do_failover.errors import FailoverError, NotOwnerError
from do_failover.model import name_droplet
from do_failover.retry import pause

if TYPE_CHECKING:
    from collections.abc import Iterable

    from do_failover.clock import Clock
    from do_failover.mandate import Mandate
    from do_failover.model import ReservedIp


_AGAIN_S = 1.0


class Link(Protocol):
    """One interface: its lladdr, and a way to send a frame on it."""

    @property
    def lladdr(self) -> bytes:
        """Return the interface's own address."""
        ...

    def send(self, frame: bytes) -> None:
        """Send one frame."""
        ...


@dataclass(slots=True)
class Announcer:
    """Announces this Droplet's addresses on one link, and keeps the acknowledgements."""

    link: Link
    mandate: Mandate
    addresses: tuple[str, ...]
    sent: int = 0
    trouble: str | None = None
    acknowledged: set[str] = field(default_factory=set)
    _next_again: float = float("-inf")

    async def announce(self, clock: Clock, *, repeat: int, interval_s: float) -> None:
        """Broadcast all addresses, `repeat` times, spaced. The list may grow between the rounds."""
        for number in range(repeat):
            if number:
                await pause(interval_s, clock=clock, mandate=self.mandate)
            for frame in build_announcements(self.addresses, self.link.lladdr):
                self._send(frame)

    def announce_again(self, now: float) -> bool:
        """Broadcast all addresses once more, for a peer that nothing has helped so far; once a second, for all of them together."""
        if now < self._next_again:
            return False
        self._next_again = now + _AGAIN_S
        for frame in build_announcements(self.addresses, self.link.lladdr):
            self._send(frame)
        return True

    def announce_to(self, address: str, peer_address: str) -> bool:
        """Ask one peer on the link by a frame that tells it of `address`; its answer is an acknowledgement.

        False, and nothing is sent, for an address that no peer of ours can have: it is what the peer said of itself.
        """
        try:
            frame = build_directed(address, self.link.lladdr, peer_address)
        except ValueError:
            return False
        self._send(frame)
        return True

    def include(self, address: str) -> None:
        """Announce one more address from now on: a peer said that it is on its link."""
        if address not in self.addresses:
            self.addresses = (*self.addresses, address)
            for frame in build_announcements((address,), self.link.lladdr):
                self._send(frame)

    def note_acknowledgement(self, frame: bytes) -> None:
        """Take a frame from the wire; an answer to one of ours is kept."""
        answer = frames.read_arp_acknowledgement(frame) or frames.read_na_acknowledgement(frame)
        if answer is not None and str(answer.announced) in self.addresses:
            self.acknowledged.add(str(answer.peer))

    def _send(self, frame: bytes) -> None:
        if self.mandate.is_revoked:
            return
        try:
            self.link.send(frame)
        except FailoverError as error:
            self.trouble = error.message  # the peers are refreshed all the same
        else:
            self.sent += 1


def check_ownership(reserved: ReservedIp, droplet_id: int | None) -> None:
    """Raise NotOwnerError unless the API names this Droplet as the owner: frames leave only from there."""
    if reserved.droplet_id != droplet_id:
        msg = (
            f"{name_droplet(reserved.droplet_id)} owns {reserved.address}, not this Droplet {droplet_id}: nothing is announced from here; "
            f"move it first with: do-failover assign {reserved.address}"
        )
        raise NotOwnerError(msg)


def build_announcements(addresses: Iterable[str], lladdr: bytes) -> list[bytes]:
    """Return the broadcast frames of one round."""
    built: list[bytes] = []
    for address in map(ipaddress.ip_address, addresses):
        if isinstance(address, ipaddress.IPv4Address):
            built += frames.build_arp_announcement(address, lladdr)
        else:
            built.append(frames.build_na_announcement(address, lladdr))
    return built


def build_directed(address: str, lladdr: bytes, peer_address: str) -> bytes:
    """Return the frame that tells one peer of `address`."""
    announced, target = ipaddress.ip_address(address), ipaddress.ip_address(peer_address)
    if isinstance(announced, ipaddress.IPv4Address) and isinstance(target, ipaddress.IPv4Address):
        return frames.build_directed_arp(announced, lladdr, target)
    if isinstance(announced, ipaddress.IPv6Address) and isinstance(target, ipaddress.IPv6Address):
        return frames.build_directed_ns(announced, lladdr, target)
    msg = f"{address} and {peer_address} are of different families"
    raise ValueError(msg)
