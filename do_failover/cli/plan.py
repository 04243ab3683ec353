"""`--dry-run`: every call, command and frame that the story would send, as text. Nothing is sent.

It is made by the same builders that the steps use, so that it cannot say anything else than they do.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from do_failover import announce, echo, frames, packets, refresh
from do_failover.errors import FailoverError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from do_failover.config import FailoverConfig, PeersConfig
    from do_failover.do_api.client import DigitalOceanApi
    from do_failover.model import Identity, Peer

_PEERS_SHOWN = 12


def plan_calls(api: DigitalOceanApi, entry: FailoverConfig, target: int, *, is_here: bool) -> list[str]:
    """Return the API's calls."""
    return list(api.plan_assign(entry.reserved_ip, target, is_here=is_here))


def plan_frames(entry: FailoverConfig, identity: Identity, *, is_on_link: bool) -> list[str]:
    """Return the broadcast frames of one round; directed ones depend on what the peers answer."""
    public = identity.public_address_v6 if ":" in entry.reserved_ip else identity.public_address
    addresses = [address for address in (public, entry.reserved_ip if is_on_link else None) if address]
    try:
        lladdr = packets.read_interface(entry.interface).lladdr
    except FailoverError as error:
        return [f"none: {error.message}"]
    shown = [frames.describe_frame(frame) for frame in announce.build_announcements(addresses, lladdr)]
    return [
        *(f"{line}    ({entry.garp_repeat} times, every {entry.garp_interval_s} s)" for line in shown),
        *_directed(public),
    ]


def _directed(public: str | None) -> Iterable[str]:
    if public is not None:
        yield f"directed {'NS' if ':' in public else 'ARP request'} for {public} to each peer that says it is on the same link"


def plan_peers(entry: FailoverConfig, settings: PeersConfig, peers: tuple[Peer, ...], identity: Identity) -> list[str]:
    """Return the peers, and what each would run."""
    public = identity.public_address_v6 if ":" in entry.reserved_ip else identity.public_address
    shown = [f"ssh {peer.user or settings.user or '(you)'}@{_bracket(peer.host)}:{peer.port}" for peer in peers[:_PEERS_SHOWN]]
    if len(peers) > _PEERS_SHOWN:
        shown.append(f"... and {len(peers) - _PEERS_SHOWN} more")
    pattern = echo.format_pattern(echo.build_pattern(bytes(8), 0))
    return [
        *shown,
        f"look:     {refresh.make_look_command(public, entry.reserved_ip)}",
        f"refresh:  {refresh.make_refresh_command(public, entry.reserved_ip, pattern)}    (the pattern differs in each run)",
        f"verify:   {refresh.make_neighbour_command(entry.reserved_ip)}    (or {public}, where there is a gateway)",
    ]


def _bracket(host: str) -> str:
    try:
        return f"[{host}]" if ipaddress.ip_address(host).version == 6 else host  # noqa: PLR2004 - IPv6
    except ValueError:
        return host
