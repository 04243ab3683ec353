"""What the tests of armed peers need beside sshd_bench: a peer that dies and comes back, many peers, and counts of processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from sshd_bench import DEADLINE_S, Bench, poll_until, wait_until

from do_failover.model import Peer
from do_failover.retry import Backoff
from do_failover.ssh import ArmedPeers, Pace

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from do_failover.ssh import SshSettings

# sshd listens on 16 addresses at most.
_ADDRESSES_EACH = 15


def children_of(pid: int) -> list[int]:
    """All processes below that one."""
    found = []
    with contextlib.suppress(OSError):
        for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
            found += [child, *children_of(child)]
    return found


def states_of(pids: list[int]) -> list[str]:
    """The kernel's letter for each that is there: S, R, Z ..."""
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            found.append(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0])
    return found


class ArmedBench(Bench):
    """Peers that can be killed and started again."""

    def below(self, index: int = 0) -> list[int]:
        """The processes of that sshd, but for the one that listens: its sessions and what they run."""
        return children_of(self._processes[index].pid)

    def loops(self, index: int = 0) -> list[int]:
        """The remote loops below that sshd."""
        found = []
        for pid in self.below(index):
            with contextlib.suppress(OSError):
                if b"while read" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
        return found

    def kill(self, index: int = 0) -> None:
        """Kill that sshd and all that it started, as a Droplet that is powered off, but that TCP tells of it."""
        process = self._processes[index]
        below = self.below(index)
        process.kill()
        process.wait(DEADLINE_S)
        for pid in below:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def start_again(self, index: int = 0) -> None:
        """Start that sshd as it was."""
        log, process = self.directory / f"sshd{index}" / "log", self._processes[index]
        before = log.read_text().count("Server listening")
        with log.open("ab") as file:
            self._processes[index] = subprocess.Popen(process.args, stderr=file, stdin=subprocess.DEVNULL)
        wait_until(lambda: log.read_text().count("Server listening") > before, "sshd listening again")

    def add_many(self, count: int) -> tuple[Peer, ...]:
        """Start as few sshd's as can be, on addresses of their own."""
        peers: list[Peer] = []
        while len(peers) < count:
            number = len(self._processes)
            first = self.add_peer(number, is_known=False)
            others = min(_ADDRESSES_EACH, count - len(peers))
            hosts = [f"127.0.{number + 2}.{place + 1}" for place in range(others)]
            for host in hosts:
                with (self.directory / f"sshd{number}" / "sshd_config").open("a") as file:
                    file.write(f"ListenAddress {host}:{first.port}\n")
            self.reconfigure(number, "MaxStartups 1000")
            wait_until(lambda n=number, some=others: self.log(n).count("Server listening") >= some + 2, "all its addresses")  # type: ignore[misc]
            peers += [Peer(len(peers) + place, host, None, first.port) for place, host in enumerate(hosts)]
            for peer in peers[-others:]:
                self.know(peer, self.host_key(number))
        return tuple(peers)


@contextlib.contextmanager
def open_armed_bench(directory: Path) -> Iterator[ArmedBench]:
    """A bench whose sshd's are gone afterwards."""
    bench = ArmedBench(directory)
    try:
        yield bench
    finally:
        bench.stop()


# A peer is tried again at once: the tests wait for what they can see.
EAGER = Pace(backoff=Backoff(first_s=0.02, most_s=0.05, jitter=1.0), spread_s=0.0)


class Arms:
    """ArmedPeers, with what it said and whom it armed."""

    def __init__(self, settings: SshSettings, pace: Pace) -> None:
        self.said: list[str] = []
        self.armed: list[Peer] = []
        self.peers = ArmedPeers(settings, on_armed=self.armed.append, say=self.said.append, pace=pace)

    async def arm(self, *peers: Peer) -> None:
        self.peers.set_peers(peers)
        await poll_until(lambda: all(map(self.peers.is_armed, peers)), "all peers being armed")

    def error(self, place: int = 0) -> str:
        return self.peers.show()[place].error or ""


@contextlib.asynccontextmanager
async def open_arms(settings: SshSettings, pace: Pace = EAGER) -> AsyncIterator[Arms]:
    """Armed peers of which no task is left: checked for each test."""
    before = asyncio.all_tasks()
    arms = Arms(settings, pace)
    try:
        yield arms
    finally:
        await arms.peers.close()
    left = asyncio.all_tasks() - before
    assert {task for task in left if "Server._" not in repr(task.get_coro())} == set()
