"""Two network namespaces and a cable between their eth0: `ours`, where the code under test runs, and `peer`."""

from __future__ import annotations

import ctypes
import itertools
import os
import subprocess
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING

from do_failover import neigh

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from do_failover.model import Neighbour

PATIENCE_S = 10.0
_CLONE_NEWNET = 0x40000000
_numbers = itertools.count()


def run(*argv: str, stdin: str | None = None) -> str:
    """Run a program to its end and return its stdout."""
    done = subprocess.run(argv, input=stdin, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr}"
    return done.stdout


def until(is_true: Callable[[], bool], what: str) -> None:
    """Look until it is true: each look starts a program, which paces it."""
    end = time.monotonic() + PATIENCE_S
    while not is_true():
        assert time.monotonic() < end, f"never: {what}"


@dataclass(frozen=True)
class Host:
    """One namespace."""

    netns: str
    lladdr: bytes
    address: IPv4Address
    address6: IPv6Address

    def run(self, *argv: str, stdin: str | None = None) -> str:
        """Run a program in here."""
        return run("ip", "netns", "exec", self.netns, *argv, stdin=stdin)

    def ip(self, *arguments: str) -> str:
        """Run `ip` in here."""
        return run("ip", "-netns", self.netns, *arguments)

    def reaches(self, address: IPv4Address | IPv6Address) -> bool:
        """Ping once."""
        command = ("ip", "netns", "exec", self.netns, "ping", "-nqc1", "-W0.3", str(address))
        return subprocess.run(command, check=False, capture_output=True, timeout=60).returncode == 0

    def neighbour(self, address: IPv4Address | IPv6Address) -> Neighbour | None:
        """Return the kernel's entry for an address."""
        found = neigh.parse_neighbours(self.ip("-j", "neigh", "show", str(address)))
        return found[0] if found else None

    def remember(self, address: IPv4Address | IPv6Address, lladdr: str, nud: str = "reachable") -> None:
        """Write an entry."""
        self.ip("neigh", "replace", str(address), "lladdr", lladdr, "dev", "eth0", "nud", nud)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Let this thread live in here: a socket opened meanwhile stays here."""
        libc = ctypes.CDLL(None, use_errno=True)
        with Path("/proc/thread-self/ns/net").open("rb") as home, (Path("/run/netns") / self.netns).open("rb") as away:
            assert libc.setns(away.fileno(), _CLONE_NEWNET) == 0
            try:
                yield
            finally:
                assert libc.setns(home.fileno(), _CLONE_NEWNET) == 0


@dataclass(frozen=True)
class Link:
    """The two."""

    ours: Host
    peer: Host


@contextmanager
def open_link() -> Iterator[Link]:
    """Make both namespaces and the cable; remove them at the end, whatever happened."""
    number = next(_numbers)
    ours, peer = (
        Host(
            f"dof{os.getpid()}-{number}{letter}",
            bytes.fromhex(f"02fc000000{octet:02x}"),
            IPv4Address(f"198.18.0.{octet}"),
            IPv6Address(f"fd00:18::{octet:x}"),
        )
        for letter, octet in (("a", 0x0A), ("b", 0x0B))
    )
    with ExitStack() as stack:
        for host in (ours, peer):
            run("ip", "netns", "add", host.netns)
            stack.callback(run, "ip", "netns", "del", host.netns)
            host.run("sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0")
        cable = ("link", "add", "eth0", "address", ours.lladdr.hex(":"), "type", "veth", "peer", "name", "eth0")
        ours.ip(*cable, "address", peer.lladdr.hex(":"), "netns", peer.netns)
        for host in (ours, peer):
            host.ip("addr", "add", f"{host.address}/24", "dev", "eth0")
            host.ip("addr", "add", f"{host.address6}/64", "dev", "eth0", "nodad")
            for interface in ("lo", "eth0"):
                host.ip("link", "set", interface, "up")
        # A link that is just up receives no IPv6 multicast yet: its kernel answers no NS, and no NA would count.
        for host, other in ((ours, peer), (peer, ours)):
            until(lambda host=host, other=other: host.reaches(other.address6), "multicast arrives")  # type: ignore[misc]
        for host in (ours, peer):
            host.ip("neigh", "flush", "dev", "eth0")
        yield Link(ours, peer)
