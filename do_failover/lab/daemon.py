"""do-failover's daemon on a load balancer: how it is started there, which files are whose, what it says of itself.

It runs as do-failover.service runs it, as far as that goes without systemd: an unprivileged user, CAP_NET_RAW
as its only capability, and a FIFO and a token that are root's. So the lab proves that this is enough.
"""

from __future__ import annotations

import asyncio
import json
import os
from importlib import resources
from typing import TYPE_CHECKING, Any

from do_failover.lab import files, keepalived

if TYPE_CHECKING:
    from pathlib import Path

RUN_DIR = "do-failover"
"""Below the node's /run."""

_ANSWER_S = 5.0
_AS_ROOT_LEFT = [
    *("setpriv", "--reuid", str(files.UID), "--regid", str(files.UID), "--clear-groups", "--no-new-privs"),
    *("--inh-caps=-all,+net_raw", "--ambient-caps=-all,+net_raw", "--bounding-set=-all,+net_raw", "--"),
]
COMMAND = [*_AS_ROOT_LEFT, "env", "HOME=/run/home", f"USER={files.USER}", files.PROGRAM, "daemon"]


def shim() -> str:
    """Return the notify script as it is shipped, with the lab's program in it."""
    return files.shim(resources.files("do_failover").joinpath("share/do-failover-notify").read_text(encoding="utf-8"))


def give_files(run: Path) -> None:
    """Do what sysusers.d, tmpfiles.d and the operator do: `run` is the node's /run, equipped but for this."""
    for name in (RUN_DIR, "home"):
        (run / name).mkdir(mode=0o750)
        os.chown(run / name, files.UID, files.UID)
    os.chown(run / files.HISTORY, files.UID, files.UID)
    fifo = run / keepalived.FIFO.removeprefix("/run/")
    os.mkfifo(fifo)
    for path in (fifo, run / "lab/token", run / "lab/identity"):
        os.chown(path, 0, files.UID)
        path.chmod(0o660 if path is fifo else 0o640)


async def ask_status(run: Path) -> dict[str, Any] | None:
    """Return what the daemon says of itself; None while it can't be asked."""
    try:
        async with asyncio.timeout(_ANSWER_S):
            reader, writer = await asyncio.open_unix_connection(run / RUN_DIR / "do-failover.sock", limit=1 << 24)
            try:
                writer.write(b'{"op":"status"}\n')
                status: dict[str, Any] | None = json.loads(await reader.readline() or b"{}").get("status")
            finally:
                writer.close()
    except (OSError, TimeoutError, ValueError):
        return None
    return status


def is_armed(status: dict[str, Any] | None, peers: int) -> bool:
    """Whether the daemon has so many peers, and all of them armed."""
    return has_peers(status, peers) and status is not None and all(peer["armed"] for peer in status["peers"])


def has_peers(status: dict[str, Any] | None, peers: int) -> bool:
    """Whether the daemon has so many peers."""
    return status is not None and len(status["peers"]) == peers
