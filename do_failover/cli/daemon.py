"""`do-failover daemon [FIFO]`: resident, under systemd or as keepalived's vrrp_notify_fifo_script."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import AsyncExitStack, closing, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from do_failover import __version__
from do_failover.cli.asking import SOCKET
from do_failover.cli.options import HELP, common_options, find_config_path, read_config
from do_failover.cli.output import open_log, print_json
from do_failover.daemon_lock import take_lock
from do_failover.errors import ConfigError, FailoverError
from do_failover.model import VrrpState

if TYPE_CHECKING:
    import logging

    from do_failover.cli.resident import Outside
    from do_failover.config import Config
    from do_failover.daemon.daemon import Daemon
    from do_failover.daemon.fifo import NotifyFifo
    from do_failover.daemon.notice import Notice

_LOCK_PATIENCE_S = 5.0  # as a script of keepalived: on reload its forerunner is still there for a moment
_DRAIN_S = 0.4  # keepalived sends SIGTERM before the STOP lines, and SIGKILL a second later
_TICK_S = 1.0
_ASLEEP_AFTER_S = 60.0
EXIT_INTERRUPTED = 130


@click.command(context_settings=HELP, epilog="Example: do-failover daemon -c /etc/do-failover/config.toml")
@click.argument("fifo", required=False)
@common_options
@click.pass_context
def daemon(context: click.Context, fifo: str | None, config_path: str | None, output: str, verbose: bool) -> int:
    """Stay, read keepalived's vrrp_notify_fifo, and keep the reserved IP where VRRP wants it.

    FIFO is what keepalived passes to a vrrp_notify_fifo_script; default: keepalived.fifo of the configuration.
    SIGHUP reads the configuration again; SIGTERM ends it. A second daemon says so and ends (exit 1).
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until it means a reload, and when it does no more
    is_under_systemd = "NOTIFY_SOCKET" in os.environ or "JOURNAL_STREAM" in os.environ
    log = open_log(to_syslog=not is_under_systemd, is_verbose=verbose)
    config, nits = read_config(context, config_path)
    for nit in nits:
        log.warning("warning: %s", nit)
    os.umask(0o027)  # keepalived's scripts inherit its umask of 0177
    run_dir = Path(config.paths.run_dir)
    # A script that finds the lock taken relies on its line being kept: the FIFO is held before the lock, and until after it.
    with (
        closing(_open_fifo(run_dir, Path(fifo or config.keepalived.fifo))) as opened,
        take_lock(run_dir, patience_s=_LOCK_PATIENCE_S) if fifo else take_lock(run_dir) as lock,
    ):
        exit_code = asyncio.run(_live(config, find_config_path(context, config_path), opened, log, lock, drains=fifo is not None))
    if output == "json":
        import msgspec

        print_json(msgspec.json.encode({"schema": 1, "outcome": "done", "exit_code": exit_code, "error": None}))
    return exit_code


def _open_fifo(run_dir: Path, path: Path) -> NotifyFifo:
    from do_failover.daemon.fifo import NotifyFifo

    if path.parent == run_dir:
        with suppress(OSError):  # whoever needs it says what is wrong with it
            run_dir.mkdir(mode=0o750, parents=True, exist_ok=True)
    return NotifyFifo(path)


async def _live(  # the parts in the order of their making
    config: Config, config_path: Path, fifo: NotifyFifo, log: logging.Logger, lock: IO[bytes], *, drains: bool
) -> int:
    """Build everything, live, and take it down again."""
    from do_failover.cli.resident import Outside
    from do_failover.daemon.daemon import Daemon
    from do_failover.daemon.keepalived import KeepalivedWatch
    from do_failover.daemon.local_socket import LocalSocket
    from do_failover.daemon.notice import Notice

    async with AsyncExitStack() as stack:
        outside = Outside(config, log, lambda peer: resident.note_return(peer))  # noqa: PLW0108 - it is made below
        stack.push_async_callback(outside.close)
        world = outside.make_world()
        resident = Daemon(config.failover, world)
        service = _Service(resident, outside, config_path, Notice(os.environ), drains=drains)
        watch = KeepalivedWatch(Path(config.keepalived.pid_file), world.clock, resident.note_keepalived)
        door = LocalSocket(Path(config.paths.run_dir) / SOCKET, {os.geteuid(), *outside.find_uids()}, obey=resident.obey, show=service.show)
        await door.open()
        stack.push_async_callback(door.close)
        fifo.start(resident.feed, resident.forget_all)
        works = (watch.run(), outside.follow_peers(), outside.follow_tag(), service.tick(fifo))
        try:
            return await service.run(works)
        finally:
            lock.close()  # from here on scripts act by themselves; what came before is kept for the next daemon
            fifo.stop()


class _Service:
    """The daemon as the machine sees it: signals, systemd, `status`."""

    def __init__(self, resident: Daemon, outside: Outside, config_path: Path, notice: Notice, *, drains: bool) -> None:
        self.resident, self.outside, self.notice = resident, outside, notice
        self._config_path, self._drains = config_path, drains
        self._started = outside.clock.wall()
        self._exit_code = 0
        self._digitalocean = outside.config.digitalocean
        self._stopped_since: float | None = None
        self._reloading: asyncio.Task[None] | None = None
        self._is_reload_wanted = False

    async def run(self, works: tuple[Any, ...]) -> int:
        """Run until a signal ends it; return the exit code."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._end, "SIGTERM", 0)
        loop.add_signal_handler(signal.SIGINT, self._end, "interrupted by a person (Ctrl-C)", EXIT_INTERRUPTED)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        tasks = [asyncio.create_task(work) for work in works]
        for task in tasks:
            task.add_done_callback(self._note_failure)
        keepalived = self.resident.keepalived
        who = f"keepalived is process {keepalived[1]}" if keepalived is not None else "no keepalived yet"
        self.outside.say(f"do-failover {__version__} keeps {', '.join(self.resident.keepers)}; {who}")
        self.notice.tell("READY=1", f"STATUS={who}")
        try:
            await self.resident.run()
            if self._drains:
                await asyncio.sleep(_DRAIN_S)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            loop.remove_signal_handler(signal.SIGHUP)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self.outside.say("the daemon has ended")
        return self._exit_code

    def _end(self, why: str, exit_code: int) -> None:
        self._exit_code = exit_code
        self.notice.tell("STOPPING=1")
        self.resident.end(f"{why}: the daemon ends; what is unfinished is taken up by the next one")

    def _note_failure(self, task: asyncio.Task[Any]) -> None:
        """Let a part that fails take the daemon with it, and systemd start it anew: half a daemon would be trusted for nothing."""
        if not task.cancelled() and task.exception() is not None:
            self.outside.log.error("a part of the daemon failed", exc_info=task.exception())
            self._end("a part of the daemon failed", 1)

    def _reload(self) -> None:
        self._is_reload_wanted = True
        if self._reloading is None or self._reloading.done():
            self._reloading = asyncio.create_task(self._reload_while_wanted())

    async def _reload_while_wanted(self) -> None:
        """Read the configuration as often as it was asked for; whatever happens, the service manager hears of the end."""
        while self._is_reload_wanted:
            self._is_reload_wanted = False
            self.notice.tell("RELOADING=1", f"MONOTONIC_USEC={int(self.outside.clock.now() * 1e6)}")
            try:
                await self._take_new_configuration()
            except Exception:  # whatever it is: the manager waits for READY=1, and the daemon goes on with what it has
                self.outside.log.exception("a mistake in do-failover: the reload failed half way; restart the daemon")
            finally:
                self.notice.tell("READY=1")

    async def _take_new_configuration(self) -> None:
        """Take the configuration anew; a broken one is refused with all its problems, and the old one stays."""
        from do_failover.config import load_config

        try:
            config = load_config(self._config_path)
        except ConfigError as error:
            for problem in error.problems:
                self.outside.log.warning("%s", problem)
            self.outside.log.warning("the new configuration is refused; the old one stays in effect")
            return
        fixed = [name for name in ("paths", "keepalived") if getattr(config, name) != getattr(self.outside.config, name)]
        if fixed:
            self.outside.log.warning("warning: a change of %s needs a restart of the daemon", " and ".join(fixed))
        await self.outside.change(config)
        await self.resident.reload(config.failover, is_all=config.digitalocean != self._digitalocean)
        self._digitalocean = config.digitalocean
        self.outside.say(f"the configuration was read again: {', '.join(self.resident.keepers)}")

    async def tick(self, fifo: NotifyFifo) -> None:
        """Once a second: the FIFO's file, the watchdog, the status line, the peers' arms."""
        complaint = ""
        while True:
            try:
                fifo.follow()
                complaint = ""
            except FailoverError as error:
                if error.message != complaint:  # once, not every second
                    self.outside.say(error.message)
                complaint = error.message
            lines = [f"STATUS={'; '.join(f'{ip}: {keeper.choice.why}' for ip, keeper in self.resident.keepers.items())}"]
            self.notice.tell(*lines, *(["WATCHDOG=1"] if self.notice.watchdog_s is not None else []))
            self._sleep_or_wake()
            self.resident.look_at_others()
            await self.outside.clock.sleep(min(_TICK_S, (self.notice.watchdog_s or 2 * _TICK_S) / 2))

    def _sleep_or_wake(self) -> None:
        """Let the peers go where keepalived was stopped a while ago: this node can't become MASTER."""
        gone = {VrrpState.STOP, VrrpState.DELETED}
        if not all(keeper.standing.claim in gone for keeper in self.resident.keepers.values()):
            self._stopped_since = None
        elif self._stopped_since is None:
            self._stopped_since = self.outside.clock.now()
        is_long = self._stopped_since is not None and self.outside.clock.now() > self._stopped_since + _ASLEEP_AFTER_S
        self.outside.wake(is_awake=not is_long)

    def show(self) -> dict[str, Any]:
        """Return what `status` and `peers` show."""
        return {
            "pid": os.getpid(),
            "version": __version__,
            "since": self._started.isoformat(timespec="seconds"),
            "keepalived": self.resident.keepalived[1] if self.resident.keepalived is not None else None,
            "failovers": [keeper.show() for keeper in self.resident.keepers.values()],
            "peers": self.outside.show_peers(),
            "warnings": list(self.outside.nits),
        }
