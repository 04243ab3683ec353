"""The API's door: accepts TCP connections and lets each into TLS, or into the fault whose turn it is.

It accepts by itself instead of leaving that to asyncio's server, because the faults of faults.Doorstep lie before TLS.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from do_failover.lab.faults import Doorstep, Fault, FaultScript

if TYPE_CHECKING:
    import ssl

_BACKLOG = 1024
_RESET = struct.pack("ii", 1, 0)

OnFault = Callable[[str, Fault], None]
"""Called with the address of a connection that meets a fault ("" for those that can't be seen), and the fault."""


class Listener:
    """Listens on `host:port` (port 0: any). `start` opens the door, `close` closes it and what hangs on it."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext, on_fault: OnFault) -> None:
        """Bind, but accept nothing yet. OSError when the address can't be had."""
        self._socket = socket.create_server((host, port), backlog=_BACKLOG)
        self._socket.setblocking(False)  # noqa: FBT003  socket's own signature
        self._context = context
        self._on_fault = on_fault
        self._script = FaultScript()
        self._factory: Callable[[], asyncio.BaseProtocol] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._reopening: asyncio.TimerHandle | None = None
        self._filler: socket.socket | None = None

    @property
    def port(self) -> int:
        """The port that it is bound to."""
        port: int = self._socket.getsockname()[1]
        return port

    @property
    def is_hanging(self) -> bool:
        """Whether new connections hang in connect right now."""
        return self._filler is not None

    def start(self, factory: Callable[[], asyncio.BaseProtocol]) -> None:
        """Accept, and give each connection a protocol of the factory."""
        self._factory = factory
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._accept)

    def follow(self, script: FaultScript) -> None:
        """Take the faults of this script from now on. A door that hangs opens first."""
        self._script = script
        self._reopen()
        self.take_turn()

    def take_turn(self) -> None:
        """Begin to hang in connect if that is what comes next; call it when a fault was met."""
        if self._script.doorstep_next is not Doorstep.HANG_CONNECT or self._filler is not None:
            return
        fault = self._script.meet_connection()
        if fault is None:
            return
        self._accept()
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._socket.fileno())
        self._socket.listen(0)
        self._filler = socket.create_connection(self._socket.getsockname()[:2])
        if fault.effect.hang_s < math.inf:
            self._reopening = loop.call_later(fault.effect.hang_s, self._end_hang)
        self._on_fault("", fault)

    async def close(self) -> None:
        """Stop accepting, reset what hangs, and wait for it."""
        self._reopen()
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self._socket.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _end_hang(self) -> None:
        self._reopen()
        self.take_turn()

    def _reopen(self) -> None:
        """Take the filler out of the queue and accept again."""
        if self._reopening is not None:
            self._reopening.cancel()
            self._reopening = None
        if self._filler is None:
            return
        accepted, _ = self._socket.accept()
        accepted.close()
        self._filler.close()
        self._filler = None
        self._socket.listen(_BACKLOG)
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._accept)

    def _accept(self) -> None:
        """Accept all that wait."""
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            while True:
                connection, address = self._socket.accept()
                connection.setblocking(False)  # noqa: FBT003  socket's own signature
                task = asyncio.create_task(self._admit(connection, address[0]))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _admit(self, connection: socket.socket, address: str) -> None:
        if self._script.doorstep_next in {Doorstep.HANG_TLS, Doorstep.RESET}:
            fault = self._script.meet_connection()
            if fault is not None:
                self._on_fault(address, fault)
                self.take_turn()
                await self._turn_away(connection, fault)
                return
        if self._factory is not None:
            with contextlib.suppress(OSError):  # of a handshake, ssl.SSLError included: the client's affair
                await asyncio.get_running_loop().connect_accepted_socket(self._factory, connection, ssl=self._context)

    async def _turn_away(self, connection: socket.socket, fault: Fault) -> None:
        """Hold a connection without a word for as long as the fault says, then reset it."""
        with connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            if fault.effect.doorstep is Doorstep.HANG_TLS:
                hang_s = fault.effect.hang_s
                await asyncio.sleep(hang_s) if hang_s < math.inf else await asyncio.Event().wait()


def reset(transport: asyncio.Transport) -> None:
    """End a connection with a TCP reset (RST): what is not sent yet is dropped."""
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.abort()
