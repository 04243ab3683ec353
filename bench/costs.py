"""CPU and peak memory of one way's own processes, and of nobody else's: the kernel counts, by a cgroup.

Version 2, or version 1 with cpuacct and memory. The peers' processes are started by the lab, so they are in no
enclosure. Peak memory is what the kernel charges to the processes, page cache that they were the first to touch included.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable

_ROOT = Path("/sys/fs/cgroup")
_NUMBERS = itertools.count()
_END_LIMIT_S = 5.0


def _own_group(controller: str) -> str:
    """Return where this process is in a hierarchy: the path below its mount."""
    for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        _, names, path = line.split(":", 2)
        if controller in names.split(","):
            return path.strip("/")
    return ""


def _find_groups() -> dict[str, Path]:
    """Return below which directories enclosures can be made: version 2's only one, or version 1's of CPU and of memory."""
    if (_ROOT / "cgroup.controllers").exists():
        return {"unified": _ROOT}
    found = {name: _ROOT / name / _own_group(name) for name in ("cpuacct", "memory")}
    return {name: path for name, path in found.items() if path.is_dir()}


class Enclosure:
    """Processes whose cost is counted together. Removed with the block; what still runs in it is killed."""

    def __init__(self) -> None:
        """Make it; OSError where cgroups can't be made."""
        name = f"do-failover-bench-{os.getpid()}-{next(_NUMBERS)}"
        self._groups = {kind: parent / name for kind, parent in _find_groups().items()}
        for path in self._groups.values():
            path.mkdir()

    def __enter__(self) -> Self:
        """Nothing is in it yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """End what is left in it."""
        self.close()

    @property
    def entry(self) -> Callable[[], None]:
        """Return what a new process does first, between fork and exec."""
        files = [str(path / "cgroup.procs") for path in self._groups.values()]

        def enter() -> None:
            for name in files:
                fd = os.open(name, os.O_WRONLY)
                os.write(fd, b"0")
                os.close(fd)

        return enter

    def cpu_s(self) -> float:
        """Return the CPU time of all that ever ran in it."""
        if "unified" in self._groups:
            words = (self._groups["unified"] / "cpu.stat").read_text(encoding="ascii").split()
            return int(words[words.index("usage_usec") + 1]) / 1e6
        if "cpuacct" in self._groups:
            return int((self._groups["cpuacct"] / "cpuacct.usage").read_text(encoding="ascii")) / 1e9
        return float("nan")

    def peak_octets(self) -> int | None:
        """Return the most memory that it had at once; None where the kernel doesn't count it."""
        for kind, name in (("unified", "memory.peak"), ("memory", "memory.max_usage_in_bytes")):
            path = self._groups.get(kind)
            if path is not None and (path / name).exists():
                return int((path / name).read_text(encoding="ascii"))
        return None

    def close(self) -> None:
        """End what runs in it, and remove it."""
        end = time.monotonic() + _END_LIMIT_S
        while True:
            for pid in self._pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            left = [path for path in self._groups.values() if not _remove(path)]
            if not left or time.monotonic() > end:
                return
            time.sleep(0.01)

    def _pids(self) -> set[int]:
        found: set[int] = set()
        for path in self._groups.values():
            with contextlib.suppress(OSError):
                found |= {int(word) for word in (path / "cgroup.procs").read_text(encoding="ascii").split()}
        return found - {os.getpid()}


def _remove(path: Path) -> bool:
    try:
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def remove_leftovers() -> None:
    """Remove the empty enclosures of a bench that was killed by SIGKILL; its pid may be another process's by now."""
    for parent in _find_groups().values():
        for path in parent.glob("do-failover-bench-*"):
            if not _is_bench(path.name.split("-")[3]):
                _remove(path)


def _is_bench(pid: str) -> bool:
    try:
        return b"bench" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
