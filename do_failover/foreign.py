"""What others told us, made fit for use: text for a terminal, addresses for frames and commands. Pure."""

from __future__ import annotations

import ipaddress

_TEXT_LIMIT = 200


def clean_text(value: object) -> str | None:
    """Return foreign text as one printable, bounded line; None for anything that is not text, or empty."""
    if not isinstance(value, str) or not value:
        return None
    return "".join(char if char.isprintable() else " " for char in value[:_TEXT_LIMIT]).strip() or None


def parse_unicast(value: object, version: int | None = None) -> str | None:
    """Return the canonical form of a unicast address of that IP version; None for anything else.

    No scope id: one may hold any text at all (`fe80::1%$(id)` is an IPv6Address to Python). No group,
    loopback, unspecified or broadcast address: no Droplet is reached there.
    """
    if not isinstance(value, str):
        return None
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        return None
    if version is not None and address.version != version:
        return None
    if "%" in value or address.is_multicast or address.is_loopback or address.is_unspecified:
        return None
    return None if str(address) == "255.255.255.255" else str(address)
