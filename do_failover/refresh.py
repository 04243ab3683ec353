"""Step 5: the peers talk to the new owner, over SSH: its public eth0 address, then the reserved IP.

The first is what makes the data centre's network learn (the story's remedy); the second carries the
pattern that the witness here looks for. What a peer answers is untrusted text: only statuses,
routes and neighbour entries are read from it, and none of it is proof.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from do_failover import neigh, peer_words
from do_failover.errors import PeerError
from do_failover.foreign import clean_text
from do_failover.peer_words import MARK, PeerCommand, split_sections
from do_failover.peer_words import write_address as _address

if TYPE_CHECKING:
    from do_failover.model import Neighbour, Peer

_ECHOES = 3
_ECHO_INTERVAL_S = 0.2  # the least that iputils grants an unprivileged user
_PATTERN, _LAST_OCTET = "@PATTERN", "@OCTET"
_MARKED = f"-n -i {_ECHO_INTERVAL_S} -p {_PATTERN}"
_NO_PING = {
    "forbidden": "its user may not ping, so nothing was sent from there; allow it there: sysctl -w net.ipv4.ping_group_range='0 "
    "2147483647', or setcap cap_net_raw+ep on its ping",
    "missing": "it has no ping, so nothing was sent from there; install iputils-ping there",
}


class PeerShell(Protocol):
    """Runs a command on a peer and returns its standard output.

    The command is a PeerCommand: where the peer runs do-failover-peer, a shell that knows how hands it the command's
    words instead. The answer reads the same.
    """

    async def run(self, peer: Peer, command: str) -> str:
        """Raise PeerError when the peer can't be reached or doesn't answer."""
        ...


@runtime_checkable
class TcpProber(Protocol):
    """What a PeerShell may know beside: to let a peer connect by TCP to an address, through its sshd."""

    async def probe_tcp(self, peer: Peer, address: str, port: int, data: bytes) -> bool:
        """Tell whether somebody accepted the connection; that one then got `data`, and the connection's end.

        Raises PeerError where the peer can't be reached, or its sshd doesn't permit it.
        """
        ...


_KINDS = {"marked", "byte", "plain"}
_FIND_KIND = "k=plain; if ping -V >/dev/null 2>&1; then k=marked; else case $(ping --help 2>&1) in *'-p HEXBYTE'*) k=byte ;; esac; fi"


@dataclass(frozen=True, slots=True)
class PeerView:
    """What a peer's kernel says of the two addresses; None where it said nothing readable."""

    route_to_public: neigh.Route | None
    route_to_reserved: neigh.Route | None
    kind: str | None = None  # of its ping: marked, byte or plain


@dataclass(frozen=True, slots=True)
class Echoes:
    """Whether the peer's pings were answered; None where it did not say. An answer proves nothing.

    `is_marked` is false where its ping cannot carry the pattern, so that nothing of it can be witnessed.
    """

    public_answered: bool | None
    reserved_answered: bool | None
    is_marked: bool = True


def make_look_command(public: str | None, reserved: str) -> PeerCommand:
    """Return what a peer runs while the API works: its routes to both addresses, and of what kind its ping is."""
    addresses = [address for address in (public, reserved) if address]
    routes = [_section(f"route {_address(address)}", _route(address)) for address in addresses]
    command = _join([_FIND_KIND, _section("kind", "echo $k"), *routes])
    return PeerCommand(command, peer_words.ask_to_arm(*addresses))


def make_refresh_command(public: str | None, reserved: str, pattern: str, kind: str | None = None) -> PeerCommand:
    """Return what a peer runs once the IP has moved: the pings, in this order. `kind`: of its ping, where it has said so.

    iputils' ping answers to -V, and carries the pattern. BusyBox's refuses -p with more than one octet, and would then send
    nothing (measured): it pings without, which refreshes but proves nothing, and then once with the last octet, which is
    weak evidence (echo.py).
    """
    addresses = (public, reserved) if public else (reserved,)
    hexadecimal = _hex(pattern)
    return PeerCommand(
        _write_pings(public, reserved, kind if kind in _KINDS else None)
        .replace(_PATTERN, hexadecimal)
        .replace(_LAST_OCTET, hexadecimal[-2:]),
        peer_words.ask_to_refresh(*addresses, pattern=pattern),
    )


@functools.lru_cache(maxsize=16)  # the same for a thousand peers, but for the pattern
def _write_pings(public: str | None, reserved: str, kind: str | None) -> str:
    """Write the pings for a kind that the peer has said; or so that it finds out, which costs a process in the second that counts."""
    if kind is None:
        steps = [_FIND_KIND, f"n= p=; if [ $k = marked ]; then n=-n p='{_MARKED}'; fi", _section("kind", "echo $k")]
        plain, marked = "$n ", "$p "
    else:
        steps = [_section("kind", f"echo {kind}")]
        plain, marked = ("-n ", f"{_MARKED} ") if kind == "marked" else ("", "")
    if public:
        steps.append(_section("public", f"ping {plain}-q -c 1 -W 1 {_address(public)} >/dev/null 2>&1; echo $?"))
    steps.append(_section("reserved", f"ping {marked}-q -c {_ECHOES} -W 1 {_address(reserved)} >/dev/null 2>&1; echo $?"))
    if kind in {None, "byte"}:
        weak = f"ping -q -c 1 -W 1 -p '{_LAST_OCTET}' {_address(reserved)} >/dev/null 2>&1"
        steps.append(f"if [ $k = byte ]; then {weak}; fi" if kind is None else weak)
    return _join(steps)


def make_neighbour_command(address: str) -> PeerCommand:
    """Return what a peer runs to show its neighbour entry of an address."""
    shown = _address(address)
    command = f"export LC_ALL=C; ip -j neigh show to {shown} 2>/dev/null || ip neigh show to {shown}"
    return PeerCommand(command, peer_words.ask_for_state(address))


def make_silence_command(owner: str, public: str) -> PeerCommand:
    """Return what a peer runs to tell whether it hears an owner, and us beside it."""
    command = _join(
        [_section(name, f"ping -c 2 -W 1 {_address(at)} >/dev/null 2>&1; echo $?") for name, at in (("owner", owner), ("us", public))]
    )
    return PeerCommand(command, peer_words.ask_who_is_silent(owner, public))


async def is_silent(shell: PeerShell, peer: Peer, owner: str, public: str) -> bool | None:
    """Tell whether a peer hears nothing of the owner while it hears us; None when it doesn't hear us either, or says nothing.

    Raises PeerError.
    """
    sections = _read_sections(peer, await shell.run(peer, make_silence_command(owner, public)))
    hears_owner, hears_us = _read_status(sections.get("owner")), _read_status(sections.get("us"))
    return not hears_owner if hears_us and hears_owner is not None else None


async def look_at_peer(shell: PeerShell, peer: Peer, public: str | None, reserved: str) -> PeerView:
    """Connect to a peer and ask for its routes. Raises PeerError."""
    sections = _read_sections(peer, await shell.run(peer, make_look_command(public, reserved)))
    return PeerView(
        route_to_public=_read_route(sections.get(f"route {public}"), public),
        route_to_reserved=_read_route(sections.get(f"route {reserved}"), reserved),
        kind=kind if (kind := sections.get("kind", "").strip()) in _KINDS else None,
    )


async def refresh_peer(  # noqa: PLR0913 - named
    shell: PeerShell, peer: Peer, public: str | None, reserved: str, *, pattern: str, kind: str | None = None
) -> Echoes:
    """Make a peer ping the owner. Raises PeerError."""
    sections = _read_sections(peer, await shell.run(peer, make_refresh_command(public, reserved, pattern, kind)))
    return Echoes(
        public_answered=_read_ping(sections, "public", public),
        reserved_answered=_read_ping(sections, "reserved", reserved),
        is_marked=sections.get("kind", "").strip() not in {"plain", "byte"},
    )


async def read_neighbour(shell: PeerShell, peer: Peer, address: str) -> Neighbour | None:
    """Return a peer's neighbour entry of an address. Raises PeerError."""
    text = await shell.run(peer, make_neighbour_command(address))
    sections = _read_sections(peer, text)
    try:
        found = neigh.parse_neighbours(sections.get(f"neighbour {address}", text))
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
    return f"echo '{MARK}{name}'; {command}"


def _join(sections: list[str]) -> str:
    return "export LC_ALL=C; " + "; ".join(sections)


def _read_sections(peer: Peer, text: str) -> dict[str, str]:
    """Split an answer at its marks. Raises PeerError for what do-failover-peer says instead of one."""
    sections = split_sections(text)
    if "refused" in sections:
        msg = (
            f"{peer.host}: its do-failover-peer refused ({clean_text(sections['refused']) or 'without a reason'}), so nothing was "
            f"done there; compare the --allow list in its authorized_keys with `do-failover peers authorize`"
        )
        raise PeerError(msg, kind="command")
    for name, body in sections.items():
        if body.strip() in _NO_PING and name.startswith(("ping ", "owner", "us")):
            msg = f"{peer.host}: {_NO_PING[body.strip()]}"
            raise PeerError(msg, kind="command")
    return sections


def _read_ping(sections: dict[str, str], name: str, address: str | None) -> bool | None:
    return _read_status(sections.get(name, sections.get(f"ping {address}")))


def _route(address: str) -> str:
    shown = _address(address)
    return f"ip -j route get {shown} 2>/dev/null || ip route get {shown} 2>/dev/null"


def _hex(text: str) -> str:
    return bytes.fromhex(text).hex()
