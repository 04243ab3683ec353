"""The daemon's outside, built from the configuration that is in effect: edges, peers, memory, log."""

from __future__ import annotations

import asyncio
import os
import pwd
import secrets
import socket
from collections import Counter
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from do_failover import history
from do_failover.cli.claiming import open_claims
from do_failover.cli.story import hold_turn
from do_failover.cli.wiring import RealLink, ask_for_droplets, is_on_link, make_api, make_ssh_settings, make_tree, read_peers
from do_failover.clock import RealClock
from do_failover.config import expand_path
from do_failover.daemon.keepalived import find_keepalived
from do_failover.daemon.memory import Memory, load_memory, save_memory
from do_failover.daemon.world import Newer, Order, World
from do_failover.discovery import locate_discovery, save_discovery
from do_failover.do_metadata import read_identity
from do_failover.errors import FailoverError
from do_failover.model import NotifyEvent, VrrpState
from do_failover.report import make_log_line
from do_failover.request import Edges
from do_failover.ssh import ArmedPeers
from do_failover.threads import run_in_thread

if TYPE_CHECKING:
    import logging
    from collections.abc import AsyncIterator, Callable

    from do_failover.claims import Claims
    from do_failover.config import Config, DigitalOceanConfig, FailoverConfig
    from do_failover.do_api.client import DigitalOceanApi
    from do_failover.model import FailoverReport, Peer
    from do_failover.tree.shell import TreeShell

_PEERS_EVERY_S = 2.0
_REGISTER_AFTER_S = 0.01
_EMPTY_LOOKS = 5
_OLD_API_S = 120.0
_POLL_S = 0.1
_DISCOVER_EVERY_S = 600.0
_DISCOVER_AGAIN_S = 60.0
_IN_TREE = "reached through ClusterShell's gateways when an event comes: no connection is kept open"


class Outside:
    """Everything that one daemon meets. It belongs to one event loop and is ended by `close`."""

    def __init__(self, config: Config, log: logging.Logger, on_return: Callable[[Peer], None]) -> None:
        """Nothing is connected yet. `on_return`: a peer can be reached again."""
        self.config, self.log = config, log
        self.clock = RealClock()
        self.peers: tuple[Peer, ...] = ()
        self.nits: tuple[str, ...] = ()
        self._fingerprint: object = None
        self._on_return = on_return
        self._is_awake = True
        self._last_said = ""
        self._apis: dict[str, tuple[DigitalOceanConfig, DigitalOceanApi]] = {}
        self._empty_looks = 0
        self._users: Counter[ArmedPeers] = Counter()
        self._keeping: set[asyncio.Task[None]] = set()
        self.claims, warning = open_claims(config, is_daemon=True)
        if warning is not None:
            log.warning("warning: %s", warning)
        self.armed = self._make_armed()
        self.look_for_peers()

    def _make_armed(self) -> ArmedPeers:
        return ArmedPeers(make_ssh_settings(self.config.peers), on_armed=self._on_return, say=self.say)

    def make_world(self) -> World:
        """Return it as the daemon takes it."""
        memory_path = Path(self.config.paths.run_dir) / "daemon.memory"
        return World(
            clock=self.clock,
            node=socket.gethostname(),
            boot_id=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            make_edges=self.make_edges,
            list_peers=lambda: self.peers,
            take_turn=lambda entry, event, mandate: hold_turn(self.claims, entry, event, mandate, self.log),
            find_keepalived=lambda: find_keepalived(Path(self.config.keepalived.pid_file)),
            load_memory=lambda: load_memory(memory_path),
            save_memory=lambda memory: self._save(memory_path, memory),
            register=self._register,
            keep=self._keep,
            say=self.say,
            list_nits=lambda: (*self.config.nits, *self.nits),
            read_newer=self._read_newer,
            make_run=lambda: (history.make_id(self.clock.wall(), secrets.token_bytes(4)), secrets.token_bytes(8)),
        )

    def make_edges(self, entry: FailoverConfig) -> Edges:
        """Return the edges of one reserved IP: its own kept connection to the API, and the armed peers of all."""
        api = self._find_api(entry.reserved_ip)
        family = 6 if ":" in entry.reserved_ip else 4
        return Edges(
            clock=self.clock,
            api=api,
            read_identity=lambda: read_identity(self.config.digitalocean, family=family),
            open_link=lambda: RealLink(entry.interface),
            open_peers=self._open_peers,
            is_on_link=lambda address: is_on_link(entry.interface, address),
            probe_port=self.config.peers.probe_port,
            prepare_assign=lambda droplet_id: api.prepare_assign(entry.reserved_ip, droplet_id),
        )

    def _find_api(self, reserved_ip: str) -> DigitalOceanApi:
        """Return the IP's client; a new one where its settings have changed. The old one may still be in use for a while."""
        settings, api = self._apis.get(reserved_ip, (None, None))
        if api is None or settings != self.config.digitalocean:
            if api is not None:
                asyncio.get_running_loop().call_later(_OLD_API_S, api.close)
            api = make_api(self.config)
            self._apis[reserved_ip] = (self.config.digitalocean, api)
        return api

    @asynccontextmanager
    async def _open_peers(self) -> AsyncIterator[ArmedPeers | TreeShell]:
        if self.config.peers.is_tree:
            async with make_tree(self.config.peers) as tree:
                yield tree
            return
        armed = self.armed
        self._users[armed] += 1
        try:
            yield armed  # they stay open
        finally:
            self._users[armed] -= 1

    # -- peers

    def look_for_peers(self) -> None:
        """Read the list again when one of its files has changed."""
        found = (self.config, *map(_stat, (self.config.peers.file, str(locate_discovery(self.config)))))
        if found == self._fingerprint:
            return
        peers = read_peers(self.config)
        if self.peers and not peers.peers and self._is_passing():
            return
        self._empty_looks = 0
        for nit in peers.nits:
            if nit not in self.nits:
                self.log.warning("warning: %s", nit)
        self._fingerprint, self.peers, self.nits = found, peers.peers, peers.nits
        self.say(f"{len(self.peers)} peers" if self.peers else "no peers")
        self._arm()

    def _arm(self) -> None:
        """Keep connections open to all of them; to none while this node sleeps, or where gateways reach them."""
        self.armed.set_peers(self.peers if self._is_awake and not self.config.peers.is_tree else ())

    def _is_passing(self) -> bool:
        """Tell whether a list that has just become empty may be back in a moment: an editor is at work, or the file can't be read."""
        name = self.config.peers.file
        try:
            if name is not None:
                with expand_path(name).open("rb"):
                    pass
        except OSError as error:
            self._say_once(f"warning: the fan-out list {name} cannot be read ({error.strerror}): its last peers stay")
            return True
        self._empty_looks += 1
        return self._empty_looks <= _EMPTY_LOOKS

    def wake(self, *, is_awake: bool) -> None:
        """Keep the peers armed only while this node could become MASTER."""
        if is_awake != self._is_awake:
            self._is_awake = is_awake
            self._arm()

    async def follow_peers(self) -> None:
        """Look for them now and then, for ever."""
        while True:
            await self.clock.sleep(_PEERS_EVERY_S)
            self.look_for_peers()

    async def follow_tag(self) -> None:
        """Ask the API for the tagged Droplets now and then, for ever. An API that is down changes nothing."""
        while True:
            pause_s = _DISCOVER_EVERY_S
            try:
                if self.config.peers.tag is not None:
                    await self._discover()
            except FailoverError as error:
                self.say(f"the Droplets of the tag could not be listed, so the last list stays: {error.message}")
                pause_s = _DISCOVER_AGAIN_S
            await self.clock.sleep(pause_s)

    async def _discover(self) -> None:
        found, path = await ask_for_droplets(self.config), locate_discovery(self.config)
        await run_in_thread(lambda: save_discovery(path, found))

    def show_peers(self) -> list[dict[str, Any]]:
        """Return who is armed, for `peers` and `status`."""
        if self.config.peers.is_tree:
            row = {"armed": False, "restricted": None, "since_s": None, "attempts": 0, "error": _IN_TREE}
            return [{"host": peer.host, **row} for peer in self.peers]
        return [
            {
                "host": row.host,
                "armed": row.is_armed,
                "restricted": row.is_restricted,
                "since_s": row.since_s,
                "attempts": row.attempts,
                "error": row.error,
            }
            for row in self.armed.show()
        ]

    # -- what it writes

    def say(self, sentence: str) -> None:
        """Log one sentence."""
        self.log.info("%s", sentence)

    def _keep(self, report: FailoverReport) -> None:
        self.say(make_log_line(report))
        task = asyncio.create_task(self._append(report))
        self._keeping.add(task)
        task.add_done_callback(self._keeping.discard)

    async def _append(self, report: FailoverReport) -> None:
        directory = Path(self.config.paths.history_dir)
        try:
            await run_in_thread(lambda: history.append_record(directory, report))  # it waits for the disk
        except FailoverError as error:
            self.log.warning("warning: this failover is not in the history: %s", error.message)

    def _save(self, path: Path, memory: Memory) -> None:
        try:
            save_memory(path, memory)
        except OSError as error:
            fate = "after a restart this daemon will wait for the next event"
            try:
                path.unlink(missing_ok=True)  # an old memory is worse than none
            except OSError:
                fate = "what it holds is old, and a restarted daemon may act on it: remove it"
            self._say_once(f"warning: {path}: {error.strerror}; {fate}")

    def _say_once(self, sentence: str) -> None:
        if sentence != self._last_said:
            self._last_said = sentence
            self.say(sentence)

    def _register(self, event: NotifyEvent, entry: FailoverConfig) -> Order | None:
        """Tell the machine's other processes, a moment later: the request to the API goes first."""
        if self.claims is None:
            return None
        order = self.claims.renew_order()
        asyncio.get_running_loop().call_later(_REGISTER_AFTER_S, self._enter, self.claims, event, entry)
        return (order.start_ticks, order.pid)

    def _read_newer(self, entry: FailoverConfig, order: Order) -> Newer | None:
        if self.claims is None:
            return None
        latest = self.claims.read_latest(entry.make_event(VrrpState.STOP))
        move = self.claims.read_manual_move(entry.reserved_ip)
        # What a daemon entered is in a daemon's own memory, where it counts for one keepalived only.
        is_news = latest is not None and not latest.is_daemon
        found = [Newer((latest.start_ticks, latest.pid), latest.event)] if latest is not None and is_news else []
        found += [Newer((move.start_ticks, move.pid), None)] if move is not None else []
        return max((n for n in found if n.order > order and n.order[1] != os.getpid()), key=lambda n: n.order, default=None)

    def _enter(self, claims: Claims, event: NotifyEvent, entry: FailoverConfig) -> None:
        try:
            claims.enter(event, (entry.reserved_ip,))
        except FailoverError as error:
            claims.forget(event)
            self._say_once(f"warning: {error.message}")

    # -- its life

    async def change(self, config: Config) -> None:
        """Take another configuration; the peers are connected to anew where SSH's settings changed.

        What is open already stays as it is: paths, and where keepalived keeps its things.
        """
        before = self.config
        self.config = replace(config, paths=before.paths, keepalived=before.keepalived)
        if make_ssh_settings(before.peers) == make_ssh_settings(config.peers):
            self.look_for_peers()
            return
        old, self.armed = self.armed, self._make_armed()
        self._arm()
        self._fingerprint = None
        self.look_for_peers()
        while self._users.get(old):  # a story that runs keeps its connections
            await self.clock.sleep(_POLL_S)
        await old.close()

    def find_uids(self) -> set[int]:
        """Return who may ask the daemon, beside its own user: root, and the user of keepalived's scripts."""
        uids = {0}
        with suppress(KeyError):
            uids.add(pwd.getpwnam(self.config.keepalived.script_user).pw_uid)
        return uids

    async def close(self) -> None:
        """Close the connections, and wait for what is still being written."""
        if self._keeping:
            await asyncio.wait(set(self._keeping), timeout=2.0)
        await self.armed.close()
        for _, api in self._apis.values():
            api.close()


def _stat(name: str | None) -> tuple[int, int, int] | None:
    if name is None:
        return None
    try:
        found = expand_path(name).stat()
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_size, found.st_ino)
