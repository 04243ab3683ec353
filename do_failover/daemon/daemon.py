"""Hears for all reserved IPs and tells their keepers: the FIFO's lines, keepalived's end, a person's orders, reload and stop.

    keepalived's own line       counts; from then on this keepalived's scripts are not listened to for that name
    a script's line             counts while keepalived writes no lines itself, and only when no younger script was heard
    the process of keepalived   gone, or another one: counts as STOP of everything (a crash sends nothing)
    a pipe that was full        lines were lost, so nothing is trusted until something new is heard

What piled up is coalesced to the newest event of each name (I3): older ones would only be superseded.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from do_failover.daemon.keeper import Keeper
from do_failover.daemon.lines import Heard, LineReader
from do_failover.daemon.memory import Memory
from do_failover.errors import ConfigError
from do_failover.heal import cancel_all
from do_failover.model import NotifyEvent, NotifyType, VrrpState

if TYPE_CHECKING:
    from collections.abc import Callable

    from do_failover.config import FailoverConfig
    from do_failover.daemon.memory import Process
    from do_failover.daemon.orders import Order
    from do_failover.daemon.world import Newer, World
    from do_failover.mandate import Mandate
    from do_failover.model import FailoverReport, Peer

_UNKNOWN_MOST = 64
_END_POLL_S = 0.05
_END_S = 12.0  # what was sent is followed for 10 s at most


class Daemon:
    """One daemon; `feed`, `note_keepalived` and `forget_all` may be called at any time from its loop."""

    def __init__(self, entries: tuple[FailoverConfig, ...], world: World) -> None:
        """Take up what is remembered and still counts."""
        self.world = world
        self.keepalived = world.find_keepalived()
        self.keepers: dict[str, Keeper] = {}
        self._lives: dict[str, asyncio.Task[None]] = {}
        self._lines = LineReader()
        self._unknown: set[str] = set()
        self._registered: set[Keeper] = set()  # whose last event this very process heard
        self._ended = asyncio.Event()
        memory = world.load_memory().recall(world.boot_id, self.keepalived)
        self._speaks_itself = set(memory.speaks_itself)
        self._last_script = dict(memory.scripts)
        for entry in entries:
            self.keepers[entry.reserved_ip] = Keeper(entry, world, memory.kept.get(entry.reserved_ip), self.remember)
        self.look_at_others()

    # -- what is heard

    def feed(self, data: bytes) -> None:
        """Take what was read from the FIFO. It only notes: the work is done elsewhere."""
        self.note_keepalived(self.world.find_keepalived(), is_sure=False)
        heard, complaints = self._lines.feed(data)
        for complaint in complaints:
            self.world.say(complaint)
        for event in self._coalesce(heard):
            self._pass_on(event)
        self.remember()

    def _coalesce(self, heard: list[Heard]) -> list[NotifyEvent]:
        """Return each name's newest event, and the lower priority that was heard after it."""
        newest: dict[str, list[NotifyEvent]] = {}
        for item in heard:
            event = item.event
            name = f"{event.type} {event.name}"
            if event.state.is_of_priority or not self._counts(item, name):
                continue
            if event.state is VrrpState.MASTER_RX_LOWER_PRI:
                newest[name] = [*[old for old in newest.get(name, []) if old.state is not event.state], event]
            else:
                newest[name] = [event]
        return [event for events in newest.values() for event in events]

    def _counts(self, item: Heard, name: str) -> bool:
        if item.script is None:
            self._speaks_itself.add(name)
            return True
        if name in self._speaks_itself or item.script <= self._last_script.get(name, (0, 0)):
            return False  # it comes twice, or late
        self._last_script[name] = item.script
        return True

    def _pass_on(self, event: NotifyEvent) -> None:
        found = [keeper for keeper in self.keepers.values() if _is_for(event, keeper.entry)]
        name = f"{event.type} {event.name!r}"
        if not found and name not in self._unknown and len(self._unknown) < _UNKNOWN_MOST:
            self._unknown.add(name)
            self.world.say(f"{name} decides over no reserved IP of the configuration: its events are ignored")
        for keeper in found:
            keeper.hear(event)
            self._register(event, keeper)

    def note_keepalived(self, process: Process | None, *, is_sure: bool = True) -> None:
        """Take which keepalived runs now. Its end counts as STOP, and so does another one in its place.

        `is_sure` is false for a look that may have come too early: then no process is no news.
        """
        before = self.keepalived
        if (process == before and process is not None) or (process is None and not is_sure):
            return
        self.keepalived = process
        self._speaks_itself.clear()
        if before is not None or process is None:
            who = f"keepalived (process {before[1]})" if before is not None else "keepalived"
            for keeper in self.keepers.values():
                self._stop_keeper(keeper, f"{who} has ended, which counts as STOP")
        self.remember()

    def _stop_keeper(self, keeper: Keeper, why: str) -> None:
        if keeper.standing.claim in {None, VrrpState.STOP, VrrpState.DELETED}:
            return
        event = keeper.entry.make_event(VrrpState.STOP)
        self.world.say(f"{keeper.entry.reserved_ip}: {why}")
        keeper.hear(event, why)
        self._register(event, keeper)

    def _register(self, event: NotifyEvent, keeper: Keeper) -> None:
        self._registered.add(keeper)
        order = self.world.register(event, keeper.entry)
        keeper.standing.order = order if order is not None else keeper.standing.order

    def look_at_others(self) -> None:
        """Take what this machine's other processes heard while this daemon was not there, or not reached: it counts as an event.

        An event of before this keepalived's start doesn't.
        """
        for keeper in self.keepers.values():
            newer = self.world.read_newer(keeper.entry, keeper.standing.order)
            if newer is None:
                continue
            keeper.standing.order = newer.order
            if newer.event is None:
                keeper.note_person(newer.order[1])
            elif newer.event.state is not keeper.standing.claim and self._is_of_this_keepalived(newer, keeper):
                keeper.hear(newer.event, f"superseded by the newer event {newer.event} (process {newer.order[1]})")
            self.remember()

    def forget_all(self, why: str) -> None:
        """Trust nothing that was heard: the newest line that came may not be the last that was written."""
        self.world.say(f"{why}; observing until keepalived says something new")
        for keeper in self.keepers.values():
            keeper.forget_claim(why)
        self.remember()

    def _is_of_this_keepalived(self, newer: Newer, keeper: Keeper) -> bool:
        """Tell whether a MASTER was said by the keepalived that runs now; anything else ends something, and is always heard."""
        if newer.event is not None and newer.event.state is not VrrpState.MASTER:
            return True
        return keeper in self._registered or (self.keepalived is not None and newer.order >= self.keepalived)

    def note_return(self, peer: Peer) -> None:
        """Note that a peer can be reached again."""
        for keeper in self.keepers.values():
            keeper.note_return(peer)

    # -- its life

    async def run(self) -> None:
        """Live until `end`; what runs then has its right ended and is followed for a bounded time."""
        self._start()
        try:
            await self._ended.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(_END_S):
                    while any(keeper.is_acting for keeper in self.keepers.values()):
                        await self.world.clock.sleep(_END_POLL_S)
        finally:
            await cancel_all(self._lives.values())

    def end(self, why: str) -> None:
        """Begin the end: nothing new is started, and what is unfinished stays in memory for the next process."""
        for keeper in self.keepers.values():
            keeper.end(why)
        self.remember()
        self._ended.set()

    async def reload(self, entries: tuple[FailoverConfig, ...], *, is_all: bool = False) -> None:
        """Take another configuration: reserved IPs that are new, changed or gone. What is unchanged goes on undisturbed.

        `is_all`: what all of them share has changed too (the API's address, the token's place).
        """
        if self._ended.is_set():
            return
        wanted = {entry.reserved_ip: entry for entry in entries}
        heard = {_name_of(keeper.entry): keeper.standing.event for keeper in self.keepers.values()}
        gone = [ip for ip in self.keepers if ip not in wanted]
        leaving = [(self.keepers.pop(ip), self._lives.pop(ip)) for ip in gone]
        for ip, entry in wanted.items():
            keeper = self.keepers.get(ip)
            if keeper is None:
                keeper = self.keepers[ip] = Keeper(entry, self.world, None, self.remember)
            elif _name_of(entry) == _name_of(keeper.entry):
                if is_all or entry != keeper.entry:
                    keeper.take(entry)
                continue
            else:
                keeper.forget_claim("the configuration names another instance for it")
                keeper.take(entry)
            event = heard.get(_name_of(entry))
            if event is not None:
                keeper.hear(event)
        self._start()
        self.remember()
        for keeper, life in leaving:
            keeper.end("the configuration no longer names this reserved IP")
            while keeper.is_acting:
                await self.world.clock.sleep(_END_POLL_S)
            await cancel_all([life])

    def _start(self) -> None:
        for ip, keeper in self.keepers.items():
            if ip not in self._lives:
                self._lives[ip] = asyncio.create_task(keeper.live(), name=f"keeper of {ip}")

    async def obey(self, order: Order, mandate: Mandate, observe: Callable[..., None]) -> FailoverReport:
        """Do what a person asks. Raises ConfigError for a reserved IP that is not ours, TemporaryError when busy."""
        keeper = self.keepers.get(order.reserved_ip)
        if keeper is None:
            msg = f"the daemon keeps no reserved IP {order.reserved_ip}; it has: {', '.join(self.keepers)}; was it told to reload?"
            raise ConfigError(msg)
        return await keeper.obey(order, mandate, observe)

    def remember(self) -> None:
        """Save what the next process has to know."""
        kept = {ip: keeper.standing.remember() for ip, keeper in self.keepers.items()}
        spoken = sorted(self._speaks_itself)
        self.world.save_memory(Memory(self.world.boot_id, self.keepalived, kept, dict(self._last_script), spoken))


def _name_of(entry: FailoverConfig) -> tuple[str | None, str | None]:
    return (entry.instance, entry.group)


def _is_for(event: NotifyEvent, entry: FailoverConfig) -> bool:
    return event.name == (entry.instance if event.type is NotifyType.INSTANCE else entry.group)
