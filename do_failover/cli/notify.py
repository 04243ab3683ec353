"""`do-failover notify TYPE NAME STATE [PRIORITY]`: keepalived's hook.

In keepalived.conf, inside vrrp_instance or vrrp_sync_group:

    notify "/usr/bin/do-failover notify"

Ordering (claims.py) works for `notify` only: with `notify_master` alone nobody tells this program
that mastership was lost, and a failover that still runs could take the IP back from the new MASTER.

What a story needs is imported after this event is known as the newest: BACKUP, started a moment after
MASTER, ends MASTER's failover before its first request (the imports take longer than that moment).
keepalived gives its scripts /dev/null for stderr, so whatever goes wrong is in syslog too.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from do_failover.claims import describe_newer, read_order
from do_failover.cli.claiming import open_claims
from do_failover.cli.options import HELP, common_options, read_config
from do_failover.cli.output import open_log, print_json, print_text
from do_failover.codec import encode_report, encode_reports
from do_failover.daemon_lock import find_daemon
from do_failover.decision import UNKNOWN, decide
from do_failover.errors import ConfigError, FailoverError, SupersededError
from do_failover.event import parse_arguments
from do_failover.history import make_id
from do_failover.model import DecisionKind, FailoverReport, NotifyType, Outcome, ReportError, VrrpState

if TYPE_CHECKING:
    import logging
    from collections.abc import Iterator
    from types import TracebackType

    from do_failover.claims import Claims, Latest
    from do_failover.config import Config, FailoverConfig
    from do_failover.model import NotifyEvent

_NO_PRIORITY = (
    "called without a priority, which keepalived's `notify` always passes: by notify_master alone nobody says that mastership "
    "was lost, and a failover that still runs could take the IP back; use notify, or the daemon"
)


@click.command(context_settings=HELP, epilog="Example: do-failover notify INSTANCE VI_1 MASTER 150")
@click.argument("kind", metavar="TYPE")
@click.argument("name")
@click.argument("state")
@click.argument("priority", required=False)
@common_options
@click.pass_context
def notify(
    context: click.Context,
    kind: str,
    name: str,
    state: str,
    priority: str | None,
    config_path: str | None,
    output: str,
    verbose: bool,
) -> int:
    """Take one notify of keepalived: its four arguments, unchanged.

    MASTER: the reserved IP (floating IP) of that instance or group moves to this Droplet, its peers are
    refreshed, and each is proven to reach it here; round after round until a newer event comes.
    BACKUP, FAULT, STOP, DELETED: nothing is assigned or released, and a running failover ends.
    """
    log = open_log(to_syslog=True, is_verbose=verbose)
    with _everything_logged(log):
        event = parse_arguments(kind, name, state, priority)
        config, nits = read_config(context, config_path)
        entries = find_entries(config, event)
        if priority is None and event.state is VrrpState.MASTER:
            nits.append(_NO_PRIORITY)
        if (pid := find_daemon(Path(config.paths.run_dir))) is not None and pass_on(config, event):
            pid = find_daemon(Path(config.paths.run_dir))  # one that ended meanwhile took the line with it
        else:
            pid = None
        if pid is not None:
            reason = f"passed on to this machine's daemon (process {pid}), which acts on it"
            log.info("%s", reason)
            return _print([_make_report(event, entry, reason, is_superseded=False) for entry in entries], output)
        claims, warning = open_claims(config)
        if warning is not None:
            nits.append(warning)
        newer = _enter(claims, event, entries, nits)
        decision = decide(event, owner=UNKNOWN, target=None)
        if decision.kind is DecisionKind.IGNORE or newer is not None:
            for nit in nits:
                log.warning("warning: %s", nit)
            reason = describe_newer(newer) if newer is not None else decision.reason
            log.info("%s", reason)
            is_superseded = newer is not None and decision.kind is not DecisionKind.IGNORE
            reports = [_make_report(event, entry, reason, is_superseded=is_superseded) for entry in entries]
            return _print(reports, output)
        return _print(_tell(config, entries, claims, event, nits, is_verbose=verbose), output)


def pass_on(config: Config, event: NotifyEvent) -> bool:
    """Write the event into the daemon's FIFO, with this process's place among the scripts; False where it can't be written."""
    order = read_order(os.getpid())
    line = f"SCRIPT {order.start_ticks if order is not None else 0} {os.getpid()} {event}\n".encode(errors="surrogateescape")
    try:
        fifo = os.open(config.keepalived.fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return os.write(fifo, line) == len(line)
        finally:
            os.close(fifo)
    except OSError:
        return False


def find_entries(config: Config, event: NotifyEvent) -> tuple[FailoverConfig, ...]:
    """Return the reserved IPs that this instance or group decides over. Raises ConfigError when there is none."""
    found = tuple(
        entry for entry in config.failover if event.name == (entry.instance if event.type is NotifyType.INSTANCE else entry.group)
    )
    if not found:
        known = ", ".join(
            f"INSTANCE {entry.instance}" if entry.instance is not None else f"GROUP {entry.group}" for entry in config.failover
        )
        msg = f"{config.path} has no reserved IP for {event.type} {event.name!r} (it has: {known}); nothing was done"
        raise ConfigError(msg)
    return found


def _enter(claims: Claims | None, event: NotifyEvent, entries: tuple[FailoverConfig, ...], nits: list[str]) -> Latest | None:
    """Make this event the newest of its name; return a newer one that is here already."""
    if claims is None or event.state.is_of_priority:
        return None
    try:
        return claims.enter(event, tuple(entry.reserved_ip for entry in entries))
    except FailoverError as error:
        nits.append(error.message)
        return None


def _tell(
    config: Config,
    entries: tuple[FailoverConfig, ...],
    claims: Claims | None,
    event: NotifyEvent,
    nits: list[str],
    *,
    is_verbose: bool,
) -> list[FailoverReport]:
    from do_failover.cli.story import Story, tell
    from do_failover.cli.wiring import read_peers

    peers = read_peers(config)
    story = Story(config, entries, peers.peers, (*nits, *peers.nits), event=event, is_verbose=is_verbose)
    return tell(story, claims, lambda _: None)


def _make_report(event: NotifyEvent, entry: FailoverConfig, reason: str, *, is_superseded: bool) -> FailoverReport:
    """Report an event that asks for nothing, or that was superseded before it began."""
    at = datetime.now(UTC).astimezone()
    return FailoverReport(
        id=make_id(at, secrets.token_bytes(4)),
        at=at.isoformat(timespec="milliseconds"),
        node=socket.gethostname(),
        reserved_ip=entry.reserved_ip,
        instance=entry.vrrp_name,
        event=event,
        decision=DecisionKind.IGNORE,
        reason=reason,
        droplet_id=None,
        owner_before=None,
        owner_after=None,
        outcome=Outcome.SUPERSEDED if is_superseded else Outcome.DONE,
        exit_code=SupersededError.exit_code if is_superseded else 0,
        error=ReportError(SupersededError.kind, reason) if is_superseded else None,
    )


def _print(reports: list[FailoverReport], output: str) -> int:
    if output == "json":
        print_json(encode_report(reports[0]) if len(reports) == 1 else encode_reports(reports, find_worst(reports)))
    else:
        print_text(reports)
    return find_worst(reports).exit_code


def find_worst(reports: list[FailoverReport]) -> FailoverReport:
    """Return the report that the exit code is about: a failure before a superseded, before a partial one."""
    order = (Outcome.DONE, Outcome.PARTIAL, Outcome.SUPERSEDED, Outcome.FAILED)
    return max(reports, key=lambda report: (order.index(report.outcome), report.exit_code))


@contextmanager
def _everything_logged(log: logging.Logger) -> Iterator[None]:
    """Send what ends this command to syslog as well: keepalived throws stderr away."""

    def log_mistake(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        log.error("a mistake in do-failover", exc_info=(kind, error, trace))

    sys.excepthook = log_mistake
    try:
        yield
    except ConfigError as error:
        _log_for_syslog(log, *error.problems)
        raise
    except FailoverError as error:
        _log_for_syslog(log, error.message)
        raise


def _log_for_syslog(log: logging.Logger, *sentences: str) -> None:
    for sentence in sentences:
        log.error("%s", sentence, extra={"is_for_syslog_only": True})
