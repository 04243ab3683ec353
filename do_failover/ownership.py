"""What root writes into another user's directory becomes that user's: the daemon has to be able to use it."""

from __future__ import annotations

import os
from contextlib import suppress


def give_to_owner(file: int, directory: str | os.PathLike[str] | int) -> None:
    """Let an open file belong to the owner and group of its directory, where this process is root; else leave it."""
    if os.geteuid() != 0:
        return
    with suppress(OSError):  # a file system without owners
        owner = os.stat(directory)  # noqa: PTH116 - it may be an open directory
        found = os.fstat(file)
        if (found.st_uid, found.st_gid) != (owner.st_uid, owner.st_gid):
            os.fchown(file, owner.st_uid, owner.st_gid)
