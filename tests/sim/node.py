"""One load balancer: keepalived, the FIFO, and the real daemon, which can be stopped, killed and started again."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from do_failover.daemon.daemon import Daemon
from do_failover.daemon.memory import Memory
from do_failover.daemon.orders import Order
from do_failover.daemon.world import World
from do_failover.errors import FailoverError, TemporaryError
from do_failover.mandate import Mandate
from do_failover.model import Identity
from do_failover.request import Edges
from do_failover.retry import Backoff
from tests.sim.cloud import IP
from tests.sim.door import Door
from tests.sim.law import IS_MANUAL, TURN
from tests.sim.vrrp import Keepalived

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from do_failover.config import FailoverConfig
    from do_failover.model import FailoverReport, NotifyEvent, Peer
    from tests.sim.region import Region

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
_WATCH_EVERY_S = 1.0


@dataclass
class Link:
    """The interface, as one story of one process has it."""

    node: Node
    door: Door
    lladdr: bytes = bytes.fromhex("02000000000c")

    def send(self, frame: bytes) -> None:
        self.node.region.law.note_frame(self.node, self.door.incarnation, self.door.read_owner)
        self.node.trip("frame")

    def listen(self, ethertype: int, program: Any, note: Callable[[bytes], None], *, is_raw: bool = False) -> None:
        if ethertype == 0x0800:
            self.node.region.fleet.listeners.setdefault(self.node.number, []).append(note)


@dataclass
class Clock:
    """The node's clocks: monotonic since its boot, and a wall clock that jumps."""

    node: Node

    def now(self) -> float:
        return asyncio.get_running_loop().time() - self.node.booted_at

    def wall(self) -> datetime:
        return EPOCH + timedelta(seconds=asyncio.get_running_loop().time() + self.node.wall_offset_s)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))


@dataclass
class Node:
    """The machine."""

    region: Region
    number: int  # also its Droplet's id
    entry: FailoverConfig
    capacity: int = 2000  # lines that its FIFO holds
    mode: str = "fifo"  # how keepalived's word comes: fifo, scripts or both
    boot_id: str = "boot-1"
    booted_at: float = 0.0
    wall_offset_s: float = 0.0
    memory: Memory = field(default_factory=Memory)
    daemon: Daemon | None = None
    incarnation: int = 0
    pipe: list[str] = field(default_factory=list)
    is_stalled: bool = False
    is_dark: bool = False
    is_off: bool = False
    troubled_at: float = -1.0
    kv_ended_at: float = -1.0
    started_at: float = -1.0
    read_at: float = -1.0
    ordered_to: int | None = None
    traps: dict[str, int] = field(default_factory=dict)
    kv: Keepalived = field(init=False)
    _running: asyncio.Task[None] | None = None
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    _ids: int = 0

    def __post_init__(self) -> None:
        self.kv = Keepalived(self.number, 200 - 50 * self.number, self.region.wire, self.say)
        self.region.wire.routers[self.number] = self.kv

    @property
    def name(self) -> str:
        return f"lb{self.number}"

    def note(self, what: str) -> None:
        self.region.trace.add(self.name, what)

    # -- keepalived and the FIFO

    def start_keepalived(self) -> None:
        if self.kv.process is None and not self.is_off:
            self._ids += 1
            self.note("keepalived starts")
            self.kv.start(self._ids)

    def end_keepalived(self, *, is_crash: bool) -> None:
        if self.kv.process is None:
            return
        self.note("keepalived crashes" if is_crash else "keepalived stops")
        self.kv.crash() if is_crash else self.kv.stop()
        self.kv_ended_at = asyncio.get_running_loop().time()
        asyncio.get_running_loop().call_later(0.002, self.look_at_keepalived)  # the pidfd

    def say(self, line: str) -> None:
        """Take what keepalived says: on its FIFO, by a notify script that is forked and runs for a while, or both."""
        if self.mode != "scripts":
            self.write(line)
        if self.mode != "fifo" and "RX_LOWER" not in line:
            self._ids += 1
            ticks = int((asyncio.get_running_loop().time() - self.booted_at) * 100)
            self.region.cloud.later(0.2 * self.region.rng.random(), self.write, f"SCRIPT {ticks} {self._ids} {line}")

    def write(self, line: str) -> None:
        """Write a line into the FIFO; a full one drops it without a word."""
        if self.is_off:
            return
        if len(self.pipe) >= self.capacity:
            self.note(f"{line} is lost: the FIFO is full")
            return
        self.note(line)
        self.pipe.append(line)
        asyncio.get_running_loop().call_later(0.001 * self.region.rng.random(), self.read)

    def read(self) -> None:
        """Let the daemon read all that is there."""
        daemon, law = self.daemon, self.region.law
        if daemon is None or self.is_stalled or not self.pipe:
            return
        lines, self.pipe = self.pipe, []
        self.read_at = asyncio.get_running_loop().time()
        law.note_process(self, self.kv.process, is_sure=False)
        law.note_lines(self, lines)
        data = "".join(f"{line}\n" for line in lines).encode()
        cut = self.region.rng.randrange(len(data) + 1) if self.region.rng.random() < 0.2 else len(data)
        daemon.feed(data[:cut])
        if cut < len(data):
            daemon.feed(data[cut:])
        if len(lines) >= self.capacity:
            law.note_loss_of_lines(self)
            daemon.forget_all("the notify FIFO was full")
        law.check_claim(self)
        self.trip("heard")

    def look_at_keepalived(self) -> None:
        """Tell the daemon which keepalived runs, as its watch does."""
        if self.daemon is None or self.is_stalled:
            return
        process = self.kv.process
        if process is None or process != self.daemon.keepalived:
            self.region.law.note_process(self, process, is_sure=True)
            self.daemon.note_keepalived(process)
            self.region.law.check_claim(self)

    def _watch(self, incarnation: int) -> None:
        if incarnation == self.incarnation:
            self.look_at_keepalived()
            asyncio.get_running_loop().call_later(_WATCH_EVERY_S, self._watch, incarnation)

    # -- the daemon's life

    def start_daemon(self) -> None:
        if self.daemon is not None or self._running is not None or self.is_off:
            return
        loop = asyncio.get_running_loop()
        self.incarnation += 1
        self.started_at = loop.time()
        self.note("the daemon starts")
        self.region.law.note_start(self)
        self.daemon = Daemon((self.entry,), self.make_world())
        self.region.law.check_claim(self)
        self._running = loop.create_task(self.daemon.run())
        self._running.add_done_callback(self._note_exit)
        self._watch(self.incarnation)
        loop.call_later(0.001, self.read)

    def _note_exit(self, running: asyncio.Task[None]) -> None:
        if not running.cancelled():
            error = running.exception()
            if error is not None:
                self.region.law.blame("HARNESS", f"{self.name}'s daemon ended by {error!r}")
        if running is self._running:
            self.note("the daemon has ended")
            self._forget_process()

    def _forget_process(self) -> None:
        self.incarnation += 1
        self.daemon = self._running = None
        self.region.fleet.listeners.pop(self.number, None)
        self.traps.clear()

    def stop_daemon(self) -> None:
        if self.daemon is not None:
            self.note("the daemon gets SIGTERM")
            self.region.law.note_end(self)
            self.daemon.end("SIGTERM")

    def kill_daemon(self) -> None:
        """End it at once: from now on nothing of it can do anything."""
        running = self._running
        if running is None:
            return
        self.note("the daemon is killed")
        self._forget_process()
        for task in (running, *self._tasks):
            task.cancel()

    def trip(self, what: str) -> None:
        """Spring a trap: the daemon is killed some steps of the event loop after this."""
        hops = self.traps.pop(what, None)
        if hops is not None:
            self._hop(hops, self.incarnation)

    def _hop(self, hops: int, incarnation: int) -> None:
        if incarnation != self.incarnation:
            return
        if hops == 0:
            self.kill_daemon()
        else:
            asyncio.get_running_loop().call_soon(self._hop, hops - 1, incarnation)

    def order(self, to_droplet: int | None) -> None:
        """Let a person ask the daemon for an assign."""
        if self.daemon is None:
            return
        self.ordered_to = to_droplet
        self.note(f"a person: assign {'' if to_droplet is None else f'--to {to_droplet}'}")
        self._begin(self._obey(self.daemon, Order(IP, to_droplet)))

    def reload(self, *, guard_s: float) -> None:
        """Let the daemon take another configuration, as by SIGHUP."""
        self.entry = replace(self.entry, guard_s=guard_s)
        if self.daemon is not None:
            self.note(f"reload: guard_s = {guard_s:g}")
            self._begin(self.daemon.reload((self.entry,)))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _obey(self, daemon: Daemon, order: Order) -> None:
        IS_MANUAL.set(True)
        try:
            report = await daemon.obey(order, Mandate(), lambda _: None)
        except FailoverError as error:
            self.note(f"the person is told: {error.message}")
        else:
            self.note(f"the person is told: {report.outcome}")

    def return_of(self, peer: Peer) -> None:
        if self.daemon is not None:
            self.daemon.note_return(peer)

    # -- its world

    def make_world(self) -> World:
        incarnation = self.incarnation

        def if_alive(call: Callable[[Any], None]) -> Callable[[Any], None]:
            return lambda given: call(given) if incarnation == self.incarnation else None

        return World(
            clock=Clock(self),
            node=self.name,
            boot_id=self.boot_id,
            make_edges=self._make_edges,
            list_peers=self.region.fleet.peers,
            take_turn=self._take_turn,
            find_keepalived=lambda: self.kv.process,
            load_memory=lambda: self.memory,
            save_memory=if_alive(self._save),
            register=lambda event, entry: None,
            keep=if_alive(self._keep),
            say=if_alive(self._say),
            make_run=self._make_run,
        )

    def _make_edges(self, _: FailoverConfig) -> Edges:
        door = Door(self.region.cloud, self, self.incarnation)

        @contextlib.asynccontextmanager
        async def open_link() -> AsyncIterator[Link]:
            try:
                yield Link(self, door)
            finally:
                if self.incarnation == door.incarnation:
                    self.region.fleet.listeners.pop(self.number, None)

        async def on_link(_: str) -> bool:
            return False

        backoff = Backoff(draw=self.region.rng.random)
        return Edges(Clock(self), door, self._read_identity, open_link, lambda: self.region.fleet.open_from(self), on_link, backoff)

    async def _read_identity(self) -> Identity:
        rng, cloud = self.region.rng, self.region.cloud
        await asyncio.sleep(0.001 + 0.002 * rng.random())
        if self.number in cloud.lies and rng.random() < 0.3:
            raise TemporaryError("the metadata service doesn't answer", kind="metadata")
        is_here = cloud.seen.get(self.number, False) ^ (self.number in cloud.lies)
        return Identity(
            self.number, "nyc3", self.name, cloud.droplets[self.number].public, None, "10.17.0.6", is_here, IP if is_here else None
        )

    @contextlib.asynccontextmanager
    async def _take_turn(self, entry: FailoverConfig, event: NotifyEvent | None, mandate: Mandate) -> AsyncIterator[None]:
        turn = self.region.law.open_turn(self, self.incarnation)
        TURN.set(turn)
        try:
            yield
        finally:
            self.region.law.close_turn(turn)

    def _save(self, memory: Memory) -> None:
        self.memory = memory

    def _keep(self, report: FailoverReport) -> None:
        error = f": {report.error.message}" if report.error is not None else ""
        rows = " ".join(f"{row.host}={row.outcome}" for row in report.peers)
        self.note(f"report: {report.decision}, {report.outcome} {rows}{error}")
        self.region.law.note_report(self, report)

    def _say(self, sentence: str) -> None:
        self.note(f"says: {sentence}")
        if "a mistake in do-failover" in sentence:
            self.region.law.blame("MISTAKE", sentence)

    def _make_run(self) -> tuple[str, bytes]:
        self._ids += 1
        return f"{self.name}-{self._ids}", b"%d%07d" % (self.number % 10, self._ids)
