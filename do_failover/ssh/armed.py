"""ArmedPeers: while this node could become MASTER, each peer has a loop waiting for one line.

a peer's life    pause -> login -> loop started, greeted: armed -> cut -> pause ...
a command        over the armed channel; where there is none, or it ends meanwhile: started anew ("cold"), same call
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from do_failover.errors import PeerError
from do_failover.retry import Backoff
from do_failover.ssh.armed_channel import ArmedChannel, LostChannelError, trim
from do_failover.ssh.pool import PeerConnections, key_of
from do_failover.ssh.sentences import clean, say
from do_failover.ssh.turns import Turns

if TYPE_CHECKING:
    from collections.abc import Callable

    from do_failover.model import Peer
    from do_failover.ssh.login import Link
    from do_failover.ssh.pool import Key
    from do_failover.ssh.settings import SshSettings


@dataclass(frozen=True, slots=True)
class PeerArms:
    """Whether a peer is armed: one row of `peers` and `status`.

    `since_s`: armed for so long; `attempts`: how many failed since it was last armed; `error`: the last one's sentence.
    `is_restricted`: its key runs do-failover-peer only; false: a shell, wider than needed; None: not known now.
    """

    host: str
    is_armed: bool
    since_s: float | None
    attempts: int
    error: str | None
    is_restricted: bool | None = None


@dataclass(frozen=True, slots=True)
class Pace:
    """How eagerly peers are armed, and how soon a dead one is noticed.

    `spread_s`: what each unarmed peer adds to the time over which they are all armed (a login costs 3 ms of CPU);
    `draw` (0 to 1) picks each one's place in it. A peer without the loop is tried again after `no_loop_s`; one that was
    armed for `steady_s` starts again with the shortest back-off. A connection that says nothing for
    `keepalive_s` * (`keepalive_misses` + 1) = 14 s is dead. `stray_s`: how long a peer's connection stays after a
    command when nobody asked for it to be armed.
    """

    backoff: Backoff = field(default_factory=lambda: Backoff(first_s=1.0, most_s=60.0, jitter=1.0))
    draw: Callable[[], float] = random.random
    spread_s: float = 0.01
    no_loop_s: float = 300.0
    steady_s: float = 30.0
    keepalive_s: float = 7.0
    keepalive_misses: int = 1
    stray_s: float = 60.0


def ignore(_: object) -> None:
    """Do nothing."""


@dataclass(slots=True, eq=False)
class _Keeper:
    """One peer's life."""

    peer: Peer
    task: asyncio.Task[None] | None = None
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    channel: ArmedChannel | None = None
    link: Link | None = None
    armed_at: float | None = None
    attempts: int = 0  # shown
    tries: int = 0  # for the back-off: not reset by being armed for a moment
    is_slow: bool = False  # the loop had not greeted when its time was over
    error: PeerError | None = None


_SLOW_TRIES = 3
# Logins in the background leave room for those that a failover waits for.
_MOST_TURNS, _TURN_S = 32, 1.0


class ArmedPeers:
    """Keeps peers armed, in background tasks of its own. It belongs to one event loop and is ended by `close`.

    Guarantees: nothing that a peer does or sends harms another one or ends a background task; a peer that can't be
    armed is reached all the same, each command started anew there. `on_armed` is called from the event loop each
    time that a peer becomes armed; `say` gets a sentence when a peer's state changes, never for the same one again.

    Not guaranteed: that a command runs once only. When its channel ends under way it is sent again, once: only what
    may run twice (a ping, a read) is to be sent this way.
    """

    def __init__(
        self,
        settings: SshSettings,
        *,
        on_armed: Callable[[Peer], None] = ignore,
        say: Callable[[str], None] = ignore,
        pace: Pace | None = None,
    ) -> None:
        """Nothing is read or opened yet."""
        self._settings, self._on_armed, self._say = settings, on_armed, say
        self._pace = pace or Pace()
        self._pool = PeerConnections(settings)
        self._turns = Turns(max(1, min(_MOST_TURNS, settings.concurrency // 2)))
        self._keepers: dict[Key, _Keeper] = {}
        self._armed: dict[Key, ArmedChannel] = {}
        self._strays: dict[Key, asyncio.TimerHandle] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._is_closed = False

    def set_peers(self, peers: tuple[Peer, ...]) -> None:
        """Arm these peers from now on, and let go of all others. A peer is its host, port and user."""
        if self._is_closed:
            return
        wanted = {key_of(peer): peer for peer in reversed(peers)}  # named twice: its first place counts
        for key in [key for key in self._keepers if key not in wanted]:
            self._let_go(key)
        added = []
        for peer in peers:
            key = key_of(peer)
            if key not in self._keepers:
                self._keepers[key] = _Keeper(peer)
                added.append(self._keepers[key])
            if (stray := self._strays.pop(key, None)) is not None:
                stray.cancel()
        for key, keeper in self._keepers.items():
            keeper.peer = wanted[key]
        for keeper in added:
            keeper.task = asyncio.create_task(self._keep(keeper))
        self._keepers = {key_of(peer): self._keepers[key_of(peer)] for peer in peers}

    async def run(self, peer: Peer, command: str) -> str:
        """Return what a command line of a POSIX shell writes to stdout there, with one line end at its end.

        Raises PeerError. The command has command_timeout_s on the armed channel, and has to end by itself after that:
        the channel stays usable. Cold, the bounds of PeerConnections.run hold.
        """
        channel = self._armed.get(key_of(peer))
        if channel is not None:
            try:
                return await channel.run(command)
            except LostChannelError:
                pass
        return await self._run_cold(peer, command)

    async def probe_tcp(self, peer: Peer, address: str, port: int, data: bytes) -> bool:
        """As PeerConnections.probe_tcp, over the connection that the loop runs on."""
        try:
            return await self._pool.probe_tcp(peer, address, port, data)
        finally:
            if key_of(peer) not in self._keepers and not self._is_closed:
                self._let_go_later(key_of(peer), peer)

    def is_armed(self, peer: Peer) -> bool:
        """Tell whether its loop waits for a line, as far as TCP and keepalive (14 s) have noticed."""
        return key_of(peer) in self._armed

    def show(self) -> tuple[PeerArms, ...]:
        """Return a row for each peer, in the order of `set_peers`."""
        now = asyncio.get_running_loop().time()
        return tuple(
            PeerArms(
                host=keeper.peer.host,
                is_armed=key in self._armed,
                since_s=now - keeper.armed_at if key in self._armed and keeper.armed_at is not None else None,
                attempts=keeper.attempts,
                error=keeper.error.message if keeper.error is not None else None,
                is_restricted=self._armed[key].speaks_words if key in self._armed else None,
            )
            for key, keeper in self._keepers.items()
        )

    async def close(self) -> None:
        """Let go of all peers. Afterwards no task and no socket is left; a later `run` is a PeerError."""
        self._is_closed = True
        for key in list(self._keepers):
            self._let_go(key)
        for stray in self._strays.values():
            stray.cancel()
        self._strays.clear()
        if self._leaving:
            await asyncio.wait(set(self._leaving))
        await self._pool.close()

    # -- cold

    async def _run_cold(self, peer: Peer, command: str) -> str:
        key = key_of(peer)
        if (stray := self._strays.pop(key, None)) is not None:
            stray.cancel()
        try:
            result = await self._pool.run(peer, command)
        finally:
            if key not in self._keepers and not self._is_closed:
                self._let_go_later(key, peer)
        keeper = self._keepers.get(key)
        if keeper is not None and keeper.error is not None and keeper.error.kind == "unreachable":
            keeper.wake.set()  # it is back: no need to wait for the back-off's end
        return trim(result.stdout)

    def _let_go_later(self, key: Key, peer: Peer) -> None:
        if (earlier := self._strays.pop(key, None)) is not None:
            earlier.cancel()

        def let_go() -> None:
            del self._strays[key]
            self._pool.release(peer)

        self._strays[key] = asyncio.get_running_loop().call_later(self._pace.stray_s, let_go)

    # -- one peer's life

    async def _keep(self, keeper: _Keeper) -> None:
        wait_s = self._spread_s()
        while True:
            await self._pause(keeper, wait_s)
            try:
                async with self._turns.take(_TURN_S) as turn:  # no dead one keeps it from the living
                    channel = await self._arm(keeper)
                    turn.note_success()
            except PeerError as error:
                keeper.attempts += 1
                self._note(keeper, error)
            except Exception as error:  # noqa: BLE001 - what the library's parsers can be made to raise ends no peer's life (I7)
                keeper.attempts += 1
                unforeseen = f"it could not be armed, in a way that has no name yet ({type(error).__name__}: {clean(str(error))})"
                self._note(keeper, say(keeper.peer.host, unforeseen, "unreachable"))
            else:
                await asyncio.wait([channel.ended])
                self._note_loss(keeper, channel)
            keeper.tries += 1
            wait_s = self._pace.backoff.wait_s(keeper.tries) + self._spread_s()

    async def _pause(self, keeper: _Keeper, wait_s: float) -> None:
        """Wait before the next try. A peer that is connected but runs no loop gets the next one much later.

        One that only said nothing in time may have too much to do: a few tries first.
        """
        keeper.wake.clear()
        is_slow = keeper.is_slow and keeper.attempts < _SLOW_TRIES
        try:
            if keeper.error is not None and keeper.error.kind == "command" and keeper.link is not None and keeper.attempts and not is_slow:
                async with asyncio.timeout(self._pace.no_loop_s):
                    await keeper.link.connection.wait_closed()
            async with asyncio.timeout(wait_s):
                await keeper.wake.wait()
        except TimeoutError:
            pass

    async def _arm(self, keeper: _Keeper) -> ArmedChannel:
        peer, loop = keeper.peer, asyncio.get_running_loop()
        keeper.link = link = await self._pool.obtain(peer)
        link.connection.set_keepalive(self._pace.keepalive_s, self._pace.keepalive_misses)
        channel = ArmedChannel(peer.host, self._settings.command_timeout_s, on_end=partial(self._note_end, keeper))
        keeper.channel = channel
        began, keeper.is_slow = loop.time(), False
        try:
            await channel.open(link, self._settings.connect_timeout_s)
        except PeerError:
            keeper.is_slow = loop.time() - began >= self._settings.connect_timeout_s
            raise
        if channel.ended.done():
            raise say(peer.host, f"it was armed for a moment only ({channel.ended.result()})", "command")
        self._armed[key_of(peer)] = channel
        keeper.armed_at, keeper.attempts = loop.time(), 0
        if keeper.error is not None:
            keeper.error = None
            self._say(f"{peer.host}: armed")
        loop.call_soon(self._on_armed, peer)
        return channel

    def _note_end(self, keeper: _Keeper) -> None:
        """Forget the channel, at once."""
        key, channel = key_of(keeper.peer), keeper.channel
        if channel is not None and self._armed.get(key) is channel:
            del self._armed[key]
        if channel is not None and channel.is_link_dead:
            self._pool.release(keeper.peer, keeper.link)

    def _note_loss(self, keeper: _Keeper, channel: ArmedChannel) -> None:
        is_connected = keeper.link is not None and keeper.link.is_open
        if keeper.armed_at is not None and asyncio.get_running_loop().time() - keeper.armed_at >= self._pace.steady_s:
            keeper.tries = 0
        sentence = f"no longer armed ({channel.ended.result()}): until it is again, each command is started anew there"
        self._note(keeper, say(keeper.peer.host, sentence, "command" if is_connected else "unreachable"))

    def _note(self, keeper: _Keeper, error: PeerError) -> None:
        if keeper.error is None or keeper.error.message != error.message:
            self._say(error.message)
        keeper.error = error

    def _spread_s(self) -> float:
        """Return a moment in the time over which all peers that are unarmed now are armed."""
        return self._pace.draw() * self._pace.spread_s * (len(self._keepers) - len(self._armed))

    def _let_go(self, key: Key) -> None:
        keeper = self._keepers.pop(key)
        if keeper.task is not None:
            keeper.task.cancel()
            self._leaving.add(keeper.task)
            keeper.task.add_done_callback(self._leaving.discard)
        if keeper.channel is not None:
            keeper.channel.end("it was taken off the list of peers")
        self._pool.release(keeper.peer)
