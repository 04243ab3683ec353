"""The local socket: people's commands ask the daemon, and it answers live. One JSON object a line, both ways.

    {"op": "status"}                                        -> {"status": {...}}
    {"op": "order", "reserved_ip": ..., "to_droplet": ..., "steps": [...]}
                                                            -> {"opened": {...}} and {"stage": {...}}, then {"report": {...}}
    while an order runs: {"op": "interrupt"}, or the end of the connection: a person gave up
    whatever can't be done                                  -> {"error": {"kind": ..., "message": ..., "exit_code": ...}}

Guarantees: only root, the daemon's own user and the scripts' user are heard (SO_PEERCRED); a request is
bounded in size and time; one client's mistake ends that client's connection and nothing else.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec

from do_failover.codec import encode_report
from do_failover.daemon.orders import Order
from do_failover.errors import ConfigError, FailoverError, InterruptedByPersonError, RefusedError, TemporaryError
from do_failover.mandate import Mandate
from do_failover.model import Stage
from do_failover.request import ALL_STEPS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection
    from pathlib import Path

    from do_failover.model import FailoverReport

_LIMIT = 1 << 16
_REQUEST_S = 5.0
_UCRED = struct.Struct("3i")


class _Request(msgspec.Struct, frozen=True):
    op: str
    reserved_ip: str = ""
    to_droplet: int | None = None
    steps: list[str] = []


class LocalSocket:
    """The server's side."""

    def __init__(
        self,
        path: Path,
        uids: Collection[int],
        *,
        obey: Callable[[Order, Mandate, Callable[[Any], None]], Awaitable[FailoverReport]],
        show: Callable[[], dict[str, Any]],
    ) -> None:
        """Nothing is opened yet. `uids`: who is heard."""
        self._path, self._uids, self._obey, self._show = path, uids, obey, show
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Listen, with mode 0660. What an earlier daemon left is replaced: the lock says that it is dead. Raises TemporaryError."""
        try:
            self._path.unlink(missing_ok=True)
            self._server = await asyncio.start_unix_server(self._serve, self._path, limit=_LIMIT)
            self._path.chmod(0o660)
        except OSError as error:
            msg = f"{self._path}: {error.strerror}: commands can't ask this daemon; check paths.run_dir and its owner"
            raise TemporaryError(msg, kind="socket") from None

    async def close(self) -> None:
        """Hear nobody any more."""
        if self._server is not None:
            self._server.close()
            with suppress(OSError):
                self._path.unlink()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._answer(reader, writer)
        except FailoverError as error:
            _write(writer, "error", {"kind": error.kind, "message": error.message, "exit_code": error.exit_code})
        except (OSError, ValueError, TimeoutError):
            pass  # it left, or never said anything that could be read
        finally:
            try:
                async with asyncio.timeout(_REQUEST_S):
                    await writer.drain()
                    writer.close()
                    await writer.wait_closed()
            except (OSError, TimeoutError):
                writer.transport.abort()  # it never reads what it asked for

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(_REQUEST_S):  # read first: who writes to a closed socket never sees the reason
            line = await reader.readline()
        uid = _read_uid(writer)
        if uid not in self._uids:
            msg = f"user {uid} may not ask this daemon: only root, its own user and keepalived's script user may"
            raise RefusedError(msg)
        try:
            request = msgspec.json.decode(line, type=_Request)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            msg = f"the request can't be read: {error}"
            raise ConfigError(msg) from None
        if request.op == "status":
            _write(writer, "status", self._show())
        elif request.op == "order":
            await self._run(request, reader, writer)
        else:
            msg = f"unknown request {request.op[:40]!r}: this daemon knows status and order"
            raise ConfigError(msg)

    async def _run(self, request: _Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        steps = frozenset(request.steps) or ALL_STEPS
        if not steps <= ALL_STEPS:
            msg = f"unknown steps: {', '.join(sorted(steps - ALL_STEPS))[:80]}"
            raise ConfigError(msg)
        mandate = Mandate()

        async def wait_for_interrupt() -> None:
            line = b"?"
            with suppress(OSError, ValueError):
                line = await reader.readline()
            why = "interrupted by a person (Ctrl-C)" if line else "interrupted: the person's command has ended"
            mandate.revoke(why, InterruptedByPersonError)

        def observe(stage: Any) -> None:  # noqa: ANN401 - an open or a closed stage
            if isinstance(stage, Stage):
                _write(writer, "stage", msgspec.to_builtins(stage))
            else:
                _write(writer, "opened", {"name": stage.name, "start_s": stage.start_s})

        listening = asyncio.create_task(wait_for_interrupt())
        try:
            report = await self._obey(Order(request.reserved_ip, request.to_droplet, steps), mandate, observe)
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
        writer.write(b'{"report":%s}\n' % encode_report(report))


def _write(writer: asyncio.StreamWriter, word: str, value: object) -> None:
    if not writer.is_closing():
        writer.write(msgspec.json.encode({word: value}) + b"\n")


def _read_uid(writer: asyncio.StreamWriter) -> int:
    raw = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return int(_UCRED.unpack(raw)[1])
