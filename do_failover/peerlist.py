"""Reads the fan-out list: `[user@]host[:port]`, one a line, `#` comments; host ranges as ClusterShell writes them.

    app[01-40]          app01 to app40: as many digits as are written
    app[1-3,7]-db[1-2]  every combination; app[0-8/2] takes every second
    app[1-3],db1        several on one line
    [2001:db8::1]:22    an IPv6 address: no range

Pure. What can't be read is a nit with its line number; everything else counts (I9). One entry expands to 5000
hosts at most, and a list holds 65536 peers: a peer's number has two bytes in its witness pattern.
"""

from __future__ import annotations

import ipaddress
import itertools
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from do_failover.model import Peer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MOST_EXPANSIONS = 5000
MOST_PEERS = 65536
_ENTRY = re.compile(
    r"""(?:(?P<user>[A-Za-z_][A-Za-z0-9_.-]{0,31})@)?
        (?:\[(?P<v6>[0-9A-Fa-f:.]+(?:%[\w.-]+)?)\]
          |(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252}))
          |(?P<bare_v6>[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*))
        (?::(?P<port>[0-9]{1,5}))?""",
    re.VERBOSE | re.ASCII,
)
_MARKS = re.compile(r"[\[\],]")
_BRACKETS = re.compile(r"\[([^\[\]]*)\]")
_RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9})(?:/([0-9]{1,9}))?)?", re.ASCII)
_LAST_PORT = 65535
_SHOWN = 80


@dataclass(frozen=True, slots=True)
class PeerList:
    """The peers that could be read, numbered from 0; where each stands; and one sentence for what could not be read."""

    peers: tuple[Peer, ...]
    nits: tuple[str, ...]
    sources: tuple[str, ...] = ()


def parse_peers(text: str, source: str, hosts: Iterable[str] = ()) -> PeerList:
    """Read the file's text and the inline hosts. A peer named twice is kept once."""
    reading = _Reading()
    for number, line in enumerate(text.splitlines(), start=1):
        reading.take(line, f"{source}:{number}", f"file {source}:{number}")
    for number, host in enumerate(hosts):
        reading.take(host, f"peers.hosts[{number}]", f"hosts[{number}]")
    return PeerList(tuple(peer for peer, _ in reading.found.values()), tuple(reading.nits), tuple(at for _, at in reading.found.values()))


def expand_ranges(entry: str) -> list[str]:
    """Return the hosts of one entry, in order. ValueError says what is wrong with its ranges."""
    if any(":" in inner for inner in _BRACKETS.findall(entry)):
        return [entry]  # an IPv6 address in its brackets
    parts = _BRACKETS.split(entry)
    fixed, ranges = parts[::2], [list(_read_ranges(inner)) for inner in parts[1::2]]
    if any("[" in text or "]" in text for text in fixed):
        msg = "its brackets don't match"
        raise ValueError(msg)
    if "" in fixed[1:-1]:
        msg = "two ranges stand side by side"
        raise ValueError(msg)
    count = math.prod(sum(len(numbers) for numbers, _ in choice) for choice in ranges)
    if count > MOST_EXPANSIONS:
        msg = f"it means {count} hosts, and {MOST_EXPANSIONS} is the most"
        raise ValueError(msg)
    choices = [[f"{number:0{width}}" for numbers, width in choice for number in numbers] for choice in ranges]
    return [fixed[0] + "".join(map("".join, zip(chosen, fixed[1:], strict=True))) for chosen in itertools.product(*choices)]


def canonical_host(host: str) -> str:
    """Return the form by which two names of a host are compared: an address canonical, a name in small letters."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host.lower()


def _read_ranges(inner: str) -> Iterator[tuple[range, int]]:
    """Read what stands in brackets: the numbers of each part, and how many digits they are written with."""
    for part in inner.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            msg = f"{part!r} is not a number or a range such as 01-40"
            raise ValueError(msg)
        first, last, step = match[1], match[2] or match[1], int(match[3] or 1)
        if int(last) < int(first) or step == 0:
            msg = f"{part!r} is empty"
            raise ValueError(msg)
        is_padded = any(text != str(int(text)) for text in (first, last))
        if is_padded and len(first) != len(last):
            msg = f"{part!r} pads its ends to different lengths"
            raise ValueError(msg)
        yield range(int(first), int(last) + 1, step), len(first) if is_padded else 1


class _Reading:
    """Collects peers and nits, entry by entry."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, int], tuple[Peer, str]] = {}
        self.nits: list[str] = []

    def take(self, line: str, where: str, source: str) -> None:
        """Read one line, or one inline host."""
        text = line.partition("#")[0].strip()
        for entry in _split_commas(text) if text else ():
            self._take_entry(entry.strip(), where, source)

    def _take_entry(self, entry: str, where: str, source: str) -> None:
        shown = repr(entry[:_SHOWN])
        try:
            hosts = expand_ranges(entry)
        except ValueError as error:
            self.nits.append(f"{where}: the host range {shown} can't be read: {error}; it is ignored")
            return
        bad, twice = [], []
        for text in hosts:
            peer = _read_entry(text, len(self.found))
            if peer is None:
                bad.append(text)
            elif (key := (canonical_host(peer.host), peer.port)) in self.found:
                twice.append(peer.host)
            elif len(self.found) >= MOST_PEERS:
                self.nits.append(f"{where}: the list has more than {MOST_PEERS} peers; those from {peer.host} on are ignored")
                return
            else:
                self.found[key] = peer, source
        if bad:
            self.nits.append(f"{where}: {bad[0][:_SHOWN]!r}{_count_more(bad)} is not [user@]host[:port]; it is ignored")
        if twice:
            self.nits.append(f"{where}: {twice[0]}{_count_more(twice)} is listed twice")


def _split_commas(text: str) -> Iterator[str]:
    """Split at the commas outside brackets."""
    begin, depth = 0, 0
    for mark in _MARKS.finditer(text):
        depth += (mark[0] == "[") - (mark[0] == "]")
        if mark[0] == "," and depth <= 0:
            yield text[begin : mark.start()]
            begin = mark.end()
    yield text[begin:]


def _count_more(hosts: list[str]) -> str:
    return f" (and {len(hosts) - 1} more of {len(hosts)})" if len(hosts) > 1 else ""


def _read_entry(entry: str, number: int) -> Peer | None:
    match = _ENTRY.fullmatch(entry)
    if match is None:
        return None
    port = int(match["port"] or 22)
    if not 0 < port <= _LAST_PORT:
        return None
    host = match["v6"] or match["name"] or match["bare_v6"]
    if match["name"] is None or not host.strip("0123456789."):
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return None
    return Peer(number=number, host=host, user=match["user"], port=port)
