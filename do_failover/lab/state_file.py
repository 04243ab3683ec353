"""Labs that stand on their own: one small file each in /run, for `lab shell` and `lab down`.

A file whose process is gone is removed by whoever sees it; the start time guards against a reused pid.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from do_failover.lab.errors import LabError
from do_failover.lab.poll import until

DIRECTORY = Path("/run/do-failover-lab")
DEFAULT_NAME = "lab"


def check_free(name: str, directory: Path = DIRECTORY) -> None:
    """Return when no lab of that name stands."""
    if name in standing(directory):
        message = f"a lab named {name!r} stands already: end it with `do-failover lab down {name}`, or choose another --name"
        raise LabError(message)


def write(name: str, pid: int, directory: Path = DIRECTORY) -> None:
    """Remember a lab that stands."""
    directory.mkdir(mode=0o700, exist_ok=True)
    fresh = directory / f".{name}"
    fresh.write_text(json.dumps({"pid": pid, "started": _started(pid)}), encoding="ascii")
    fresh.rename(directory / f"{name}.json")


def standing(directory: Path = DIRECTORY) -> dict[str, int]:
    """Every lab that stands: name and pid of its lab process. Files of labs that are gone are removed."""
    found = {}
    for path in sorted(directory.glob("*.json")):
        state = json.loads(path.read_text(encoding="ascii"))
        if _started(state["pid"]) == state["started"]:
            found[path.stem] = int(state["pid"])
        else:
            _forget(path)
    return found


def pid_of(name: str | None, directory: Path = DIRECTORY) -> tuple[str, int]:
    """Name and pid of the lab of that name, or of the only one. LabError says what stands otherwise."""
    labs = standing(directory)
    if name is None and len(labs) == 1:
        return next(iter(labs.items()))
    if name is not None and name in labs:
        return name, labs[name]
    shown = f"these stand: {', '.join(labs)}" if labs else "none stands (`do-failover lab up` makes one)"
    message = f"{'which lab' if name is None else f'there is no lab {name!r}'}? {shown}"
    raise LabError(message)


async def end(name: str, pid: int, directory: Path = DIRECTORY) -> None:
    """Kill the lab process and wait until it is gone, and with it everything in the lab."""
    started = _started(pid)
    os.kill(pid, signal.SIGKILL)
    await until(lambda: _started(pid) != started, f"lab {name!r} did not end", limit_s=20)
    _forget(directory / f"{name}.json")


def _forget(path: Path) -> None:
    path.unlink(missing_ok=True)
    if not any(path.parent.iterdir()):
        path.parent.rmdir()


def _started(pid: int) -> str | None:
    """Return the process's start time in clock ticks since boot (proc(5), field 22); None when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()[19]
