"""A daemon in virtual time: the real one, with the story's simulated region as its outside."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from do_failover.config import FailoverConfig, Router
from do_failover.daemon.daemon import Daemon
from do_failover.daemon.memory import Memory, Process
from do_failover.daemon.world import Newer, World
from do_failover.errors import FailoverError
from do_failover.model import FailoverReport, Identity, Peer
from do_failover.request import Edges
from do_failover.retry import Backoff
from tests.story import IP, ME, OLD, Region, Shells
from tests.virtual_time import VirtualClock, run_virtually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from do_failover.mandate import Mandate
    from do_failover.model import NotifyEvent

KEEPALIVED: Process = (1000, 77)
MASTER, BACKUP, STOP, LOWER = (f'INSTANCE "VI_1" {state} 150\n'.encode() for state in ("MASTER", "BACKUP", "STOP", "MASTER_RX_LOWER_PRI"))
ENTRY = FailoverConfig(IP, instance="VI_1", deadline_s=20.0)
PAIR = replace(ENTRY, routers=(Router(OLD, "10.0.0.1"), Router(ME, "10.0.0.2")))


@dataclass
class Node:
    """One load balancer: what outlives its daemon, and what its daemon said and kept."""

    region: Region
    entry: FailoverConfig = field(default_factory=lambda: FailoverConfig(IP, instance="VI_1", deadline_s=20.0))
    peers: int = 2
    keepalived: Process | None = KEEPALIVED
    memory: Memory = field(default_factory=Memory)
    reports: list[FailoverReport] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    metadata_error: FailoverError | None = None
    newer: Newer | None = None
    runs: int = 0

    async def identity(self) -> Identity:
        if self.metadata_error is not None:
            raise self.metadata_error
        return self.region.identity

    def make_edges(self, _: FailoverConfig) -> Edges:
        async def on_link(_: str) -> bool:
            return False

        return Edges(
            clock=VirtualClock(),
            api=self.region,
            read_identity=self.identity,
            open_link=lambda: self.region,
            open_peers=lambda: Shells(self.region),
            is_on_link=on_link,
            backoff=Backoff(jitter=0.0),
        )

    def save(self, memory: Memory) -> None:
        self.memory = memory

    def make_run(self) -> tuple[str, bytes]:
        self.runs += 1
        return f"id-{self.runs}", b"run-%04d" % self.runs

    @contextlib.asynccontextmanager
    async def take_turn(self, entry: FailoverConfig, event: NotifyEvent | None, mandate: Mandate) -> AsyncIterator[None]:
        yield

    def world(self) -> World:
        return World(
            clock=VirtualClock(),
            node="lb2",
            boot_id="boot-1",
            make_edges=self.make_edges,
            list_peers=lambda: tuple(Peer(number, f"app{number + 1}") for number in range(self.peers)),
            take_turn=self.take_turn,
            find_keepalived=lambda: self.keepalived,
            load_memory=lambda: self.memory,
            save_memory=self.save,
            register=lambda event, entry: None,
            keep=self.reports.append,
            say=self.said.append,
            make_run=self.make_run,
            read_newer=lambda entry, order: self.newer if self.newer is not None and self.newer.order > order else None,
        )

    @contextlib.asynccontextmanager
    async def daemon(self) -> AsyncIterator[Daemon]:
        """Run one until the end of the block; then it is stopped as by SIGTERM."""
        daemon = Daemon((self.entry,), self.world())
        running = asyncio.create_task(daemon.run())
        try:
            yield daemon
        finally:
            daemon.end("SIGTERM")
            await running

    @contextlib.asynccontextmanager
    async def killed_daemon(self) -> AsyncIterator[Daemon]:
        """Run one until the end of the block; then it is gone at once, as by SIGKILL."""
        daemon = Daemon((self.entry,), self.world())
        running = asyncio.create_task(daemon.run())
        try:
            yield daemon
        finally:
            self.save = lambda memory: None  # type: ignore[method-assign]
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
            del self.save


def play(node: Node, scene: Callable[[Daemon], Awaitable[None]]) -> Node:
    async def told() -> None:
        async with node.daemon() as daemon:
            await scene(daemon)

    run_virtually(told())
    assert not [sentence for sentence in node.said if "a mistake" in sentence]
    return node


def decisions(node: Node) -> list[str]:
    return [str(report.decision) for report in node.reports]


async def become_owner(daemon: Daemon, settled_s: float = 40.0) -> None:
    daemon.feed(BACKUP)
    await asyncio.sleep(3)
    daemon.feed(MASTER)
    await asyncio.sleep(settled_s)
