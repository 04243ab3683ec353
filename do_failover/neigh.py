"""Reads what `ip neigh show` and `ip route get` print on a peer: JSON, plain, or BusyBox's plain. Pure.

A peer's output is untrusted. Guarantees: whatever the text holds, the result is a value whose addresses, lladdrs
and device names are such, in canonical form, or a ValueError with one short sentence in printable ASCII. Text of
more than 1 MiB is refused unread. Not guaranteed: that the peer tells the truth.

`ip -j neigh` of iproute2 6.1, plain `ip` of the same and BusyBox 1.35's were the samples (all measured). An entry
whose lladdr is an IP address (a tunnel's) is left out: that is no neighbour on an Ethernet link.
"""

from __future__ import annotations

import ipaddress
import json
import re
from dataclasses import dataclass
from typing import Any, Final

from do_failover.model import Neighbour

_MOST_TEXT = 1 << 20
_SHOWN_MOST = 100
_SHOWN = 40
_LONGEST_ADDRESS = 45
_LLADDR = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}(?:(?::[0-9a-f]{2}){2}|(?::[0-9a-f]{2}){14})?")
_DEVICE = re.compile(r"[!-.0-~]{1,15}")  # printable ASCII without the slash, IFNAMSIZ - 1
_STATES: Final = frozenset(("NONE", "INCOMPLETE", "REACHABLE", "STALE", "DELAY", "PROBE", "FAILED", "NOARP", "PERMANENT"))
_NEIGHBOUR_PAIRS: Final = frozenset(("dev", "lladdr", "ref", "used", "probes", "proto", "nhid"))
_ROUTE_TYPES: Final = frozenset(
    ("unicast", "local", "broadcast", "anycast", "multicast", "blackhole", "unreachable", "prohibit", "throw", "nat")
)


@dataclass(frozen=True, slots=True)
class Route:
    """The kernel's way to an address.

    `is_on_link`: unicast, no gateway, not this machine's own: its neighbour entry is what decides. `is_local`:
    the address is this machine's own. `device` and `source` are None where the output names none.
    """

    address: str
    is_on_link: bool
    device: str | None
    source: str | None
    is_local: bool


def parse_neighbours(text: str) -> tuple[Neighbour, ...]:
    """Read the entries of `ip -j neigh show ...` or `ip neigh show ...`; none for empty output.

    One line or object that is no entry spoils the whole: ValueError.
    """
    entries = _read_json(text)
    if entries is None:
        read = [_read_neighbour_line(line) for line in text.splitlines() if line.strip()]
    else:
        read = [_read_neighbour_object(entry) for entry in entries]
    return tuple(entry for entry in read if entry is not None)


def parse_route(text: str) -> Route:
    """Read `ip -j route get X` or `ip route get X`. ValueError also for empty output: there is no route."""
    entries = _read_json(text)
    if entries is None:
        lines = [line.split() for line in text.splitlines() if line.strip()]
        if lines:
            return _read_route_words(lines[0])
    if not entries:
        msg = "no route: `ip route get` names none"
        raise ValueError(msg)
    if len(entries) != 1:
        msg = f"{len(entries)} routes where `ip route get` prints one"
        raise ValueError(msg)
    return _read_route_object(entries[0])


def _read_json(text: str) -> list[dict[str, Any]] | None:
    """Return the objects of a JSON list, None when the text is not JSON but plain."""
    if len(text) > _MOST_TEXT:
        msg = f"{len(text)} characters are more than any answer of `ip` ({_MOST_TEXT} at most)"
        raise ValueError(msg)
    if not text.lstrip().startswith(("[", "{")):
        return None
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError):
        msg = f"not the JSON that `ip -j` prints: {_show(text)}"
        raise ValueError(msg) from None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        msg = f"not the list of objects that `ip -j` prints: {_show(text)}"
        raise ValueError(msg)
    return [entry for entry in entries if entry]  # old iproute2 prints [{}] for nothing


def _read_neighbour_object(entry: dict[str, Any]) -> Neighbour | None:
    states = entry.get("state", [])
    if not isinstance(states, list) or not all(isinstance(state, str) for state in states):
        msg = f"not a neighbour's state: {_show(states)}"
        raise ValueError(msg)
    return _make_neighbour(entry.get("dst"), entry.get("lladdr"), states[0] if states else None)


def _read_neighbour_line(line: str) -> Neighbour | None:
    words = line.split()
    pairs, flags = _pair_words(words[1:], _NEIGHBOUR_PAIRS)
    states = [flag for flag in flags if flag in _STATES]
    if not states and "lladdr" not in pairs and "proxy" not in flags:
        msg = f"not a line of `ip neigh`: {_show(line)}"
        raise ValueError(msg)
    return _make_neighbour(words[0], pairs.get("lladdr"), states[-1] if states else None)


def _make_neighbour(address: object, lladdr: object, state: str | None) -> Neighbour | None:
    if state is not None and state not in _STATES:
        msg = f"not a neighbour's state: {_show(state)}"
        raise ValueError(msg)
    canonical = _read_address(address)
    if lladdr is None:
        return Neighbour(canonical, None, state)
    if not isinstance(lladdr, str) or len(lladdr) > _SHOWN * 2:
        msg = f"not an lladdr: {_show(lladdr)}"
        raise ValueError(msg)
    if _LLADDR.fullmatch(lladdr.lower()) is not None and lladdr.isascii():
        return Neighbour(canonical, lladdr.lower(), state)
    try:
        _read_address(lladdr)
    except ValueError:
        msg = f"not an lladdr: {_show(lladdr)}"
        raise ValueError(msg) from None
    return None


def _read_route_object(entry: dict[str, Any]) -> Route:
    kind = entry.get("type", "unicast")
    if not isinstance(kind, str) or kind not in _ROUTE_TYPES:
        msg = f"not a type of route: {_show(kind)}"
        raise ValueError(msg)
    has_gateway = any(key in entry for key in ("gateway", "via", "nexthops"))
    return _make_route(entry.get("dst"), kind, entry.get("dev"), entry.get("prefsrc"), has_gateway=has_gateway)


def _read_route_words(words: list[str]) -> Route:
    kind = words.pop(0) if words[0] in _ROUTE_TYPES else "unicast"
    pairs, _ = _pair_words(words[1:], frozenset(("from", "via", "dev", "src", "table", "proto", "metric", "uid")))
    return _make_route(words[0] if words else kind, kind, pairs.get("dev"), pairs.get("src"), has_gateway="via" in pairs)


def _make_route(address: object, kind: str, device: object, source: object, *, has_gateway: bool) -> Route:
    if device is not None and (not isinstance(device, str) or _DEVICE.fullmatch(device) is None):
        msg = f"not an interface: {_show(device)}"
        raise ValueError(msg)
    canonical = _read_address(address)
    if device is None and kind == "unicast":
        msg = f"a route to {canonical} without an interface is none"
        raise ValueError(msg)
    return Route(
        address=canonical,
        is_on_link=kind == "unicast" and not has_gateway,
        device=device,
        source=None if source is None else _read_address(source),
        is_local=kind == "local",
    )


def _read_address(value: object) -> str:
    """Return an IP address in canonical form; with a zone (`%eth0`) it is refused: that may hold anything."""
    if isinstance(value, str) and len(value) <= _LONGEST_ADDRESS and "%" not in value:
        try:
            return str(ipaddress.ip_address(value))
        except ValueError:
            pass
    msg = f"not an IP address: {_show(value)}"
    raise ValueError(msg)


def _pair_words(words: list[str], keys: frozenset[str]) -> tuple[dict[str, str], list[str]]:
    """Split `key value` pairs from the words that stand alone; of a key given twice the first counts."""
    pairs: dict[str, str] = {}
    flags: list[str] = []
    rest = iter(words)
    for word in rest:
        if word in keys:
            pairs.setdefault(word, next(rest, ""))
        else:
            flags.append(word)
    return pairs, flags


def _show(value: object) -> str:
    """Quote a little of what was found, without anything that a terminal would obey."""
    if isinstance(value, str):
        shown = ascii(value[:_SHOWN])  # ten characters for one that is far out
        return shown[:_SHOWN_MOST] + ("..." if len(value) > _SHOWN or len(shown) > _SHOWN_MOST else "")
    return f"a {type(value).__name__}"
