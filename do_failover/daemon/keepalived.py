"""Which keepalived runs, by its pid file, and the moment at which it ends: a crash sends nothing on the FIFO.

Guarantees: a process is its pid and its start time; a pid that was used again, and a zombie, are not it.
Its end is known at once (pidfd), a new one within a second. Not guaranteed: anything without a pid file.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from do_failover.claims import read_order
from do_failover.whole_file import read_small

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from do_failover.clock import Clock
    from do_failover.daemon.memory import Process

_EVERY_S = 1.0


def find_keepalived(pid_file: Path) -> Process | None:
    """Return the running process that the pid file names."""
    try:
        order = read_order(int(read_small(str(pid_file))))
    except (OSError, ValueError):
        return None
    return (order.start_ticks, order.pid) if order is not None else None


def _is_there(path: Path) -> bool:
    try:
        path.stat()
    except OSError:
        return False
    return True


class KeepalivedWatch:
    """Follows the process that the pid file names. `note` gets each change: a process, or None when it ended."""

    def __init__(self, pid_file: Path, clock: Clock, note: Callable[[Process | None], None]) -> None:
        """Nothing is opened yet."""
        self._pid_file, self._clock, self._note = pid_file, clock, note
        self._process: Process | None = None
        self._pidfd = -1

    async def run(self) -> None:
        """Follow it for ever."""
        try:
            while True:
                self._look()
                await self._clock.sleep(_EVERY_S)
        finally:
            self._let_go()

    def _look(self) -> None:
        found = find_keepalived(self._pid_file)
        # A pid file whose process is dead is said again and again: what it wrote may be read only now.
        if found == self._process and (found is not None or not _is_there(self._pid_file)):
            return
        self._let_go()
        self._process = found
        if found is not None:
            try:
                self._pidfd = os.pidfd_open(found[1])
            except OSError:  # it ended just now, or this kernel has no pidfd: the next look tells
                self._pidfd = -1
            else:
                asyncio.get_running_loop().add_reader(self._pidfd, self._note_end)
        self._note(found)

    def _note_end(self) -> None:
        self._let_go()
        self._process = None
        self._note(None)

    def _let_go(self) -> None:
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
