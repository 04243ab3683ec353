"""What outlives the daemon's process, and when it still counts. Pure, but for the file at the end.

Guarantees: a stored claim counts only within the same boot and for the same keepalived, by pid and
start time: another keepalived says BACKUP first, and a claim of its forerunner would steal the IP.
A field may be added with a default, and its type never changed: a file that can't be read is no memory.
Times are CLOCK_MONOTONIC, which goes on within a boot. Not guaranteed: that a power cut keeps it;
nothing is synced, because nothing of it counts after a boot.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from do_failover.model import NotifyEvent, VrrpState  # noqa: TC001 - msgspec reads the annotations
from do_failover.whole_file import replace_small

if TYPE_CHECKING:
    from pathlib import Path

Process = tuple[int, int]  # start in clock ticks since boot, pid


@dataclass(frozen=True, slots=True)
class Intent:
    """A person's will: who is to own the IP (None: nobody), as long as that one does, and the sentence that says so."""

    owner: int | None
    why: str


@dataclass(frozen=True, slots=True)
class Kept:
    """One reserved IP's part."""

    claim: VrrpState | None = None
    event: NotifyEvent | None = None
    is_served: bool = True
    losses: int = 0
    last_action_id: int | None = None
    settles_at: float = 0.0
    intent: Intent | None = None
    acted_at: dict[str, float] = field(default_factory=dict)
    is_lower_pending: bool = False
    order: Process = (0, 0)  # under which its event is known to this machine's other processes
    droplet_id: int | None = None  # this one, where it owned the IP when that was read last


@dataclass(frozen=True, slots=True)
class Memory:
    """Everything that a daemon remembers."""

    boot_id: str = ""
    keepalived: Process | None = None
    kept: dict[str, Kept] = field(default_factory=dict)  # by reserved IP
    scripts: dict[str, Process] = field(default_factory=dict)  # the youngest script that was heard, by VRRP name
    speaks_itself: list[str] = field(default_factory=list)  # the names of which keepalived writes its own lines

    def recall(self, boot_id: str, keepalived: Process | None) -> Memory:
        """Return what still counts: nothing of another boot or of another keepalived."""
        if self.boot_id != boot_id:
            return Memory(boot_id, keepalived)
        if keepalived is None or self.keepalived != keepalived:
            return Memory(boot_id, keepalived, scripts=self.scripts)  # a script that was started before that one is late all the same
        return self


def load_memory(path: Path) -> Memory:
    """Read the file; what is missing or can't be read is remembered as nothing."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Memory)
    except (OSError, ValueError, RecursionError):
        return Memory()


def save_memory(path: Path, memory: Memory) -> None:
    """Replace the file as a whole. Raises OSError."""
    replace_small(str(path), msgspec.json.encode(memory))
