"""`do-failover notify TYPE NAME STATE [PRIORITY]`: keepalived's hook.

In keepalived.conf, inside vrrp_instance or vrrp_sync_group:

    notify "/usr/bin/do-failover notify"

Ordering (claims.py) works for `notify` only: with `notify_master` alone nobody tells this program
that mastership was lost, and a failover that still runs could take the IP back from the new MASTER.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from do_failover.cli.options import HELP, common_options, read_config
from do_failover.cli.output import open_log, print_json, print_lines
from do_failover.cli.story import Story, describe_newer, open_claims, tell
from do_failover.cli.wiring import read_peers
from do_failover.codec import encode_report, encode_reports
from do_failover.decision import UNKNOWN, decide
from do_failover.errors import ConfigError, FailoverError, SupersededError
from do_failover.event import parse_arguments
from do_failover.model import DecisionKind, NotifyType
from do_failover.report import render_lines

if TYPE_CHECKING:
    from do_failover.claims import Claims
    from do_failover.config import Config, FailoverConfig
    from do_failover.model import NotifyEvent


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
    event = parse_arguments(kind, name, state, priority)
    config, nits = read_config(context, config_path)
    entries = find_entries(config, event)
    claims, warning = open_claims(config)
    if warning is not None:
        nits.append(warning)
    newer = _enter(claims, event, entries, nits)
    decision = decide(event, owner=UNKNOWN, target=0)
    if decision.kind is DecisionKind.IGNORE:
        log = open_log(to_syslog=True, is_verbose=verbose)
        log.info("%s", decision.reason)
        if output == "json":
            print_json(encode_ignored(event, decision.reason))
        return 0
    if newer is not None:
        raise SupersededError(newer)
    peers = read_peers(config)
    story = Story(config, entries, peers.peers, (*nits, *peers.nits), event=event, is_verbose=verbose)
    reports, _ = tell(story, claims, lambda _: None)
    if output == "json":
        print_json(encode_report(reports[0]) if len(reports) == 1 else encode_reports(reports))
    else:
        print_lines([line for report in reports for line in render_lines(report)])
    return max(report.exit_code for report in reports)


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


def _enter(claims: Claims | None, event: NotifyEvent, entries: tuple[FailoverConfig, ...], nits: list[str]) -> str | None:
    """Make this event the newest of its name; return the sentence of a newer one that is here already."""
    if claims is None:
        return None
    try:
        newer = claims.enter(event, tuple(entry.reserved_ip for entry in entries))
    except FailoverError as error:
        nits.append(error.message)
        return None
    return describe_newer(newer) if newer is not None else None


def encode_ignored(event: NotifyEvent, reason: str) -> bytes:
    """Return the JSON of an event that asks for nothing."""
    import msgspec

    return msgspec.json.encode(
        {"schema": 1, "event": event, "decision": DecisionKind.IGNORE, "reason": reason, "outcome": "done", "exit_code": 0}
    )
