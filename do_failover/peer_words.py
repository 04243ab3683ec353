r"""What we say to do-failover-peer (share/), the forced command on a peer, and how its answers are framed. Pure.

    to the peer      ID WORDS\n
    from the peer    do-failover-peer hello\n, once; then for each line, in any order:
                     do-failover-peer ID 0\nSECTIONS\ndo-failover-peer.\n

Sections are those that refresh's shell commands write: `@do-failover NAME`, then what belongs to it. So who reads
an answer need not know which way it came.

Guarantee: words hold addresses in canonical form and hexadecimal digits, nothing else; anything else is a ValueError.
"""

from __future__ import annotations

import functools
import ipaddress
from typing import Self

SPEAKER = "do-failover-peer"
GREETING = f"{SPEAKER} hello\n"
MARK = "@do-failover "
NOTHING = ":"  # the word that is answered with nothing
_MOST_ADDRESSES = 4
_MOST_PATTERN = 16


class PeerCommand(str):
    """A command line of a POSIX shell, and the words that ask do-failover-peer for the same."""

    __slots__ = ("words",)
    words: str

    def __new__(cls, command: str, words: str) -> Self:
        """Join the two."""
        made = super().__new__(cls, command)
        made.words = words
        return made


def ask_to_arm(*addresses: str) -> str:
    """Return the words that ask for the peer's routes to these addresses."""
    return _join("arm", addresses)


def ask_to_refresh(*addresses: str, pattern: str) -> str:
    """Return the words that make it ping these addresses in order; the last one's pings carry the pattern."""
    data = bytes.fromhex(pattern)
    if not 0 < len(data) <= _MOST_PATTERN:
        msg = f"a pattern has 1 to {_MOST_PATTERN} bytes, not {len(data)}"
        raise ValueError(msg)
    return f"{_join('refresh', addresses)} {data.hex()}"


def ask_for_state(*addresses: str) -> str:
    """Return the words that ask for its neighbour entries of these addresses, and its routes."""
    return _join("state", addresses)


def ask_who_is_silent(owner: str, us: str) -> str:
    """Return the words that ask which of the two answers."""
    return _join("silence", (owner, us))


def frame_line(number: int, words: str) -> str:
    """Return the line that is written to the peer."""
    return f"{number} {words}\n"


def speaks_words(stdout: str) -> bool:
    """Tell whether what a peer wrote comes from do-failover-peer: it greets, whatever it was asked."""
    return f"\n{GREETING}" in f"\n{stdout}"


def unwrap_answer(stdout: str, number: int) -> str | None:
    """Return the sections of one answer among all that do-failover-peer wrote; None: it is not there, or cut."""
    _, found, rest = stdout.partition(f"\n{SPEAKER} {number} 0\n")
    sections, ended, _ = ("\n" + rest).partition(f"\n{SPEAKER}.\n")
    return sections[1:] if found and ended else None


def split_sections(text: str) -> dict[str, str]:
    """Split an answer at its marks."""
    sections: dict[str, str] = {}
    for part in ("\n" + text).split("\n" + MARK)[1:]:
        name, _, body = part.partition("\n")
        sections[name] = body
    return sections


@functools.lru_cache(maxsize=64)  # the same few, for each of a thousand peers
def write_address(text: str) -> str:
    """Return the address as text that is safe in any command. Raises ValueError, also for a scope id: it may hold any text."""
    address = ipaddress.ip_address(text)
    if "%" in str(address):
        msg = "an address with a scope id is not used in a command"
        raise ValueError(msg)
    return str(address)


def _join(word: str, addresses: tuple[str, ...]) -> str:
    if not 0 < len(addresses) <= _MOST_ADDRESSES:
        msg = f"{word} takes 1 to {_MOST_ADDRESSES} addresses, not {len(addresses)}"
        raise ValueError(msg)
    return " ".join((word, *map(write_address, addresses)))
