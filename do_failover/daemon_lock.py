"""Whether a daemon lives on this machine: a lock in run_dir that it holds for life.

Guarantees: the kernel lets it go with the process, so a dead daemon never counts as alive.
"""

from __future__ import annotations

import fcntl
import os
import time
from typing import IO, TYPE_CHECKING

from do_failover.errors import TemporaryError
from do_failover.ownership import give_to_owner

if TYPE_CHECKING:
    from pathlib import Path

NAME = "daemon.lock"
_POLL_S = 0.05
_PROBE_S = 0.3  # a script that looks whether a daemon lives holds the lock for a moment


def take_lock(run_dir: Path, *, patience_s: float = _PROBE_S) -> IO[bytes]:
    """Take the lock for life. Raises TemporaryError (kind "daemon_runs") when another daemon has it for longer than that."""
    path = run_dir / NAME
    try:
        run_dir.mkdir(mode=0o750, parents=True, exist_ok=True)
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640), "r+b")
        give_to_owner(file.fileno(), run_dir)
    except OSError as error:
        msg = f"{path}: {error.strerror}; without it two daemons could act at once; check paths.run_dir and its owner"
        raise TemporaryError(msg, kind="daemon_lock") from None
    end = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < end:
                time.sleep(_POLL_S)
                continue
            owner = file.read(20).decode(errors="replace").strip() or "unknown"
            file.close()
            msg = f"a daemon runs here already (process {owner}): two would fight; this one ends; see: do-failover status"
            raise TemporaryError(msg, kind="daemon_runs") from None
        break
    file.truncate()
    file.write(b"%d\n" % os.getpid())
    file.flush()
    return file


def find_daemon(run_dir: Path) -> int | None:
    """Return the living daemon's process id; None when there is none, or when that can't be seen from here."""
    try:
        with (run_dir / NAME).open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                text = file.read(20).strip()
                return int(text) if text.isdigit() else 0
    except OSError:
        return None
    return None
