"""The FIFO's bytes become what was heard, in order. Pure.

Two kinds of lines come this way: keepalived's own (vrrp_notify_fifo), and those that the notify shim
passes on, which say when its script was started, because scripts are forked in any order:

    INSTANCE "VI_1" MASTER 150
    SCRIPT 182736 4711 INSTANCE "VI_1" MASTER 150

Guarantees: a line that is split over reads is put together; one that is malformed, longer than
LINE_LIMIT or not text is skipped with one complaint, and the next line counts again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from do_failover.errors import ConfigError
from do_failover.event import parse_line

if TYPE_CHECKING:
    from do_failover.model import NotifyEvent

LINE_LIMIT = 4096  # PIPE_BUF: a longer one could not have been written whole
_COMPLAINTS_KEPT = 64
_MARK = "SCRIPT "
_BEGINNINGS = (b'INSTANCE "', b'GROUP "')


@dataclass(frozen=True, slots=True)
class Heard:
    """One notify; `script` is the start (ticks, pid) of the notify script that passed it on, None for keepalived's own line."""

    event: NotifyEvent
    script: tuple[int, int] | None = None


@dataclass(slots=True)
class LineReader:
    """Collects bytes into lines. A complaint is returned once for each different line, and then no more."""

    _rest: bytes = b""
    _is_skipping: bool = False
    _complained: set[str] = field(default_factory=set)

    def feed(self, data: bytes) -> tuple[list[Heard], list[str]]:
        """Take what was read; return what was heard, oldest first, and the complaints."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        heard: list[Heard] = []
        complaints: list[str] = []
        for line in lines:
            if self._is_skipping:  # the end of one that was too long
                self._is_skipping = False
                continue
            self._take(line, heard, complaints)
        if len(self._rest) > LINE_LIMIT:
            if not self._is_skipping:
                self._complain(f"a line of more than {LINE_LIMIT} octets, beginning with {self._rest[:40]!r}", complaints)
            self._rest, self._is_skipping = b"", True
        return heard, complaints

    def _take(self, line: bytes, heard: list[Heard], complaints: list[str]) -> None:
        if not line.strip():
            return
        if len(line) > LINE_LIMIT:
            self._complain(f"a line of more than {LINE_LIMIT} octets, beginning with {line[:40]!r}", complaints)
            return
        try:
            heard.append(_read(line.decode(errors="surrogateescape")))
        except ConfigError as error:
            self._complain(error.message, complaints)
            begin = max(line.rfind(word) for word in _BEGINNINGS)
            if begin > 0 and _MARK.encode() not in line[:begin]:  # somebody wrote without a line end, and a whole line came after it
                self._take(line[begin:], heard, complaints)

    def _complain(self, what: str, complaints: list[str]) -> None:
        if what not in self._complained and len(self._complained) < _COMPLAINTS_KEPT:
            self._complained.add(what)
            complaints.append(f"the notify FIFO brought {what}; the line is skipped")


def _read(line: str) -> Heard:
    if not line.startswith(_MARK):
        return Heard(parse_line(line))
    ticks, _, rest = line.removeprefix(_MARK).partition(" ")
    pid, _, rest = rest.partition(" ")
    if not all(word.isascii() and word.isdigit() and len(word) < 20 for word in (ticks, pid)):  # noqa: PLR2004 - of 64 bits
        msg = f"{line[:80]!r} is not a script's line: expected SCRIPT START_TICKS PID before keepalived's"
        raise ConfigError(msg)
    return Heard(parse_line(rest), (int(ticks), int(pid)))
