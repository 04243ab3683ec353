"""Who may act: the newest event of each VRRP name, and the one running failover of each reserved IP.

keepalived forks notify scripts without order or wait, so two of them may start at the same moment.
Their order is that of their start times in /proc, then of their pids (measured: it is the FIFO's
order). Files under `run_dir`, guarded by flock, which the kernel lets go when a process dies:

    <name>.event     the newest event that was heard for a VRRP name, with its order
    <ip>.running     locked by the process that runs a failover of that reserved IP (I4)

Guarantees: of two events the later one wins, in whatever order the processes get here; whoever is
superseded gets SIGTERM, or finds out in `start`; a stale file of a former boot or of a dead process
counts for nothing. Not guaranteed: anything across machines; that is VRRP's job.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import msgspec

from do_failover.errors import TemporaryError
from do_failover.model import NotifyEvent, VrrpState
from do_failover.ownership import give_to_owner
from do_failover.whole_file import read_small

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOCK_MOST_S = 0.3  # it is held for one small read and one small write
_STATE, _START_TICKS = 0, 19  # fields 3 and 22 of /proc/PID/stat, counted after the command's closing parenthesis


@dataclass(frozen=True, slots=True, order=True)
class ProcessOrder:
    """When a process was started: clock ticks since boot, then its pid."""

    start_ticks: int
    pid: int


class Latest(msgspec.Struct, frozen=True):
    """The newest event heard of one VRRP name."""

    boot_id: str
    start_ticks: int
    pid: int
    event: NotifyEvent
    is_daemon: bool = False

    @property
    def order(self) -> ProcessOrder:
        """Return its place among the events."""
        return ProcessOrder(self.start_ticks, self.pid)


class Running(msgspec.Struct, frozen=True):
    """The process that runs a failover of one reserved IP."""

    start_ticks: int
    pid: int
    is_manual: bool
    is_daemon: bool = False


def read_order(pid: int) -> ProcessOrder | None:
    """Return a live process's order; None when there is no such process, or only its zombie."""
    try:
        fields = read_small(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[_STATE] in {b"Z", b"X"} else ProcessOrder(int(fields[_START_TICKS]), pid)


def read_age_s(pid: int) -> float:
    """Return how long ago a process was started, to a clock tick (10 ms); 0 where /proc can't say."""
    order = read_order(pid)
    if order is None:
        return 0.0
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return max(0.0, uptime - order.start_ticks / os.sysconf("SC_CLK_TCK"))


class Turn:
    """The right to run a failover of one reserved IP now; the kernel ends it with the process at the latest."""

    def __init__(self, file: int) -> None:
        """Hold the locked file, by its descriptor."""
        self._file = file

    def sign(self, running: Running) -> None:
        """Say who has it, so that a newer event knows whom to tell."""
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, msgspec.json.encode(running), 0)

    def end(self) -> None:
        """Give it up: nobody is to be told any more."""
        if self._file >= 0:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, 0)
            with contextlib.suppress(OSError):
                os.close(self._file)
            self._file = -1


def _take(file: int) -> Turn | None:
    """Lock an open file; None, and it is closed, where another process has it. Raises OSError."""
    is_taken = False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_taken = True
    except BlockingIOError:
        return None
    finally:
        if not is_taken:
            os.close(file)
    return Turn(file)


@dataclass(frozen=True, slots=True)
class ManualMove:
    """A person moved the reserved IP to another Droplet, after the event had come."""

    pid: int


def describe_newer(newer: Latest | ManualMove) -> str:
    """Return the sentence of a superseded failover."""
    if isinstance(newer, ManualMove):
        return f"superseded by a person, who moved the reserved IP to another Droplet by hand (process {newer.pid})"
    return f"superseded by the newer event {newer.event} (process {newer.pid})"


class Claims:
    """The files of one run_dir, for this process."""

    def __init__(self, run_dir: Path, order: ProcessOrder | None = None, *, is_daemon: bool = False) -> None:
        """Make the directory (0750). Raises TemporaryError (kind "claims") when that is not possible."""
        self._dir, self._is_daemon = run_dir, is_daemon
        # Made once: a decoder reads its type's annotations, which takes longer than all that is read by it.
        self._latest, self._running = msgspec.json.Decoder(Latest), msgspec.json.Decoder(Running)
        try:
            run_dir.mkdir(mode=0o750, parents=True, exist_ok=True)
            self._boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError as error:
            raise _explain(run_dir, error) from None
        self._process = read_order(os.getpid()) or ProcessOrder(0, os.getpid())
        self._order = order or self._process

    def forget(self, event: NotifyEvent) -> None:
        """Forget the newest event of this name: none is better than an old one."""
        with contextlib.suppress(OSError):
            (self._dir / f"{quote(f'{event.type}-{event.name}', safe='')}.event").unlink()

    def renew_order(self) -> ProcessOrder:
        """Take the present moment as this process's place among the events: a daemon hears many in its life."""
        ticks = time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK")
        self._order = ProcessOrder(int(ticks), os.getpid())
        return self._order

    def enter(self, event: NotifyEvent, reserved_ips: tuple[str, ...]) -> Latest | None:
        """Make this event the newest of its name and end what it supersedes.

        Returns None; or the newer event that was here already, and then nothing was changed.
        """
        key = f"{event.type}-{event.name}"
        with self._locked(key):
            latest = self._read_latest(key)
            if latest is not None and latest.order > self._order:
                return latest
            mine = Latest(self._boot_id, self._order.start_ticks, self._order.pid, event, self._is_daemon)
            self._write(f"{quote(key, safe='')}.event", msgspec.json.encode(mine))
            for address in reserved_ips:
                self._supersede(address, event)
        return None

    def find_newer(self, event: NotifyEvent, *, is_manual: bool = False) -> Latest | None:
        """Return the event that superseded this process, if there is one: any newer one, a person's only by MASTER."""
        latest = self.read_latest(event)
        if latest is None or latest.order <= self._order:
            return None
        return None if is_manual and latest.event.state is not VrrpState.MASTER else latest

    def read_latest(self, event: NotifyEvent) -> Latest | None:
        """Return the newest event of this name, of this boot."""
        return self._read_latest(f"{event.type}-{event.name}")

    def read_claim(self, kind: str, name: str) -> VrrpState | None:
        """Return what VRRP said last about a name; None when nothing was heard since boot."""
        latest = self._read_latest(f"{kind}-{name}")
        return latest.event.state if latest is not None else None

    def note_manual_move(self, reserved_ip: str) -> None:
        """Remember that a person moved the IP to another Droplet: intent, which only a newer event overrules (I6)."""
        mark = Running(self._order.start_ticks, self._order.pid, is_manual=True)
        self._write(f"{quote(reserved_ip, safe='')}.moved", msgspec.json.encode(mark))

    def read_manual_move(self, reserved_ip: str) -> ProcessOrder | None:
        """Return the process by which a person moved the IP to another Droplet last."""
        try:
            mark = self._running.decode(self._read(f"{quote(reserved_ip, safe='')}.moved"))
        except (OSError, ValueError):
            return None
        return ProcessOrder(mark.start_ticks, mark.pid)

    def _find_manual_move(self, reserved_ip: str) -> ManualMove | None:
        order = self.read_manual_move(reserved_ip)
        return ManualMove(order.pid) if order is not None and order > self._order else None

    def try_start(self, reserved_ip: str, event: NotifyEvent, *, is_manual: bool = False) -> Turn | Latest | ManualMove | None:
        """Take the reserved IP's turn, for an event; or for a person, who names the event that would supersede this.

        Returns the turn; None while another process has it; or what superseded it meanwhile: a newer
        event, or a person who moved the IP elsewhere. Raises TemporaryError (kind "claims") where the files can't be used.
        """
        path = self._dir / f"{quote(reserved_ip, safe='')}.running"
        try:
            turn = _take(self._open(path))
        except OSError as error:
            raise _explain(path, error) from None
        if turn is None:
            return None
        newer: Latest | ManualMove | None = None
        is_signed = False
        try:
            with self._locked(f"{event.type}-{event.name}"):
                newer = self.find_newer(event, is_manual=is_manual) or (None if is_manual else self._find_manual_move(reserved_ip))
                if newer is None:
                    turn.sign(Running(self._process.start_ticks, self._process.pid, is_manual, self._is_daemon))
                    is_signed = True
        except OSError as error:
            raise _explain(path, error) from None
        finally:
            if not is_signed:
                turn.end()
        return newer or turn

    def read_running(self, reserved_ip: str) -> Running | None:
        """Return the live process that runs a failover of this reserved IP."""
        try:
            running = self._running.decode(self._read(f"{quote(reserved_ip, safe='')}.running"))
        except (OSError, ValueError):  # msgspec's errors are ValueErrors, and so is text that is none
            return None
        order = read_order(running.pid)
        return running if order is not None and order.start_ticks == running.start_ticks else None

    def _supersede(self, reserved_ip: str, event: NotifyEvent) -> None:
        """Tell the running failover that it is superseded. A person's assign yields to a MASTER only (I2)."""
        running = self.read_running(reserved_ip)
        if running is None or running.pid == self._process.pid or running.is_daemon:
            return  # a daemon looks for newer events by itself, and has more to do than this one
        if running.is_manual and event.state is not VrrpState.MASTER:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):  # another user's sees the newer event by itself
            os.kill(running.pid, signal.SIGTERM)

    def _read_latest(self, key: str) -> Latest | None:
        try:
            latest = self._latest.decode(self._read(f"{quote(key, safe='')}.event"))
        except (OSError, ValueError):
            return None
        return latest if latest.boot_id == self._boot_id else None

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        path = self._dir / f"{quote(key, safe='')}.lock"
        lock = self._open(path)
        try:
            end = time.monotonic() + _LOCK_MOST_S
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > end:
                        msg = f"{path}: another process holds it and does not let go; this failover goes on without knowing of others"
                        raise TemporaryError(msg, kind="claims") from None
                    time.sleep(0.005)
                except OSError as error:
                    raise _explain(path, error) from None
            yield
        finally:
            os.close(lock)

    def _open(self, path: Path) -> int:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as error:
            raise _explain(path, error) from None
        give_to_owner(file, self._dir)
        return file

    def _read(self, name: str) -> bytes:
        return read_small(f"{self._dir}/{name}")

    def _write(self, name: str, data: bytes) -> None:
        path = self._dir / name
        temporary = path.with_suffix(f".{self._order.pid}.tmp")
        try:
            with temporary.open("wb") as file:
                give_to_owner(file.fileno(), self._dir)
                file.write(data)
            temporary.replace(path)
        except OSError as error:
            raise _explain(path, error) from None


def _explain(path: Path, error: OSError) -> TemporaryError:
    msg = f"{path}: {error.strerror}; without it, failovers of this machine can't be kept apart; check paths.run_dir"
    return TemporaryError(msg, kind="claims")
