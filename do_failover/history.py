"""Failover records: one JSON file each, `<directory>/<id>.json`.

Guarantees: a record is complete or absent, whatever ends the writer (a crash, kill -9, a full disk): it is written to a
temporary file in the same directory, synced, renamed, and the directory synced (rename(2), fsync(2)). Writers in
several processes do not disturb each other. What crashed writers left behind is removed by the next append that runs
alone. No exception of the operating system's gets out: TemporaryError(kind="history") when a record could not be kept
or the directory not read, which the caller turns into a warning, and PermanentError(kind="history") when a wanted
record isn't there. Other programs' files are skipped, never removed.

Not guaranteed: that a record survives a power cut on a disk that lies about fsync.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import re
import stat
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from do_failover.codec import decode_report, encode_report
from do_failover.errors import PermanentError, TemporaryError
from do_failover.model import Outcome
from do_failover.ownership import give_to_owner

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime
    from pathlib import Path

    from do_failover.model import FailoverReport

KEEP = 1000
_MODE = 0o640
_ID = re.compile(r"[0-9]{8}T[0-9]{12}Z-[0-9a-f]{2,64}")
_LARGEST = 16 * 1024 * 1024
_LOCK_WAIT_S = 2.0
_SHOWN = 5
_FAILED_ROUNDS = 10
_NEAR = 16  # records, back to the round before: several reserved IPs may fail side by side


@dataclass(frozen=True, slots=True)
class Records:
    """Records, newest first, and how many files named *.json on the way to them could not be read as one."""

    records: tuple[FailoverReport, ...]
    skipped: int


def make_id(at: datetime, random: bytes) -> str:
    """Return an id that sorts by time (UTC, microseconds) and is safe as a file name; `random` keeps two apart.

    `at` must carry its zone, `random` 1 to 32 bytes; else ValueError.
    """
    offset = at.utcoffset()
    if offset is None:
        msg = "a record's time needs a zone"
        raise ValueError(msg)
    made = f"{at.replace(tzinfo=None) - offset:%Y%m%dT%H%M%S%f}Z-{random.hex()}"
    if not _ID.fullmatch(made):
        msg = "a record's id needs 1 to 32 random bytes and a year of four digits"
        raise ValueError(msg)
    return made


def append_record(directory: Path, record: FailoverReport, *, keep: int = KEEP) -> None:
    """Write the record durably, then remove all but the `keep` newest. Blocks on the disk.

    The directory is made (0750) when it is missing. A record with the same id is replaced as a whole. Of one failover's
    failed rounds the first ten and the newest are kept: a night of a dead API is to push nothing else out.
    """
    if not _ID.fullmatch(record.id):
        msg = f"the record's id {record.id!r} is not one of make_id's; it is not kept"
        raise PermanentError(msg, kind="history")
    try:
        directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        with _opened(directory) as place:
            _clean_if_alone(directory, place)
            _lock_shared(directory, place)
            _write(place, f"{record.id}.json", encode_report(record) + b"\n")
    except OSError as error:
        raise _not_kept(directory, error) from error
    with contextlib.suppress(TemporaryError):  # a directory that may be written and not listed: the record is kept
        _thin_rounds(directory, record)
        _prune(directory, keep)


async def append_record_in_thread(directory: Path, record: FailoverReport, *, keep: int = KEEP) -> None:
    """Do `append_record` without blocking the event loop. A cancelled caller does not undo it."""
    await asyncio.to_thread(append_record, directory, record, keep=keep)


def read_records(directory: Path, limit: int) -> Records:
    """Return up to `limit` records, newest first. A directory that isn't there yet has none."""
    records: list[FailoverReport] = []
    skipped = 0
    for name in sorted(_list(directory), reverse=True):
        if len(records) >= limit:
            break
        record = _read(directory / name)
        if record is None:
            skipped += 1
        else:
            records.append(record)
    return Records(tuple(records), skipped)


def read_record(directory: Path, id_or_unique_prefix: str) -> FailoverReport:
    """Return one record by its id, or by any prefix that fits no other. Raises PermanentError."""
    wanted = id_or_unique_prefix
    ids = sorted(name.removesuffix(".json") for name in _list(directory) if _ID.fullmatch(name.removesuffix(".json")))
    found = [wanted] if wanted in ids else [known for known in ids if wanted and known.startswith(wanted)]
    if len(found) > 1:
        shown = ", ".join(found[-_SHOWN:]) + (", ..." if found[_SHOWN:] else "")
        msg = f"{len(found)} records begin with {wanted!r}: write more of the id ({shown})"
        raise PermanentError(msg, kind="history")
    if not found:
        msg = f"{directory} has no record whose id begins with {wanted!r}; `do-failover history` lists them"
        raise PermanentError(msg, kind="history")
    record = _read(directory / f"{found[0]}.json")
    if record is None:
        msg = f"{directory / found[0]}.json cannot be read as a record of this version; look at the file"
        raise PermanentError(msg, kind="history")
    return record


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[int]:
    place = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield place
    finally:
        os.close(place)  # and with it the lock


def _clean_if_alone(directory: Path, place: int) -> None:
    """Remove temporary files. Only under the exclusive lock is it sure that no living writer owns one."""
    try:
        fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    for leftover in directory.glob(".*.tmp"):
        if _ID.match(leftover.name, 1):
            with contextlib.suppress(OSError):  # untidy, not fatal
                leftover.unlink()


def _lock_shared(directory: Path, place: int) -> None:
    """Wait for whoever cleans, which takes milliseconds; a stopped process must not hold us up for ever."""
    end = time.monotonic() + _LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(place, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise OSError(errno.EBUSY, "another process holds it locked", str(directory)) from None
            time.sleep(0.01)
        else:
            return


def _write(place: int, name: str, data: bytes) -> None:
    temporary = f".{name}.{os.getpid()}.{time.monotonic_ns()}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    file = os.open(temporary, flags, _MODE, dir_fd=place)
    try:
        with os.fdopen(file, "wb") as stream:
            os.fchmod(stream.fileno(), _MODE)  # whatever the umask says
            give_to_owner(file, place)
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.rename(temporary, name, src_dir_fd=place, dst_dir_fd=place)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=place)
        raise
    os.fsync(place)


def _thin_rounds(directory: Path, record: FailoverReport) -> None:
    if record.outcome is not Outcome.FAILED or record.round <= _FAILED_ROUNDS + 1:
        return
    before = (record.reserved_ip, record.event, record.round - 1, Outcome.FAILED)
    names = sorted(name for name in _list(directory) if name < f"{record.id}.json")
    for found in (_read(directory / name) for name in names[-_NEAR:]):
        if found is not None and (found.reserved_ip, found.event, found.round, found.outcome) == before:
            with contextlib.suppress(OSError):  # another process was quicker, or it is not ours: untidy, not fatal
                (directory / f"{found.id}.json").unlink()


def _prune(directory: Path, keep: int) -> None:
    names = sorted(name for name in _list(directory) if _ID.fullmatch(name.removesuffix(".json")))
    for name in names[: max(0, len(names) - max(1, keep))]:
        with contextlib.suppress(OSError):  # another process was quicker, or it is not ours: untidy, not fatal
            (directory / name).unlink()


def _list(directory: Path) -> list[str]:
    try:
        return [path.name for path in directory.iterdir() if path.suffix == ".json" and not path.name.startswith(".")]
    except FileNotFoundError:
        return []
    except OSError as error:
        msg = f"the history in {directory} cannot be read ({error.strerror}); check its owner and mode"
        raise TemporaryError(msg, kind="history") from error


def _read(path: Path) -> FailoverReport | None:
    """Return the record, or None for what is not one: garbage, another id inside, a FIFO, a huge file."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(file, "rb") as stream:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST:
                return None
            record = decode_report(stream.read())
    except (OSError, ValueError):
        return None
    return record if path.name == f"{record.id}.json" else None


def _not_kept(directory: Path, error: OSError) -> TemporaryError:
    reason = error.strerror or str(error)
    advice = {
        errno.ENOSPC: "the disk is full: make room",
        errno.EDQUOT: "the disk quota is used up: make room",
        errno.EROFS: "the file system is read-only: mount it writable, or name another paths.history_dir",
        errno.EACCES: "it is not writable for this user: check its owner and mode",
        errno.EPERM: "it is not writable for this user: check its owner, mode and attributes",
        errno.EBUSY: "another process holds it locked: find it (fuser), it may be stopped",
    }.get(error.errno or 0, "check paths.history_dir")
    msg = f"this failover is not in the history in {directory} ({reason}); {advice}. The failover itself is not affected"
    return TemporaryError(msg, kind="history")
