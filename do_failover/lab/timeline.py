"""What happened, as events for a pipe: one JSON object a line. `name_range` is pure.

Events: {"event": "setup", "what"}, {"event": "timeline", "t", "who", "what"} with t in seconds since the kill,
{"event": "ready", ...}, {"event": "result", ...}, {"event": "failed", "kind", "message", "exit_code"}.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Iterable
from typing import Any

_SHORTEST_RANGE = 3
_MOST_RANGES = 4

TOGETHER_S = 0.25
"""Sources that come back within this time share one line."""

Send = Callable[[str], None]


def name_range(names: Iterable[str], *, most: int | None = None) -> str:
    """Write names short, in their natural order: `client, app1..app5, app7`; after `most` ranges `and 40 more`."""
    numbered: dict[str, list[int]] = {}
    words: list[tuple[str, int]] = []
    for name in names:
        match = re.fullmatch(r"(\D+)(\d+)", name)
        if match:
            numbered.setdefault(match[1], []).append(int(match[2]))
        else:
            words.append((name, 1))
    for stem, numbers in numbered.items():
        words += [(_span(stem, run), len(run)) for run in _runs(sorted(set(numbers)))]
    left_out = 0 if most is None else sum(count for _, count in words[most:])
    text = ", ".join(word for word, _ in words[:most])
    return f"{text} and {left_out} more" if left_out else text


def _runs(numbers: list[int]) -> list[list[int]]:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs


def _span(stem: str, run: list[int]) -> str:
    if len(run) == 1:
        return f"{stem}{run[0]}"
    return f"{stem}{run[0]}{'..' if len(run) >= _SHORTEST_RANGE else ', '}{stem}{run[-1]}"


class Timeline:
    """Sends events, and keeps those of the timeline for the result."""

    def __init__(self, send: Send) -> None:
        """Begin without a zero: until `kill_now` nothing is on the timeline."""
        self._send = send
        self._waiting: dict[str, tuple[float, list[str]]] = {}
        self.killed_at: float | None = None
        self.entries: list[dict[str, Any]] = []

    def send(self, event: str, **fields: object) -> None:
        """Send one event."""
        self._send(json.dumps({"event": event, **fields}) + "\n")

    def setup(self, what: str) -> None:
        """Say what the lab is doing before the kill."""
        self.send("setup", what=what)

    def kill_now(self, who: str, what: str) -> float:
        """Set the zero to this moment and write the first entry."""
        self.killed_at = time.monotonic()
        self.add(who, what, at=self.killed_at)
        return self.killed_at

    def add(self, who: str, what: str, *, at: float | None = None) -> None:
        """Add an entry, now or at a `time.monotonic()`; before the kill nothing is added."""
        if self.killed_at is None:
            return
        t = round((time.monotonic() if at is None else at) - self.killed_at, 3)
        entry = {"t": t, "who": who, "what": what}
        self.entries.append(entry)
        self.send("timeline", **entry)

    def add_together(self, who: str, what: str) -> None:
        """Add an entry that shares its line with others of the same `what` within `TOGETHER_S`."""
        if self.killed_at is None:
            return
        if what not in self._waiting:
            self._waiting[what] = (time.monotonic(), [])
            asyncio.get_running_loop().call_later(TOGETHER_S, self._flush, what)
        self._waiting[what][1].append(who)

    def flush(self) -> None:
        """Write what still waits for company."""
        for what in list(self._waiting):
            self._flush(what)

    def _flush(self, what: str) -> None:
        if what in self._waiting:
            at, group = self._waiting.pop(what)
            self.add(name_range(group, most=_MOST_RANGES), what, at=at)
