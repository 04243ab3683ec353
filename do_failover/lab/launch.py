"""Starts the lab process in namespaces of its own and listens to its events, from outside.

A tied lab dies with this process, also by kill -9: the kernel sends its death on (`setpriv --pdeathsig`), and the
leash (its stdin) ends. A lab that is not tied hangs on the leash until `release`. Either way the end of
the lab process ends everything in it: processes, namespaces, mounts, files.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from do_failover.lab.errors import LabError
from do_failover.lab.guard import raised_host_limits
from do_failover.lab.inner import RELEASE
from do_failover.lab.poll import until
from do_failover.lab.requirements import PATH, check_machine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from do_failover.lab.options import LabOptions

Event = dict[str, Any]

_TIE = ["setpriv", "--pdeathsig", "KILL", "--"]
_UNSHARE = [
    *("unshare", "--fork", "--pid", "--kill-child=KILL", "--mount", "--net", "--uts", "--ipc"),
    *("--propagation", "private", "--mount-proc", "--"),
]
_LINE_LIMIT = 1 << 24
_STDERR_KEPT = 4000
_END_LIMIT_S = 10.0


class LabProcess:
    """A running lab, seen from outside."""

    def __init__(self, options: LabOptions, *, is_tied: bool, held_fds: tuple[int, ...]) -> None:
        """Start it. Not asyncio's subprocess: that one kills a child that should live on."""
        self._transport: asyncio.BaseTransport | None = None
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  read when the lab ends without a word
        self._process = subprocess.Popen(
            [
                *(_TIE if is_tied else []),
                *_UNSHARE,
                *(sys.executable, "-m", "do_failover.lab.inner", options.to_json()),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            cwd="/",
            env=_environment(),
            start_new_session=True,
            pass_fds=held_fds,
        )

    @property
    def pid(self) -> int:
        """The lab process (pid 1 in there), in our numbering. LabError when it is gone."""
        outer = self._process.pid
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
            return int(Path(f"/proc/{outer}/task/{outer}/children").read_text(encoding="ascii"))
        message = "the lab is gone"
        raise LabError(message)

    async def events(self) -> AsyncIterator[Event]:
        """Every event until the lab ends; an event `failed`, and an end without a word, raise LabError."""
        is_told = False
        reader = asyncio.StreamReader(limit=_LINE_LIMIT)
        self._transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader),
            os.fdopen(os.dup(self._stdout()), "rb"),
        )
        while line := await reader.readline():
            event: Event = json.loads(line)
            if event["event"] == "failed":
                raise LabError(event["message"], kind=event["kind"])
            is_told = is_told or event["event"] in {"result", "ready"}
            yield event
        if not is_told:
            await self._wait()
            message = f"the lab process ended without a word ({self._process.returncode}): {self._last_words()}"
            raise LabError(message)

    def release(self) -> None:
        """Let the lab live on without us."""
        if self._process.stdin is not None:
            self._process.stdin.write(RELEASE)
            self._process.stdin.flush()

    async def end(self) -> None:
        """SIGKILL the lab process; on return everything in it is gone."""
        with contextlib.suppress(LabError, ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        await self._wait()

    def close(self) -> None:
        """Let go of the pipes: a lab on its leash ends, a released one lives on."""
        if self._transport is not None:
            self._transport.close()
        for pipe in (self._process.stdin, self._process.stdout, self._stderr):
            if pipe is not None:
                pipe.close()

    async def _wait(self) -> None:
        """Wait for unshare, which waits for the lab process, which the kernel ends after everything in it."""
        try:
            await until(lambda: self._process.poll() is not None, "the lab did not end", limit_s=_END_LIMIT_S)
        except LabError:
            self._process.kill()
            self._process.wait()

    def _stdout(self) -> int:
        if self._process.stdout is None:
            message = "the lab has no events"
            raise LabError(message)
        return self._process.stdout.fileno()

    def _last_words(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read().decode(errors="replace").strip()[-_STDERR_KEPT:]


@contextlib.asynccontextmanager
async def launch(options: LabOptions, *, is_tied: bool) -> AsyncIterator[LabProcess]:
    """Start a lab; at the end of the block it is ended, unless it is not tied and was released."""
    check_machine()
    async with raised_host_limits(options.peers) as held_fds:
        lab = LabProcess(options, is_tied=is_tied, held_fds=held_fds)
    try:
        yield lab
    except BaseException:
        await lab.end()
        raise
    else:
        if is_tied:
            await lab.end()
    finally:
        lab.close()


def _environment() -> dict[str, str]:
    """As bare as a systemd service's: no token of the operator's, no DO_FAILOVER_* reaches the rehearsal."""
    kept = {name: os.environ[name] for name in ("PYTHONPATH", "TERM") if name in os.environ}
    return {**kept, "PATH": PATH, "LANG": "C.UTF-8", "HOME": "/root"}
