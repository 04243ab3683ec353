"""TreeShell: runs commands on peers by way of ClusterShell, which lives in a process of its own (relay)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from do_failover.errors import PeerError
from do_failover.foreign import clean_text
from do_failover.peer_words import PeerCommand, frame_line
from do_failover.tree.sentences import CLOSED, COLD, describe_start, read_answer, say

if TYPE_CHECKING:
    from asyncio.subprocess import Process

    from do_failover.model import Peer
    from do_failover.tree.settings import TreeSettings

RELAY = (sys.executable, "-P", str(Path(__file__).with_name("relay.py")))
_START_S = 10.0
_END_S = 2.0
_MORE_S = 2.0
_LONGEST_LINE = 1 << 20
_SSH_PORT = 22
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,252}", re.ASCII)  # no option of ssh's, no set and no group of ClusterShell's
_KEPT = re.compile(r"PATH|HOME|USER|LOGNAME|LANG|LC_[A-Z]+|TZ|TMPDIR|SSH_AUTH_SOCK|PYTHONPATH|XDG_CONFIG_HOME|CLUSTERSHELL_\w+")


class TreeShell:
    """Peers behind gateways, as refresh's PeerShell. To be used as an async context manager, or ended by `close`.

    Guarantees: ClusterShell is started at the first command and all commands run in it side by side; a command is sent once
    at most; whoever is cancelled leaves at once, and what it asked for ends within its own bounds. It belongs to one event loop.
    """

    def __init__(self, settings: TreeSettings, relay: tuple[str, ...] = RELAY) -> None:
        """Nothing is started yet."""
        self._settings = settings
        self._command = relay
        self._starting: asyncio.Task[Process] | None = None
        self._reading: asyncio.Task[None] | None = None
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._number = self._most = 0  # the commands so far; how many were under way at once since there was none
        self._end: dict[str, Any] | None = None
        self.gateways: tuple[str, ...] = ()

    async def __aenter__(self) -> Self:
        """Start nothing yet."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """End it."""
        await self.close()

    async def open(self) -> tuple[str, ...]:
        """Start ClusterShell, and return the gateways of this host's topology. Raises PeerError, whose message names no peer."""
        await self._start()
        if self._end is not None:
            raise PeerError(describe_start(self._end, self._settings.topology))
        return self.gateways

    async def run(self, peer: Peer, command: str) -> str:
        """Run a command on a peer and return its standard output, or do-failover-peer's answer. Raises PeerError.

        It is bounded by connect_timeout_s and command_timeout_s on the peer, once a turn of its gateway's `fanout`.
        """
        self._check(peer)
        try:
            process = await self._start()
        except PeerError as error:
            raise say(peer.host, error.message, error.kind) from None
        if self._end is not None:
            raise self._say_end(peer)
        self._number += 1
        number = self._number
        words = frame_line(COLD, command.words) if isinstance(command, PeerCommand) else ""
        self._write(process, {"id": number, "host": peer.host, "command": str(command), "stdin": words})
        told: dict[str, Any] | None = None
        try:
            told = await self._wait_for(number)
        finally:
            if told is None:
                self._write(process, {"drop": number})
        if told is None:
            sentence = f"no answer within {self._find_bound():g} s: its gateway hangs, or has more to do than it can; look at the gateway"
            raise say(peer.host, sentence, "unreachable")
        if told is self._end:
            raise self._say_end(peer)
        return read_answer(peer.host, told, self._settings.timeout_s)

    async def close(self) -> None:
        """End ClusterShell and what it started here. Afterwards no process and no task is left; a later use is a PeerError."""
        self._conclude({"problem": "closed"})
        if self._starting is None:
            return
        await asyncio.wait([self._starting])
        if self._starting.cancelled() or self._starting.exception() is not None:
            return
        process = self._starting.result()
        if process.stdin is not None:
            process.stdin.close()
        try:
            async with asyncio.timeout(_END_S):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its own session: it, and every ssh of its
            await process.wait()
        if self._reading is not None:
            await asyncio.wait([self._reading])

    def _say_end(self, peer: Peer) -> PeerError:
        end = self._end or {}
        sentence = CLOSED if end.get("problem") == "closed" else describe_start(end, self._settings.topology)
        return say(peer.host, sentence, "unreachable")

    def _check(self, peer: Peer) -> None:
        if not _HOST.fullmatch(peer.host):
            raise say(peer.host, "ClusterShell can't take this name for one host; list it by its address, or correct it", "command")
        if peer.port != _SSH_PORT or peer.user not in {None, self._settings.user}:
            sentence = (
                "it is listed with a user or a port of its own, which ClusterShell does not pass on, so it was not told; write them into "
                "~/.ssh/config of its gateway's user, and list it without"
            )
            raise say(peer.host, sentence, "command")

    async def _wait_for(self, number: int) -> dict[str, Any] | None:
        """Return what is told of a command; None when it is late. Who comes later may be served before it, and prolongs the wait."""
        loop = asyncio.get_running_loop()
        started, future = loop.time(), loop.create_future()
        self._waiting[number] = future
        self._most = max(self._most if len(self._waiting) > 1 else 0, len(self._waiting))
        try:
            while not future.done() and (left_s := started + self._find_bound() - loop.time()) > 0:
                await asyncio.wait([future], timeout=left_s)
        finally:
            del self._waiting[number]
        return future.result() if future.done() else None

    def _find_bound(self) -> float:
        """Return when even a gateway with a queue is late: a login to it, then the peers in turns of `fanout`."""
        turns = 1 + (self._most - 1) // self._settings.fanout
        return self._settings.connect_timeout_s + turns * self._settings.timeout_s + _MORE_S

    async def _start(self) -> Process:
        if self._starting is None:
            if self._end is not None:
                raise PeerError(CLOSED)
            self._starting = asyncio.create_task(self._begin())
        try:
            return await asyncio.shield(self._starting)
        except OSError as error:
            msg = (
                f"ClusterShell's process can't be started ({error.strerror}): no peer is reached; free what is used up, or set peers.fanout"
            )
            raise PeerError(msg) from None

    async def _begin(self) -> Process:
        environment = {key: value for key, value in os.environ.items() if _KEPT.fullmatch(key)}
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *self._command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment, start_new_session=True, cwd="/", limit=_LONGEST_LINE
        )
        self._write(process, self._settings.to_relay())
        try:
            async with asyncio.timeout(_START_S):
                told = await _read_line(process)
        except TimeoutError:
            told = {"problem": "mute", "said": f"it did not begin within {_START_S:g} s"}
        if told is None or "problem" in told:
            self._conclude(told or await _explain_end(process))
        else:
            self.gateways = tuple(told["gateways"])
            self._reading = asyncio.create_task(self._read(process))
        return process

    async def _read(self, process: Process) -> None:
        """Hand each answer to whoever waits for it, until the end."""
        with contextlib.suppress(ValueError):  # no line, or none of ours: that is an end too
            while (told := await _read_line(process)) is not None:
                future = self._waiting.get(told.get("id", 0))
                if future is not None and not future.done():
                    future.set_result(told)
        self._conclude(await _explain_end(process) if self._end is None else self._end)

    def _conclude(self, end: dict[str, Any]) -> None:
        self._end = self._end or end
        for future in self._waiting.values():
            if not future.done():
                future.set_result(self._end)

    @staticmethod
    def _write(process: Process, words: dict[str, Any]) -> None:
        if process.stdin is not None and not process.stdin.is_closing():
            process.stdin.write(json.dumps(words).encode() + b"\n")


async def _read_line(process: Process) -> dict[str, Any] | None:
    """Return what the relay says next; None at its end. Raises ValueError for anything else."""
    line = await process.stdout.readline() if process.stdout is not None else b""
    found: dict[str, Any] | None = json.loads(line) if line else None
    return found


async def _explain_end(process: Process) -> dict[str, Any]:
    """Return why it ended by itself: the last line that it wrote to stderr."""
    text = b""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_END_S):
            text = await process.stderr.read(_LONGEST_LINE) if process.stderr is not None else b""
    said = clean_text(text.decode(errors="replace").strip().rpartition("\n")[2])
    is_missing = said is not None and "No module named 'ClusterShell" in said
    return {"problem": "missing" if is_missing else "ended", "said": said}
