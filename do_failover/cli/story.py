"""Runs failovers under the machine's signals: one at a time for a reserved IP, kept in the history, shown live."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from do_failover import history
from do_failover.claims import Claims, Latest, read_age_s
from do_failover.cli.output import open_log
from do_failover.cli.wiring import make_api, make_edges
from do_failover.errors import FailoverError
from do_failover.failover import ALL_STEPS, Request, run_rounds
from do_failover.mandate import Mandate
from do_failover.model import Stage
from do_failover.report import make_log_line

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Iterator

    from do_failover.config import Config, FailoverConfig
    from do_failover.model import FailoverReport, NotifyEvent, Peer
    from do_failover.report import OpenStage

_TURN_POLL_S = 0.05


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


def tell(story: Story, claims: Claims | None, observe: Callable[[OpenStage | Stage], None]) -> tuple[list[FailoverReport], bool]:
    """Tell it for each reserved IP, side by side; return the reports, and whether a person interrupted it."""
    log = open_log(to_syslog=story.event is not None, is_verbose=story.is_verbose)
    for warning in story.warnings:
        log.warning("warning: %s", warning)
    return asyncio.run(_tell(story, claims, observe, log))


async def _tell(
    story: Story, claims: Claims | None, observe: Callable[[OpenStage | Stage], None], log: logging.Logger
) -> tuple[list[FailoverReport], bool]:
    mandate = Mandate()
    interrupted = asyncio.Event()
    with _signals(mandate, story.event, claims, interrupted):
        told = [_tell_one(story, entry, claims, mandate, observe, log) for entry in story.entries]
        reports = await asyncio.gather(*told)
    return list(reports), interrupted.is_set()


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
        )

    def keep(report: FailoverReport) -> None:
        _keep(story.config, report, log)

    turn = await _take_turn(claims, entry.reserved_ip, story.event, mandate, log)
    try:
        return await run_rounds(make_request, edges, mandate, observe, keep)
    finally:
        api.close()
        if turn is not None:
            turn.close()


async def _take_turn(
    claims: Claims | None, reserved_ip: str, event: NotifyEvent | None, mandate: Mandate, log: logging.Logger
) -> IO[bytes] | None:
    """Wait until no other process runs a failover of this IP (I4); a newer event revokes the mandate."""
    has_said = False
    while claims is not None and not mandate.is_revoked:
        try:
            turn = claims.try_start(reserved_ip, event)
        except FailoverError as error:
            log.warning("warning: %s", error.message)
            return None
        if isinstance(turn, Latest):
            mandate.revoke(describe_newer(turn))
            return None
        if turn is not None:
            return turn
        newer = claims.find_newer(event) if event is not None else None
        if newer is not None:
            mandate.revoke(describe_newer(newer))
            return None
        if not has_said:
            running = claims.read_running(reserved_ip)
            log.info("waiting for process %s, which runs a failover of %s", running.pid if running else "?", reserved_ip)
            has_said = True
        await asyncio.sleep(_TURN_POLL_S)
    return None


def describe_newer(newer: Latest) -> str:
    """Return the sentence of a superseded failover."""
    return f"superseded by the newer event {newer.event} (process {newer.pid})"


@contextmanager
def _signals(mandate: Mandate, event: NotifyEvent | None, claims: Claims | None, interrupted: asyncio.Event) -> Iterator[None]:
    """SIGTERM means STOP, or that a newer event is here; SIGINT is a person. Both end the mandate."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        newer = claims.find_newer(event) if claims is not None and event is not None else None
        mandate.revoke(describe_newer(newer) if newer is not None else "SIGTERM, which means STOP: keepalived or a newer event ended it")

    def interrupt() -> None:
        interrupted.set()
        mandate.revoke("interrupted by a person (Ctrl-C)")

    loop.add_signal_handler(signal.SIGTERM, stop)
    loop.add_signal_handler(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
        loop.remove_signal_handler(signal.SIGINT)


def _keep(config: Config, report: FailoverReport, log: logging.Logger) -> None:
    """Log the report's line and append it to the history; a history that can't be written is a warning (I9)."""
    log.info("%s", make_log_line(report))
    try:
        history.append_record(Path(config.paths.history_dir), report)
    except FailoverError as error:
        log.warning("warning: this failover is not in the history: %s", error.message)


def open_claims(config: Config) -> tuple[Claims | None, str | None]:
    """Return the claims; or None and a warning where run_dir can't be used: the failover goes on (I9)."""
    # keepalived's scripts inherit its umask of 0177 (keepalived.conf(5)): a directory made under it can't be entered.
    # This is the first file of a run; the history's come later.
    os.umask(0o027)
    try:
        return Claims(Path(config.paths.run_dir)), None
    except FailoverError as error:
        return None, error.message


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
