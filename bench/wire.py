"""When whose ping arrived at a load balancer: echo requests, with the kernel's time stamps, read when all is over.

So watching costs nothing while something is measured, and all ways are measured by the same thing:
refreshed    the first echo request of a peer to the load balancer's own public address has arrived: what heals the fabric
proven       the first one to the reserved IP has: it comes with the anchor IP as its destination
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_ETH_P_IP = 0x0800
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE, _SO_TIMESTAMPNS = 26, 33, 35
_CLONE_NEWNET = 0x40000000
_BUFFER = 64 << 20
_FILTER = (  # IPv4, ICMP, echo request; offsets from the IP header, which has no options
    (0x30, 0, 0, 9),
    (0x15, 0, 3, 1),
    (0x30, 0, 0, 20),
    (0x15, 0, 1, 8),
    (0x06, 0, 0, 64),
    (0x06, 0, 0, 0),
)


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Of each peer's public address: when it was first heard (CLOCK_REALTIME, ns)."""

    refreshed: dict[str, int]
    proven: dict[str, int]

    def last_s(self, kind: str, peers: Sequence[str], began_ns: int) -> float | None:
        """Return when the last of these peers was heard; None when one never was."""
        found = getattr(self, kind)
        return (max(found[peer] for peer in peers) - began_ns) / 1e9 if all(peer in found for peer in peers) else None

    def count(self, kind: str, peers: Sequence[str]) -> int:
        """Return how many of them were heard."""
        return sum(peer in getattr(self, kind) for peer in peers)


class Wire:
    """Listens in one network namespace."""

    def __init__(self, namespace: str, public: str, anchor: str) -> None:
        """`namespace`: its file. Must be called where no other thread minds: it goes in and out."""
        self._public, self._anchor = public, anchor
        with _inside(namespace):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        program = b"".join(struct.pack("HBBI", *line) for line in _FILTER)
        kept = ctypes.create_string_buffer(program, len(program))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(_FILTER), ctypes.addressof(kept)))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        with _inside(namespace):
            self._socket.bind(("eth0", _ETH_P_IP))
        self._socket.setblocking(False)  # noqa: FBT003 - socket's own signature

    def __enter__(self) -> Self:
        """Listen until the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self._socket.close()

    def forget(self) -> None:
        """Drop what came so far."""
        self.read(0)

    def read(self, began_ns: int) -> Arrivals:
        """Return what has come since, and forget it."""
        found = Arrivals({}, {})
        while True:
            try:
                packet, rest, _, address = self._socket.recvmsg(128, 64)
            except BlockingIOError:
                return found
            if address[2] == socket.PACKET_OUTGOING or not rest:
                continue
            seconds, nanoseconds = struct.unpack("qq", rest[0][2])
            at, source, destination = seconds * 10**9 + nanoseconds, _write(packet[12:16]), _write(packet[16:20])
            if at >= began_ns and destination in {self._public, self._anchor}:
                (found.refreshed if destination == self._public else found.proven).setdefault(source, at)


def _write(octets: bytes) -> str:
    return socket.inet_ntoa(octets)


@contextlib.contextmanager
def _inside(namespace: str) -> Iterator[None]:
    """Let this thread be in another network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    home, other = os.open("/proc/thread-self/ns/net", os.O_RDONLY), os.open(namespace, os.O_RDONLY)
    try:
        _enter(libc, other)
        yield
    finally:
        _enter(libc, home)
        os.close(home)
        os.close(other)


def _enter(libc: ctypes.CDLL, fd: int) -> None:
    if libc.setns(fd, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")
