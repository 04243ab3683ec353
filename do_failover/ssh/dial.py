"""From a peer's name to a connected TCP socket on which somebody speaks.

Names are looked up in daemon threads of their own: a resolver that hangs would fill asyncio's few shared threads
(6 on two cores) and so delay the other peers and the API's calls, and hold up the end of the program.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import threading
from typing import TYPE_CHECKING, TypeVar

import asyncssh

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


async def call_in_thread(call: Callable[[], T]) -> T:
    """Run a blocking call in a daemon thread. A cancelled wait leaves the thread to end by itself."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def deliver(value: T | None, error: Exception | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)  # type: ignore[arg-type]  # None only where T is None

    def work() -> None:
        value, problem = None, None
        try:
            value = call()
        except (OSError, ValueError, asyncssh.Error) as error:
            problem = error
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits
            loop.call_soon_threadsafe(deliver, value, problem)

    threading.Thread(target=work, name="ssh-lookup", daemon=True).start()
    return await future


async def find_addresses(host: str, port: int, family: int = socket.AF_UNSPEC) -> list[tuple[int, tuple[str, int]]]:
    """Return (family, socket address) pairs in the system's order. Raises OSError, ValueError."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        found = await call_in_thread(lambda: socket.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM))
    else:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    return [(entry[0], entry[4]) for entry in found]  # type: ignore[misc]  # IPv6 addresses have two more items


async def open_socket(
    addresses: list[tuple[int, tuple[str, int]]], timeout_s: float, local: tuple[str, int] | None = None
) -> socket.socket:
    """Connect to the first address that answers; each gets an even share of the time that is left.

    Raises OSError: the last address's; TimeoutError where there was no answer.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout_s
    failure: OSError = OSError("the name has no address")
    for number, (family, address) in enumerate(addresses):
        try:
            async with asyncio.timeout((end - loop.time()) / (len(addresses) - number)):
                return await _connect(family, address, local)
        except OSError as error:  # TimeoutError is one
            failure = error
    raise failure


async def _connect(family: int, address: tuple[str, int], local: tuple[str, int] | None) -> socket.socket:
    with contextlib.ExitStack() as undo:
        sock = socket.socket(family, socket.SOCK_STREAM)
        undo.callback(sock.close)
        sock.setblocking(False)  # noqa: FBT003 - the only way to call it
        if local is not None:
            sock.bind(local)
        await asyncio.get_running_loop().sock_connect(sock, address)
        undo.pop_all()
    return sock


async def wait_for_word(sock: socket.socket) -> None:
    """Return when the other side has said something, or hung up. Nothing is read, and nothing was said to it."""
    loop, heard = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(sock, heard.set)
    try:
        await heard.wait()
    finally:
        loop.remove_reader(sock)
