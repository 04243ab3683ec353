"""Runs failovers under the machine's signals: one at a time for a reserved IP, kept in the history, shown live."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import sys
import time
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from do_failover import history
from do_failover.assign import Contest
from do_failover.claims import Claims, Turn, describe_newer, read_age_s
from do_failover.cli.output import open_log
from do_failover.cli.wiring import make_api, make_edges
from do_failover.errors import FailoverError, InterruptedByPersonError, TemporaryError
from do_failover.mandate import Mandate
from do_failover.model import NotifyEvent, Stage, VrrpState
from do_failover.report import make_log_line
from do_failover.request import ALL_STEPS, Request
from do_failover.rounds import run_rounds

if TYPE_CHECKING:
    import logging
    from collections.abc import AsyncIterator, Callable, Iterator

    from do_failover.config import Config, FailoverConfig
    from do_failover.model import FailoverReport, Peer
    from do_failover.report import OpenStage

_TURN_POLL_S = 0.05
_CLAIMS_EVERY_S = 0.1


@dataclass(frozen=True, slots=True)
class Story:
    """What is to be told: one or more reserved IPs, for one event or for a person."""

    config: Config
    entries: tuple[FailoverConfig, ...]
    peers: tuple[Peer, ...]
    warnings: tuple[str, ...]
    event: NotifyEvent | None = None
    to_droplet: int | None = None
    steps: frozenset[str] = ALL_STEPS
    is_verbose: bool = False


def tell(story: Story, claims: Claims | None, observe: Callable[[OpenStage | Stage], None]) -> list[FailoverReport]:
    """Tell it for each reserved IP, side by side; return the reports."""
    log = open_log(to_syslog=story.event is not None, is_verbose=story.is_verbose)
    for warning in story.warnings:
        log.warning("warning: %s", warning)
    # Until the loop listens to signals they are only noted: an error raised while it is being built would leave half of one.
    early: list[int] = []
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, lambda received, _: early.append(received))
    return asyncio.run(_tell(story, claims, observe, log, early))


async def _tell(
    story: Story, claims: Claims | None, observe: Callable[[OpenStage | Stage], None], log: logging.Logger, early: list[int]
) -> list[FailoverReport]:
    mandate = Mandate()
    with _signals(mandate, story.event, claims, early):
        told = [_tell_one(story, entry, claims, mandate, observe, log) for entry in story.entries]
        return list(await asyncio.gather(*told))


async def _tell_one(
    story: Story,
    entry: FailoverConfig,
    claims: Claims | None,
    mandate: Mandate,
    observe: Callable[[OpenStage | Stage], None],
    log: logging.Logger,
) -> FailoverReport:
    api = make_api(story.config)
    edges = make_edges(story.config, entry, api)
    heard_at = edges.clock.now() - read_age_s(os.getpid())
    contest = Contest()

    def make_request(number: int) -> Request:
        at = edges.clock.wall()
        return Request(
            entry=entry,
            peers=story.peers,
            run=secrets.token_bytes(8),
            id=history.make_id(at, secrets.token_bytes(4)),
            at=at.isoformat(timespec="milliseconds"),
            node=socket.gethostname(),
            heard_at=heard_at if number == 1 else edges.clock.now(),
            event=story.event,
            to_droplet=story.to_droplet,
            steps=story.steps,
            round=number,
            warnings=story.warnings,
            contest=contest,
        )

    def keep(report: FailoverReport) -> None:
        _keep(story.config, report, log)
        if claims is not None and story.to_droplet is not None and report.owner_after not in {None, report.droplet_id}:
            _note_manual_move(claims, report, log)

    awaited = story.event or entry.make_event(VrrpState.MASTER)
    watching = asyncio.create_task(_watch_claims(claims, awaited, mandate, is_manual=story.event is None))
    try:
        return await run_rounds(
            make_request,
            edges,
            mandate,
            take_turn=lambda: hold_turn(claims, entry, story.event, mandate, log),
            observe=observe,
            keep=keep,
        )
    finally:
        watching.cancel()
        api.close()


async def _watch_claims(claims: Claims | None, event: NotifyEvent, mandate: Mandate, *, is_manual: bool) -> None:
    """End the mandate when a newer event is there: the daemon, another user's process, may not send this one a signal."""
    while claims is not None and not mandate.is_revoked:
        newer = claims.find_newer(event, is_manual=is_manual)
        if newer is not None:
            mandate.revoke(describe_newer(newer))
        await asyncio.sleep(_CLAIMS_EVERY_S)


@asynccontextmanager
async def hold_turn(
    claims: Claims | None, entry: FailoverConfig, event: NotifyEvent | None, mandate: Mandate, log: logging.Logger
) -> AsyncIterator[None]:
    """Hold this IP's turn (I4); without it where the claims' files can't be used (I9)."""
    turn = None
    if claims is not None:
        try:
            turn = await _take_turn(claims, entry, event, mandate, log)
        except FailoverError as error:
            if error.kind != "claims":
                raise
            log.warning("warning: %s", error.message)
    try:
        yield
    finally:
        if turn is not None:
            turn.end()


async def _take_turn(
    claims: Claims, entry: FailoverConfig, event: NotifyEvent | None, mandate: Mandate, log: logging.Logger
) -> Turn | None:
    """Wait until no other process runs a failover of this IP; a newer event revokes the mandate; a person's patience ends."""
    awaited = event or entry.make_event(VrrpState.MASTER)
    is_manual = event is None
    limit = time.monotonic() + entry.deadline_s
    has_said = False
    while not mandate.is_revoked:
        turn = claims.try_start(entry.reserved_ip, awaited, is_manual=is_manual)
        newer = claims.find_newer(awaited, is_manual=is_manual) if turn is None else None if isinstance(turn, Turn) else turn
        if newer is not None:
            mandate.revoke(describe_newer(newer))
            return None
        if isinstance(turn, Turn):
            return turn
        running = claims.read_running(entry.reserved_ip)
        who = f"process {running.pid}" if running is not None else "another process"
        if is_manual and time.monotonic() > limit:
            msg = f"{who} has been running a failover of {entry.reserved_ip} all the time; wait for its end, or end it, and try again"
            raise TemporaryError(msg, kind="busy")
        if not has_said:
            log.info("waiting for %s, which runs a failover of %s", who, entry.reserved_ip)
            has_said = True
        await asyncio.sleep(_TURN_POLL_S)
    return None


@contextmanager
def _signals(mandate: Mandate, event: NotifyEvent | None, claims: Claims | None, early: list[int]) -> Iterator[None]:
    """SIGTERM means STOP, or that a newer event is here; SIGINT is a person. Each ends the mandate, also one that came early."""
    loop = asyncio.get_running_loop()

    def stop(word: str) -> None:
        newer = claims.find_newer(event) if claims is not None and event is not None else None
        mandate.revoke(describe_newer(newer) if newer is not None else word)

    signals = {
        signal.SIGTERM: lambda: stop("SIGTERM, which means STOP: keepalived or a newer event ended it"),
        signal.SIGHUP: lambda: stop("SIGHUP: the terminal was closed"),
        signal.SIGINT: lambda: mandate.revoke("interrupted by a person (Ctrl-C)", InterruptedByPersonError),
    }
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    for number, act in signals.items():
        loop.add_signal_handler(number, act)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    for number, act in signals.items():
        if number in early:
            act()
    try:
        yield
    finally:
        # What is left is printing the report: nothing ends that any more. The loop's end would bring back the defaults.
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        for number in signals:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)


def _note_manual_move(claims: Claims, report: FailoverReport, log: logging.Logger) -> None:
    try:
        claims.note_manual_move(report.reserved_ip)
    except FailoverError as error:
        log.warning("warning: a failover that is still running may take the IP back: %s", error.message)


def _keep(config: Config, report: FailoverReport, log: logging.Logger) -> None:
    """Log the report's line and append it to the history; a history that can't be written is a warning (I9)."""
    log.info("%s", make_log_line(report))
    try:
        history.append_record(Path(config.paths.history_dir), report)
    except FailoverError as error:
        log.warning("warning: this failover is not in the history: %s", error.message)


@contextmanager
def live_progress() -> Iterator[Callable[[OpenStage | Stage], None]]:
    """Show the running step on a terminal, and each step that ended; elsewhere nothing."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    with console.status("starting") as status:

        def observe(stage: OpenStage | Stage) -> None:
            if isinstance(stage, Stage):
                console.print(f"[dim]{stage.end_s:6.2f} s[/]  {stage.name:<9} ", end="")
                console.print(stage.detail, markup=False)
            else:
                status.update(f"{stage.name} ...")

        yield observe
