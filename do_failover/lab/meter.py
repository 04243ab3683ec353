"""The outage meter: every source asks the reserved IP who answers, all along, each time on a new TCP connection.

The sockets are made in the source's network namespace and used from here: no process a source.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import time
from collections.abc import Callable

from do_failover.lab.errors import LabError
from do_failover.lab.outage import Service

TIMEOUT_S = 1.0
_CLONE_NEWNET = 0x40000000
_REQUEST = b"GET / HTTP/1.0\r\n\r\n"

OnChange = Callable[[str, str | None], None]
"""Called with a source and who answers it now (None: nobody)."""


_OFTEN_S = 0.1


def interval_s(sources: int) -> float:
    """How often a source asks: ten times a second, and 200 probes a second for all of them at most."""
    return max(_OFTEN_S, sources / 200)


class NamespaceDoor:
    """Makes sockets in other network namespaces. Only for the thread that runs the event loop."""

    def __init__(self) -> None:
        """Remember the way back."""
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def socket(self, net_fd: int, address: str, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
        """Make a non-blocking socket that lives in the namespace of `net_fd`, of the family of `address`."""
        self._enter(net_fd)
        try:
            made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
        finally:
            self._enter(self._home)
        made.settimeout(0)
        return made

    def _enter(self, fd: int) -> None:
        if self._libc.setns(fd, _CLONE_NEWNET) != 0:
            message = f"setns failed: {os.strerror(ctypes.get_errno())}"
            raise LabError(message)


class Meter:
    """Probes all sources until stopped. `services` holds each source's answers, folded."""

    def __init__(self, door: NamespaceDoor, net_fds: dict[str, int], reserved_ip: str, on_change: OnChange) -> None:
        """Nothing is asked yet."""
        self._door = door
        self._net_fds = net_fds
        self._target = (reserved_ip, 80)
        self._on_change = on_change
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.services = {name: Service() for name in net_fds}

    def start(self) -> None:
        """Start asking from every source, evenly spread over the interval. The first one, the client, asks often always."""
        every_s = interval_s(len(self._net_fds))
        self._tasks = {
            name: asyncio.create_task(
                self._ask_forever(name, every_s if number else _OFTEN_S, delay_s=every_s * number / len(self._net_fds))
            )
            for number, name in enumerate(self._net_fds)
        }

    async def stop(self) -> None:
        """Stop asking; the answers stay."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def forget(self, name: str) -> None:
        """Stop asking from a source whose namespace ends now; from here on nobody answers it."""
        if name in self._tasks:
            self._tasks.pop(name).cancel()
            self.services[name].add(time.monotonic(), None)

    def answered_by(self, owner: str) -> list[str]:
        """Return the sources whose last probe `owner` answered."""
        return [name for name, service in self.services.items() if service.is_served_by(owner)]

    def not_answered_by(self, owner: str) -> list[str]:
        """Return the other sources."""
        return [name for name, service in self.services.items() if not service.is_served_by(owner)]

    async def _ask_forever(self, name: str, every_s: float, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        while True:
            started_at = time.monotonic()
            answer = await self._ask(self._net_fds[name])
            if self.services[name].add(started_at, answer):
                self._on_change(name, answer)
            await asyncio.sleep(max(0.0, started_at + every_s - time.monotonic()))

    async def _ask(self, net_fd: int) -> str | None:
        """Who answers: the body of the page, one word; None for no answer within `TIMEOUT_S`."""
        loop = asyncio.get_running_loop()
        with self._door.socket(net_fd, self._target[0]) as probe:
            page = b""
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    await loop.sock_connect(probe, self._target)
                    await loop.sock_sendall(probe, _REQUEST)
                    while data := await loop.sock_recv(probe, 4096):
                        page += data
            except (OSError, TimeoutError):
                return None
        _, _, body = page.partition(b"\r\n\r\n")
        return body.decode("ascii", errors="replace").strip() or None
