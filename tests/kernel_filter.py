"""The kernel's own verdict on a packet filter."""

from __future__ import annotations

import socket
import sys
from typing import TYPE_CHECKING

import pytest

from do_failover.packets import attach_filter

if TYPE_CHECKING:
    from do_failover.frames import Program


def passes(program: Program, data: bytes) -> bool:
    """Ask the kernel whether a filter lets data through; a datagram of a Unix socket starts at offset 0."""
    if sys.platform != "linux":
        pytest.skip("the kernel's filter needs Linux")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        attach_filter(theirs, program)
        theirs.settimeout(0)
        ours.send(data)
        try:
            return theirs.recv(65535) == data
        except BlockingIOError:
            return False
