"""Raises the host's neighbour table limits while large labs stand, and restores them, also after kill -9.

All network namespaces share init_net's `gc_thresh1..3` (facts.md). A tiny process of its own (this module
as a program) sets them and waits for the end of its stdin, a pipe whose other end only the lab process
holds. Guards share a lock; the last to go puts back what the first had found.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ENOUGH_PEERS = 40
"""About ten neighbour entries a peer: up to here the default of 1024 is enough for two labs."""

SETTINGS = Path("/proc/sys/net/ipv4/neigh/default")
LIMITS = {"gc_thresh1": 16384, "gc_thresh2": 32768, "gc_thresh3": 65536}
FOUND = Path("/run/do-failover-lab.neighbour-limits")
"""What the first guard had found, and the lock that guards share. Gone with the last guard."""

RAISED = b"raised\n"


@contextlib.asynccontextmanager
async def raised_neighbour_limits(peers: int) -> AsyncIterator[tuple[int, ...]]:
    """Raise the limits if `peers` are many. Inside the block, whoever inherits the yielded descriptors keeps them raised."""
    if peers <= ENOUGH_PEERS or not (SETTINGS / "gc_thresh3").exists():
        yield ()
        return
    ours, held = os.pipe()
    try:
        guard = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "do_failover.lab.guard"),
            stdin=ours,
            stdout=asyncio.subprocess.PIPE,
            cwd="/",
            start_new_session=True,
        )
        if guard.stdout is not None:
            await guard.stdout.readline()
        yield (held,)
    finally:
        os.close(ours)
        os.close(held)


def main() -> None:
    """Raise, tell, wait, restore if last."""
    with _open_locked() as found:
        if not found.read():
            json.dump({name: (SETTINGS / name).read_text(encoding="ascii").strip() for name in LIMITS}, found)
            found.flush()
        # The highest first, so that none is ever above the next.
        for name, value in sorted(LIMITS.items(), reverse=True):
            (SETTINGS / name).write_text(str(value), encoding="ascii")
        fcntl.flock(found, fcntl.LOCK_SH)
        os.write(1, RAISED)
        sys.stdin.buffer.read()
        _restore_if_last(found)


def _open_locked() -> IO[str]:
    """Open and lock the file of the found values alone; begin again if its last holder removed it meanwhile."""
    while True:
        file = FOUND.open("a+", encoding="ascii")
        fcntl.flock(file, fcntl.LOCK_EX)
        if FOUND.exists() and os.path.samestat(FOUND.stat(), os.fstat(file.fileno())):
            file.seek(0)
            return file
        file.close()


def _restore_if_last(found: IO[str]) -> None:
    try:
        fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    found.seek(0)
    for name, value in sorted(json.load(found).items()):
        (SETTINGS / name).write_text(value, encoding="ascii")
    FOUND.unlink()


if __name__ == "__main__":
    main()
