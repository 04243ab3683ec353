"""The routes of the published description: paths relative to the API's base URL, without a trailing slash."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import quote


@dataclass(frozen=True, slots=True)
class Family:
    """One of the API's three names for a reserved IP: its collection, and the key of its object."""

    collection: str
    key: str


RESERVED_IPV4 = Family("reserved_ips", "reserved_ip")
FLOATING_IPV4 = Family("floating_ips", "floating_ip")  # the old name; announced to end, same shapes
RESERVED_IPV6 = Family("reserved_ipv6", "reserved_ipv6")


def list_families(address: str) -> tuple[Family, ...]:
    """Return the names to try for an address, the current one first."""
    if ipaddress.ip_address(address).version == 6:  # noqa: PLR2004 - IPv6
        return (RESERVED_IPV6,)
    return (RESERVED_IPV4, FLOATING_IPV4)


def make_ip_path(family: Family, address: str) -> str:
    """GET: the reserved IP."""
    return f"{family.collection}/{address}"


def make_actions_path(family: Family, address: str) -> str:
    """POST: assign it."""
    return f"{family.collection}/{address}/actions"


def make_action_path(family: Family, address: str, action_id: int) -> str:
    """GET: one action. IPv6 has no list of its own: the account-wide one serves."""
    if family is RESERVED_IPV6:
        return f"actions/{action_id}"
    return f"{family.collection}/{address}/actions/{action_id}"


def make_list_path(family: Family) -> str:
    """GET: all reserved IPs of the account."""
    return f"{family.collection}?per_page=200"


def make_newest_action_path(family: Family, address: str) -> str | None:
    """GET: the IP's actions. None for IPv6, which has no such list."""
    return None if family is RESERVED_IPV6 else f"{make_actions_path(family, address)}?per_page=20"


def make_droplet_actions_path(droplet_id: int) -> str:
    """GET: what a Droplet is or was busy with."""
    return f"droplets/{droplet_id}/actions?per_page=20"


def make_droplets_path(tag: str, page: int) -> str:
    """GET: the Droplets that carry a tag, one page of them."""
    return f"droplets?tag_name={quote(tag, safe='')}&per_page=200&page={page}"


def make_assign_body(droplet_id: int) -> dict[str, str | int]:
    """Return the body of the assign action."""
    return {"type": "assign", "droplet_id": droplet_id}
