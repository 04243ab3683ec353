"""Reads the fan-out list: `[user@]host[:port]`, one a line, `#` comments.

Pure. A line that can't be read is a nit with its line number; the other lines count (I9).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from do_failover.model import Peer

if TYPE_CHECKING:
    from collections.abc import Iterable

_ENTRY = re.compile(
    r"""(?:(?P<user>[A-Za-z_][A-Za-z0-9_.-]{0,31})@)?
        (?:\[(?P<v6>[0-9A-Fa-f:.]+(?:%[\w.-]+)?)\]
          |(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252}))
          |(?P<bare_v6>[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*))
        (?::(?P<port>[0-9]{1,5}))?""",
    re.VERBOSE | re.ASCII,
)
_LAST_PORT = 65535


@dataclass(frozen=True, slots=True)
class PeerList:
    """The peers that could be read, numbered from 0, and one sentence for each line that could not."""

    peers: tuple[Peer, ...]
    nits: tuple[str, ...]


def parse_peers(text: str, source: str, hosts: Iterable[str] = ()) -> PeerList:
    """Read the file's text and the inline hosts. A peer named twice is kept once."""
    lines = [(f"{source}:{number}", line) for number, line in enumerate(text.splitlines(), start=1)]
    lines += [(f"peers.hosts[{number}]", host) for number, host in enumerate(hosts)]
    peers: dict[tuple[str, int], Peer] = {}
    nits: list[str] = []
    for where, line in lines:
        entry = line.partition("#")[0].strip()
        if not entry:
            continue
        found = _read_entry(entry, len(peers))
        if found is None:
            nits.append(f"{where}: {entry[:80]!r} is not [user@]host[:port]; the line is ignored")
        elif (found.host, found.port) in peers:
            nits.append(f"{where}: {found.host} is listed twice")
        else:
            peers[found.host, found.port] = found
    return PeerList(tuple(peers.values()), tuple(nits))


def _read_entry(entry: str, number: int) -> Peer | None:
    match = _ENTRY.fullmatch(entry)
    if match is None:
        return None
    port = int(match["port"] or 22)
    if not 0 < port <= _LAST_PORT:
        return None
    host = match["v6"] or match["name"] or match["bare_v6"]
    return Peer(number=number, host=host, user=match["user"], port=port)
