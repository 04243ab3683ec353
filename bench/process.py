"""A process of the bench's own, and its lines: it waits for a go on its stdin, and is gone with the block."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from bench.costs import Enclosure

TOP = Path(__file__).resolve().parent.parent
LIMIT_S = 300.0
_LIBC = ctypes.CDLL(None)


class BenchError(Exception):
    """Something that is measured did not do what it should; the text says what."""


def make_environment(**more: str) -> dict[str, str]:
    """Return an environment without a token, without settings of the operator's, and with this checkout's packages."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("DO_FAILOVER", "DIGITALOCEAN", "SSH_"))}
    return {**kept, "PYTHONPATH": str(TOP), "LC_ALL": "C.UTF-8", **more}


class Talker:
    """A process that is told lines and answers in lines of JSON."""

    def __init__(self, process: asyncio.subprocess.Process, what: str) -> None:
        """Take a process; `what` names it in errors."""
        self.process, self._what = process, what

    def tell(self, line: str) -> None:
        """Write one line, at once."""
        if self.process.stdin is None:
            message = f"{self._what} hears nothing"
            raise BenchError(message)
        self.process.stdin.write(line.encode() + b"\n")

    async def hear(self, limit_s: float = LIMIT_S) -> dict[str, Any]:
        """Return its next line. BenchError when it ends, complains, or takes too long."""
        if self.process.stdout is None:
            message = f"{self._what} says nothing"
            raise BenchError(message)
        try:
            async with asyncio.timeout(limit_s):
                line = await self.process.stdout.readline()
        except TimeoutError:
            message = f"{self._what} did not answer within {limit_s:g} s"
            raise BenchError(message) from None
        if not line:
            message = f"{self._what} ended ({await self.process.wait()})"
            raise BenchError(message)
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            message = f"{self._what}: {found['error']}"
            raise BenchError(message)
        return found

    async def wait(self, limit_s: float = LIMIT_S) -> int:
        """Wait for its end and return its exit code."""
        try:
            async with asyncio.timeout(limit_s):
                return await self.process.wait()
        except TimeoutError:
            message = f"{self._what} did not end within {limit_s:g} s"
            raise BenchError(message) from None


def _prepare(enclosure: Enclosure | None) -> None:
    """Between fork and exec: die with the bench, also by its kill -9 (PR_SET_PDEATHSIG), and enter the cgroup."""
    _LIBC.prctl(1, signal.SIGKILL)
    if enclosure is not None:
        enclosure.entry()


@contextlib.asynccontextmanager
async def started(
    argv: Sequence[str], what: str, *, enclosure: Enclosure | None = None, is_heard: bool = True, environment: dict[str, str] | None = None
) -> AsyncIterator[Talker]:
    """Start a process; at the end of the block it is ended, whatever happened, and its children with it (its process group)."""
    log = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE if is_heard else asyncio.subprocess.DEVNULL,
        stderr=None if os.environ.get("BENCH_STDERR") else asyncio.subprocess.DEVNULL,
        env=make_environment(**(environment or {})),
        start_new_session=True,
        preexec_fn=lambda: _prepare(enclosure),
        limit=1 << 22,
    )
    try:
        yield Talker(log, what)
    finally:
        if log.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(log.pid, signal.SIGKILL)
            await log.wait()
        log._transport.close()  # type: ignore[attr-defined]  # Python 3.11 leaves its pipes to the collector


@contextlib.asynccontextmanager
async def poised(
    argv: Sequence[str], what: str, *, enclosure: Enclosure | None = None, environment: dict[str, str] | None = None
) -> AsyncIterator[Talker]:
    """Fork a shell that becomes the command at `go`: so what the bench's own fork costs is not measured."""
    command = ["sh", "-c", 'echo {}; read -r go; exec "$@" </dev/null >/dev/null', "sh", *argv]
    async with started(command, what, enclosure=enclosure, environment=environment) as talker:
        await talker.hear()
        yield talker
