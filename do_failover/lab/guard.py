"""Raises the host's network limits while large labs stand, and restores them, also after kill -9.

All network namespaces share the neighbour tables' `gc_thresh1..3` (facts.md) and `netdev_max_backlog`: a broadcast
into a bridge of a thousand ports overflows a backlog of a thousand frames, and the last ports hear nothing
(measured: with 1000 peers not even the metadata service was reached). A tiny process of its own (this module
as a program) sets them and waits for the end of its stdin, a pipe whose other end only the lab process
holds. Guards share a lock; the last to go puts back what the first had found. If a guard itself is killed the limits stay
raised until the next large lab ends.
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
    from collections.abc import AsyncIterator, Iterator

ENOUGH_PEERS = 40
"""About ten neighbour entries a peer: up to here the default of 1024 is enough for two labs."""

SETTINGS = Path("/proc/sys/net")
LIMITS = {
    "core/netdev_max_backlog": 100_000,
    "ipv4/neigh/default/gc_thresh1": 16384,
    "ipv4/neigh/default/gc_thresh2": 32768,
    "ipv4/neigh/default/gc_thresh3": 65536,
}
"""Only the first network namespace has them all; in a container's, nothing is raised."""

LIMITS_V6 = {
    "ipv6/neigh/default/gc_thresh1": 16384,
    "ipv6/neigh/default/gc_thresh2": 32768,
    "ipv6/neigh/default/gc_thresh3": 65536,
}
"""Raised as well where there is IPv6: a host may have none."""

FOUND = Path("/run/do-failover-lab.host-limits")
"""What the first guard had found, and the lock that guards share. Gone with the last guard."""

RAISED = b"raised\n"


@contextlib.asynccontextmanager
async def raised_host_limits(peers: int) -> AsyncIterator[tuple[int, ...]]:
    """Raise the limits if `peers` are many. Inside the block, whoever inherits the yielded descriptors keeps them raised."""
    if peers <= ENOUGH_PEERS or not can_raise():
        yield ()
        return
    ours, held = os.pipe()
    try:
        await _start_guard(ours)
        yield (held,)
    finally:
        os.close(ours)
        os.close(held)


async def _start_guard(leash: int) -> None:
    """Return when the settings are made: the process that was started ends then, and its child stays."""
    guard = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "do_failover.lab.guard"),
        stdin=leash,
        stdout=asyncio.subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
    )
    await guard.wait()


def can_raise() -> bool:
    """Whether this network namespace has the limits."""
    return all((SETTINGS / name).exists() for name in LIMITS)


def main() -> None:
    """Raise, tell, wait in the background, restore if last."""
    with _alone():
        found = _raise_limits()
    os.write(1, RAISED)
    if os.fork():
        os._exit(0)
    sys.stdin.buffer.read()
    with found, _alone():
        _restore_if_last(found)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Keep other guards out for a moment: a lock on the directory, so that no lock file stays behind."""
    directory = os.open(FOUND.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def _raise_limits() -> IO[str]:
    """Write down what was found, if nobody has; the returned file is locked together with all other guards."""
    found = FOUND.open("a+", encoding="ascii")
    fcntl.flock(found, fcntl.LOCK_SH)
    found.seek(0)
    limits = LIMITS | {name: value for name, value in LIMITS_V6.items() if (SETTINGS / name).exists()}
    if not found.read():
        json.dump({name: (SETTINGS / name).read_text(encoding="ascii").strip() for name in limits}, found)
        found.flush()
    # The highest first, so that none is ever above the next.
    for name, value in sorted(limits.items(), reverse=True):
        (SETTINGS / name).write_text(str(value), encoding="ascii")
    return found


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
