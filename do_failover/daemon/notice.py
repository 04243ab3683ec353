"""Tells systemd how it stands: sd_notify(3), a datagram to $NOTIFY_SOCKET. Without systemd it does nothing."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class Notice:
    """What the service manager is told. A manager that can't be reached is no trouble of ours."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Find the manager's socket, and how often its watchdog wants a sign of life."""
        name = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + name[1:] if name.startswith("@") else name
        is_ours = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        usec = environ.get("WATCHDOG_USEC", "")
        self.watchdog_s = int(usec) / 1e6 if usec.isdigit() and int(usec) > 0 and is_ours else None

    def tell(self, *lines: str) -> None:
        """Send lines such as READY=1, WATCHDOG=1, STATUS=..."""
        if not self._address:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.sendto("\n".join(lines).encode(), self._address)
