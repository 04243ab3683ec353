"""The notify FIFO on disk: opened for life, read as soon as anything comes.

Guarantees: opened for reading and writing, so it never ends while keepalived restarts; when somebody
replaced the file (keepalived recreates a FIFO that it made itself, on reload), the old one is read to its
end and the new one opened. A pipe that is found nearly full is reported: keepalived drops the newest
lines of a full pipe without a word (facts.md).
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from do_failover.errors import ConfigError, TemporaryError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_CHUNK = 1 << 16
_LINE_MOST = 4096  # a pipe with less room than this may have refused a line


class NotifyFifo:
    """One FIFO. From the constructor on what is written is kept, whether or not it is read."""

    _feed: Callable[[bytes], None]
    _on_loss: Callable[[str], None]

    def __init__(self, path: Path) -> None:
        """Open it, and make it first (0660) where it is not there. Raises ConfigError, TemporaryError."""
        self._path = path
        self._pipe = _open(path)

    def start(self, feed: Callable[[bytes], None], on_loss: Callable[[str], None]) -> None:
        """Read from now on, in the running loop. `feed` gets what was read, `on_loss` a sentence when lines may have been dropped."""
        self._feed, self._on_loss = feed, on_loss
        self._watch()

    def _watch(self) -> None:
        asyncio.get_running_loop().add_reader(self._pipe.fd, self.read)

    def read(self) -> None:
        """Take all that is there now."""
        taken = 0
        while taken <= self._pipe.capacity:
            try:
                data = os.read(self._pipe.fd, _CHUNK)
            except BlockingIOError:
                break
            taken += len(data)
            self._feed(data)
        if taken > self._pipe.capacity - _LINE_MOST:
            self._on_loss(f"the notify FIFO {self._path} was full ({taken} octets): keepalived's newest lines may have been dropped")

    def follow(self) -> None:
        """Look whether the file was replaced, and read the new one then. Raises as the constructor, when there is none to be had."""
        try:
            if self._path.stat().st_ino == self._pipe.inode:
                return
        except OSError:
            pass  # gone: it is made again
        found = _open(self._path)  # the old one stays until there is another: keepalived may still hold it
        self.read()
        self._unwatch()
        self.close()
        self._pipe = found
        self._watch()

    def stop(self) -> None:
        """Take what is there once more, and read no more."""
        self.read()
        self._unwatch()

    def _unwatch(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pipe.fd)

    def close(self) -> None:
        """Let go of it."""
        os.close(self._pipe.fd)


@dataclass(frozen=True, slots=True)
class _Pipe:
    fd: int
    inode: int
    capacity: int


def _open(path: Path) -> _Pipe:
    try:
        if not path.exists():
            os.mkfifo(path)
            path.chmod(0o660)
        if not stat.S_ISFIFO(path.stat().st_mode):
            msg = f"{path} is no FIFO: keepalived's notifies can't come through it; remove it, or correct keepalived.fifo"
            raise ConfigError(msg)
        fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        msg = f"{path}: {error.strerror}: keepalived's notifies can't be read; check its directory and owner (keepalived.fifo)"
        raise TemporaryError(msg, kind="fifo") from None
    return _Pipe(fd, os.fstat(fd).st_ino, fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ))
