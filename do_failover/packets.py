"""Raw sockets (AF_PACKET): send whole Ethernet frames, listen for what a kernel filter lets through.

CAP_NET_RAW is all they need (measured). A listener sees a packet before the firewall's INPUT does, so an nft
drop there doesn't blind the witness (measured). It never turns promiscuous mode on, and passes on only frames
addressed to this machine: where a bridge floods a frame meant for someone else, its arrival proves nothing.

Sources: packet(7), linux/filter.h, linux/if_packet.h; Documentation/networking/filter.rst for the order
(protocol 0 receives nothing until bind, so no unfiltered packet slips in).
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import fcntl
import os
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from do_failover.errors import ConfigError, RefusedError, TemporaryError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

_SIOCGIFHWADDR = 0x8927
_ARPHRD_ETHER = 1
_IFREQ = struct.Struct("16sH14s8x")
_SO_ATTACH_FILTER = 26
_SOL_PACKET, _PACKET_STATISTICS, _PACKET_IGNORE_OUTGOING = 263, 6, 23
_SOCK_FPROG = struct.Struct("HP")
_INSTRUCTION = struct.Struct("HBBI")
_SOCKADDR_LL = struct.Struct("HHiHBB8s")
_STATISTICS = struct.Struct("II")
_LONGEST_PACKET = 65535
_BATCH = 64  # packets for one turn of the event loop, so that a flood leaves time to the others
_RECEIVE_BUFFER = 1 << 20

# ld #pkttype; jeq #PACKET_HOST; ret #0: put before every filter.
_TO_THIS_HOST: Final = ((0x20, 0, 0, 0xFFFFF004), (0x15, 1, 0, 0), (0x06, 0, 0, 0))
_PACKET_HOST = 0


@dataclass(frozen=True, slots=True)
class Interface:
    """An Ethernet interface of this machine's network namespace."""

    name: str
    index: int
    lladdr: bytes


@dataclass(frozen=True, slots=True)
class Packet:
    """What was received: from the IP header on (SOCK_DGRAM) or the whole frame (SOCK_RAW), and where it came in."""

    data: bytes
    interface: str
    source_lladdr: bytes


@dataclass(frozen=True, slots=True)
class PacketStatistics:
    """What passed the kernel's filter: `received` reached the socket, `dropped` found its buffer full."""

    received: int
    dropped: int


def read_interface(name: str) -> Interface:
    """Ask the kernel for an interface's index and lladdr; needs no capability.

    By ioctl and not from /sys, which may show another network namespace's interfaces. Raises ConfigError when
    there is no such interface (naming those that exist) or when it is not Ethernet.
    """
    index = _find_index(name)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ask:
        try:
            answer = fcntl.ioctl(ask, _SIOCGIFHWADDR, _IFREQ.pack(name.encode(), 0, b""))
        except OSError as error:
            raise _explain(error, name) from error
    _, hardware, lladdr = _IFREQ.unpack(answer)
    if hardware != _ARPHRD_ETHER:
        msg = (
            f"interface {name} is not Ethernet (hardware type {hardware}): nothing can be announced on it; "
            f"set failover.interface to the one that holds the public address, such as eth0"
        )
        raise ConfigError(msg)
    return Interface(name, index, lladdr[:6])


class _Closing:
    """Closes at the end of `with`."""

    def close(self) -> None:
        """Leave nothing open."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        """Return itself, already open."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close it."""
        self.close()


class LinkSender(_Closing):
    """Sends whole Ethernet frames on one interface; as a context manager it closes itself.

    `send` guarantees that the kernel took the frame, not that anybody received it.
    """

    def __init__(self, interface: str) -> None:
        """Open it: ConfigError without such an interface, RefusedError without CAP_NET_RAW. It receives nothing."""
        _find_index(interface)
        self.interface = interface
        self._socket = _open_socket(socket.SOCK_RAW)
        try:
            self._socket.bind((interface, 0))
        except OSError as error:
            self._socket.close()
            raise _explain(error, interface) from error

    def send(self, frame: bytes) -> None:
        """Send one frame, as it is, without waiting. Raises TemporaryError when the kernel doesn't take it."""
        try:
            self._socket.send(frame)
        except OSError as error:
            raise _explain(error, self.interface) from error

    def close(self) -> None:
        """Close it; twice is fine."""
        self._socket.close()


class PacketListener(_Closing):
    """Receives the packets of one Ethertype that a classic BPF program accepts, addressed to this machine.

    From the constructor on packets queue in the kernel: open it before you cause what you wait for. Take them
    with `async for packet in listener`, or hand them to a callback with `start`; not both. `close` (or leaving
    `with`) ends either. Not guaranteed: that nothing is lost; `read_statistics` says how much was.
    """

    def __init__(
        self,
        ethertype: int,
        program: Sequence[tuple[int, int, int, int]],
        interface: str | None = None,
        *,
        is_raw: bool = False,
        receive_buffer: int = _RECEIVE_BUFFER,
    ) -> None:
        """Open it on one interface, or on all.

        `is_raw`: SOCK_RAW, and program and data count from the Ethernet header; else SOCK_DGRAM, and they count
        from the network header. `receive_buffer` in bytes, as far as net.core.rmem_max allows. Raises ConfigError,
        RefusedError.
        """
        index = 0 if interface is None else _find_index(interface)
        self.interface = interface
        self.link_downs = 0
        self._received = self._dropped = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._socket = _open_socket(socket.SOCK_RAW if is_raw else socket.SOCK_DGRAM)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            _ignore_outgoing(self._socket)
            attach_filter(self._socket, (*_TO_THIS_HOST, *program))
            _bind(self._socket, ethertype, index)
        except OSError as error:
            self._socket.close()
            raise _explain(error, interface or "any interface") from error

    def start(self, callback: Callable[[Packet], None]) -> None:
        """Call `callback` from the running loop for each packet, until `close`."""
        self._watch(lambda: self._deliver(callback))

    def close(self) -> None:
        """Leave nothing behind: socket, reader, and whoever waits in `async for` ends. Twice is fine."""
        if self._socket.fileno() < 0:
            return
        self.read_statistics()
        self._unwatch()
        self._socket.close()
        self._wake()

    def read_statistics(self) -> PacketStatistics:
        """Return the kernel's counts since the listener was opened; after `close` those of that moment."""
        if self._socket.fileno() >= 0:
            raw = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, _STATISTICS.size)  # reading sets them to 0
            seen, dropped = _STATISTICS.unpack(raw)
            self._received += seen - dropped
            self._dropped += dropped
        return PacketStatistics(self._received, self._dropped)

    def __aiter__(self) -> Self:
        """Return itself."""
        return self

    async def __anext__(self) -> Packet:
        """Wait for the next packet; the iteration ends with `close`."""
        while self._socket.fileno() >= 0:
            packet = self._receive()
            if packet is not None:
                return packet
            await self._readable()
        raise StopAsyncIteration

    async def _readable(self) -> None:
        self._watch(self._wake)
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._unwatch()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _deliver(self, callback: Callable[[Packet], None]) -> None:
        for _ in range(_BATCH):
            packet = self._receive()
            if packet is None:
                return
            callback(packet)
            if self._socket.fileno() < 0:
                return

    def _receive(self) -> Packet | None:
        """Take the next packet addressed to this machine off the socket; None when there is none just now."""
        while True:
            try:
                data, (interface, _, packet_type, _, lladdr) = self._socket.recvfrom(_LONGEST_PACKET)
            except BlockingIOError:
                return None
            except OSError as error:
                if error.errno != errno.ENETDOWN:
                    raise _explain(error, self.interface or "any interface") from error
                self.link_downs += 1  # told once; packets come again when the interface is up again
                continue
            if packet_type == _PACKET_HOST:
                return Packet(data, interface, lladdr)

    def _watch(self, callback: Callable[[], object]) -> None:
        if self._loop is not None:
            msg = "a listener serves one callback or one iteration at a time"
            raise RuntimeError(msg)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket, callback)

    def _unwatch(self) -> None:
        if self._loop is not None and not self._loop.is_closed() and self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
        self._loop = None


def _open_socket(kind: socket.SocketKind) -> socket.socket:
    """Open an AF_PACKET socket that receives nothing yet (protocol 0) and never blocks."""
    try:
        opened = socket.socket(socket.AF_PACKET, kind | socket.SOCK_NONBLOCK, 0)
    except PermissionError as error:
        msg = (
            "the kernel refuses a raw socket (EPERM): without CAP_NET_RAW no frame can be sent and no arrival "
            "witnessed; run as root, or add AmbientCapabilities=CAP_NET_RAW to the service"
        )
        raise RefusedError(msg, kind="capability") from error
    except OSError as error:
        raise _explain(error, "any interface") from error
    return opened


def attach_filter(target: socket.socket, program: Sequence[tuple[int, int, int, int]]) -> None:
    """Let the kernel drop what a classic BPF program refuses, on a socket of any family. Raises OSError."""
    code = b"".join(_INSTRUCTION.pack(*instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    target.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, _SOCK_FPROG.pack(len(program), ctypes.addressof(buffer)))


def _bind(target: socket.socket, ethertype: int, index: int) -> None:
    """Bind to an interface, 0 for all: Python's own bind takes a name, and has none for all (ENODEV, measured)."""
    libc = ctypes.CDLL(None, use_errno=True)
    address = _SOCKADDR_LL.pack(socket.AF_PACKET, socket.htons(ethertype), index, 0, 0, 0, b"")
    if libc.bind(target.fileno(), address, len(address)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _ignore_outgoing(target: socket.socket) -> None:
    """Spare the kernel copies of what we send (Linux 4.20); the filter refuses them anyway."""
    try:
        target.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise


def _find_index(name: str) -> int:
    """Return the interface's index, or raise ConfigError with the names that exist."""
    try:
        return socket.if_nametoindex(name)
    except (OSError, ValueError):  # ValueError: a NUL in the name
        known = ", ".join(known_name for _, known_name in socket.if_nameindex()) or "none"
        msg = f"there is no interface {ascii(name)[1:-1]} here (there are: {known}); correct failover.interface"
        raise ConfigError(msg) from None


def _explain(error: OSError, interface: str) -> TemporaryError:
    """Turn a socket's error into a sentence."""
    if error.errno == errno.ENETDOWN:
        msg = f"interface {interface} is down: no frame leaves it; bring it up (ip link set {interface} up)"
        return TemporaryError(msg, kind="link_down")
    if error.errno in (errno.ENODEV, errno.ENXIO):
        msg = f"interface {interface} went away: no frame leaves it; look whether it was renamed or removed"
        return TemporaryError(msg, kind="link_down")
    if error.errno in (errno.ENOBUFS, errno.EAGAIN):
        msg = f"the queue of interface {interface} is full: the frame was not sent; it is worth another try"
        return TemporaryError(msg, kind="link_busy")
    msg = f"a raw socket on {interface} failed: {error.strerror}; the frame or packet is lost, the others go on"
    return TemporaryError(msg, kind="link")
