"""Step 5: the peers talk to the new owner, over SSH: its public eth0 address, then the reserved IP.

The first is what makes the data centre's network learn (the story's remedy); the second carries the
pattern that the witness here looks for. What a peer answers is untrusted text: only statuses,
routes and neighbour entries are read from it, and none of it is proof.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from do_failover import neigh

if TYPE_CHECKING:
    from do_failover.model import Neighbour, Peer

_ECHOES = 3
_ECHO_INTERVAL_S = 0.2  # the least that iputils grants an unprivileged user
_MARK = "@do-failover "


class PeerShell(Protocol):
    """Runs a command on a peer and returns its standard output."""

    async def run(self, peer: Peer, command: str) -> str:
        """Raise PeerError when the peer can't be reached or doesn't answer."""
        ...


@dataclass(frozen=True, slots=True)
class PeerView:
    """What a peer's kernel says of the two addresses; None where it said nothing readable."""

    route_to_public: neigh.Route | None
    route_to_reserved: neigh.Route | None


@dataclass(frozen=True, slots=True)
class Echoes:
    """Whether the peer's pings were answered; None where it did not say. An answer proves nothing.

    `is_marked` is false where its ping cannot carry the pattern, so that nothing of it can be witnessed.
    """

    public_answered: bool | None
    reserved_answered: bool | None
    is_marked: bool = True


def make_look_command(public: str | None, reserved: str) -> str:
    """Return what a peer runs while the API works: its routes to both addresses."""
    return _join([_section(f"route {_address(address)}", _route(address)) for address in (public, reserved) if address])


def make_refresh_command(public: str | None, reserved: str, pattern: str) -> str:
    """Return what a peer runs once the IP has moved: the pings, in this order.

    iputils' ping answers to -V, and carries the pattern. BusyBox's refuses -p with more than one
    octet, and would then send nothing (measured): it pings without, which refreshes but proves nothing.
    """
    marked = f"-n -i {_ECHO_INTERVAL_S} -p {_hex(pattern)}"
    choose = f"if ping -V >/dev/null 2>&1; then n=-n p='{marked}' k=marked; else n= p= k=plain; fi"
    steps = [choose, _section("kind", "echo $k")]
    if public:
        steps.append(_section("public", f"ping $n -q -c 1 -W 1 {_address(public)} >/dev/null 2>&1; echo $?"))
    steps.append(_section("reserved", f"ping $p -q -c {_ECHOES} -W 1 {_address(reserved)} >/dev/null 2>&1; echo $?"))
    return _join(steps)


def make_neighbour_command(address: str) -> str:
    """Return what a peer runs to show its neighbour entry of an address."""
    shown = _address(address)
    return f"export LC_ALL=C; ip -j neigh show to {shown} 2>/dev/null || ip neigh show to {shown}"


def make_silence_command(owner: str, public: str) -> str:
    """Return what a peer runs to tell whether it hears an owner, and us beside it."""
    return _join(
        [_section(name, f"ping -c 2 -W 1 {_address(at)} >/dev/null 2>&1; echo $?") for name, at in (("owner", owner), ("us", public))]
    )


async def is_silent(shell: PeerShell, peer: Peer, owner: str, public: str) -> bool | None:
    """Tell whether a peer hears nothing of the owner while it hears us; None when it doesn't hear us either, or says nothing.

    Raises PeerError.
    """
    sections = _split(await shell.run(peer, make_silence_command(owner, public)))
    hears_owner, hears_us = _read_status(sections.get("owner")), _read_status(sections.get("us"))
    return not hears_owner if hears_us and hears_owner is not None else None


async def look_at_peer(shell: PeerShell, peer: Peer, public: str | None, reserved: str) -> PeerView:
    """Connect to a peer and ask for its routes. Raises PeerError."""
    sections = _split(await shell.run(peer, make_look_command(public, reserved)))
    return PeerView(
        route_to_public=_read_route(sections.get(f"route {public}"), public),
        route_to_reserved=_read_route(sections.get(f"route {reserved}"), reserved),
    )


async def refresh_peer(shell: PeerShell, peer: Peer, public: str | None, reserved: str, pattern: str) -> Echoes:
    """Make a peer ping the owner. Raises PeerError."""
    sections = _split(await shell.run(peer, make_refresh_command(public, reserved, pattern)))
    return Echoes(
        public_answered=_read_status(sections.get("public")),
        reserved_answered=_read_status(sections.get("reserved")),
        is_marked=sections.get("kind", "").strip() != "plain",
    )


async def read_neighbour(shell: PeerShell, peer: Peer, address: str) -> Neighbour | None:
    """Return a peer's neighbour entry of an address. Raises PeerError."""
    text = await shell.run(peer, make_neighbour_command(address))
    try:
        found = neigh.parse_neighbours(text)
    except ValueError:
        return None
    return next((entry for entry in found if entry.address == address), None)


def _read_route(text: str | None, address: str | None) -> neigh.Route | None:
    if text is None or address is None:
        return None
    try:
        return neigh.parse_route(text)
    except ValueError:
        return None


def _read_status(text: str | None) -> bool | None:
    status = (text or "").strip()
    return status == "0" if status in {"0", "1"} else None


def _section(name: str, command: str) -> str:
    return f"echo '{_MARK}{name}'; {command}"


def _join(sections: list[str]) -> str:
    return "export LC_ALL=C; " + "; ".join(sections)


def _split(text: str) -> dict[str, str]:
    """Split an answer at its marks."""
    sections: dict[str, str] = {}
    for part in ("\n" + text).split("\n" + _MARK)[1:]:
        name, _, body = part.partition("\n")
        sections[name] = body
    return sections


def _route(address: str) -> str:
    shown = _address(address)
    return f"ip -j route get {shown} 2>/dev/null || ip route get {shown} 2>/dev/null"


def _address(text: str) -> str:
    """Return the address as text that is safe in a shell command. Raises ValueError, also for a scope id: it may hold any text."""
    address = ipaddress.ip_address(text)
    if "%" in str(address):
        msg = "an address with a scope id is not used in a command"
        raise ValueError(msg)
    return str(address)


def _hex(text: str) -> str:
    return bytes.fromhex(text).hex()
