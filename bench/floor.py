"""The peers' end of the same exchange over UDP: one process with a socket in each peer's network namespace.

python -m bench.floor PID:ADDRESS...      in the lab's own namespaces; says {} when all listen, ends with its stdin
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys

from do_failover.lab.meter import NamespaceDoor

_PORT = 9999


async def main(places: list[str]) -> None:
    """Answer every datagram by itself."""
    door, loop = NamespaceDoor(), asyncio.get_running_loop()
    for place in places:
        pid, _, address = place.partition(":")
        net = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
        sock = door.socket(net, address, socket.SOCK_DGRAM)
        os.close(net)
        sock.bind((address, _PORT))
        loop.add_reader(sock, _answer, sock)
    print("{}", flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


def _answer(sock: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        data, source = sock.recvfrom(64)
        sock.sendto(data, source)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
