"""`do-failover status`: VRRP's claim, the API's owner, the peers, in one view; and whether they are at odds."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from do_failover.claims import Claims
from do_failover.cli.asking import ask_status
from do_failover.cli.options import HELP, common_options, read_config
from do_failover.cli.output import print_json, warn
from do_failover.cli.wiring import make_api, read_identity
from do_failover.errors import FailoverError, NotOwnerError
from do_failover.model import VrrpState, name_droplet

if TYPE_CHECKING:
    from do_failover.config import Config, FailoverConfig

_READ_S = 5.0
_ROWS_SHOWN = 12


@click.command(context_settings=HELP, epilog="Example: do-failover status -o json")
@common_options
@click.pass_context
def status(
    context: click.Context,
    config_path: str | None,
    output: str,
    verbose: bool,  # noqa: ARG001 - a common option
) -> int:
    """Show what VRRP says, whom the API names as owner, and who is armed. Changes nothing.

    Exit 0: this Droplet owns every reserved IP (floating IP); 7: it doesn't; 1: the owner could not be read.
    """
    config, nits = read_config(context, config_path)
    for nit in nits:
        warn(nit)
    daemon = None
    try:
        daemon = ask_status(config)
    except FailoverError as error:
        warn(error.message)
    rows = asyncio.run(_read_rows(config, daemon))
    exit_code = _find_exit_code(rows)
    if output == "json":
        answer = {
            "schema": 1,
            "outcome": "done" if exit_code != 1 else "failed",
            "exit_code": exit_code,
            "daemon": daemon,
            "failovers": rows,
        }
        print_json(msgspec.json.encode(answer))
    else:
        _print(rows, daemon)
    return exit_code


async def _read_rows(config: Config, daemon: dict[str, Any] | None) -> list[dict[str, Any]]:
    me = (await read_identity(config)).droplet_id
    known = {row["reserved_ip"]: row for row in (daemon or {}).get("failovers", [])}
    return [await _read_row(config, entry, me, known.get(entry.reserved_ip)) for entry in config.failover]


async def _read_row(config: Config, entry: FailoverConfig, me: int | None, known: dict[str, Any] | None) -> dict[str, Any]:
    """Read one owner at the API, now: what the daemon read last may be half a minute old."""
    claim = known["claim"] if known is not None else _read_claim(config, entry)
    row: dict[str, Any] = {
        "reserved_ip": entry.reserved_ip,
        "instance": entry.vrrp_name,
        "claim": claim,
        "droplet_id": me,
        "owner": None,
        "is_owner": None,
        "error": None,
        "at_odds": None,
        "why": known["why"] if known is not None else None,
    }
    api = make_api(config)
    try:
        seen = await api.read_reserved_ip(entry.reserved_ip, _READ_S)
    except FailoverError as error:
        row["error"] = error.message
        return row
    finally:
        api.close()
    if not seen.is_owner_visible or me is None:
        row["error"] = "the API hides the owner (droplet:read is missing), or this Droplet is unknown"
        return row
    row |= {"owner": seen.droplet_id, "is_owner": seen.droplet_id == me, "at_odds": _find_odds(claim, seen.droplet_id, me)}
    return row


def _read_claim(config: Config, entry: FailoverConfig) -> VrrpState | None:
    run_dir = Path(config.paths.run_dir)
    if not os.access(run_dir, os.X_OK):  # looking makes nothing: the directory belongs to the daemon's user
        return None
    try:
        return Claims(run_dir).read_claim(entry.vrrp_type, entry.vrrp_name or "")
    except FailoverError:
        return None


def _find_odds(claim: str | None, owner: int | None, me: int) -> str | None:
    """Say in one sentence what does not fit; None where all fits."""
    if claim == VrrpState.MASTER and owner != me:
        return f"VRRP says MASTER here, and the API names {name_droplet(owner)} as owner: do-failover assign"
    if claim not in {None, VrrpState.MASTER} and owner == me:
        return f"VRRP says {claim} here, and the API still names this Droplet as owner: look at the other load balancer"
    return None


def _find_exit_code(rows: list[dict[str, Any]]) -> int:
    if any(row["error"] is not None for row in rows):
        return 1
    return 0 if all(row["is_owner"] for row in rows) else NotOwnerError.exit_code


def _print(rows: list[dict[str, Any]], daemon: dict[str, Any] | None) -> None:
    for row in rows:
        is_bad = row["error"] is not None or row["at_odds"] is not None
        whose = "this Droplet" if row["is_owner"] else name_droplet(row["owner"])
        colour = "red" if is_bad else "green" if row["is_owner"] else None
        shown = whose if row["error"] is None else "unknown"
        head = f"{row['reserved_ip']}  owner: {shown}  VRRP {row['instance']}: {row['claim'] or 'unknown'}"
        click.secho(head, bold=True, fg=colour)
        for word in ("error", "at_odds", "why"):
            if row[word] is not None:
                click.echo(f"  {row[word]}")
    if daemon is None:
        click.echo("  no daemon runs here: notify scripts act by themselves, and no peer is armed")
        return
    peers = daemon["peers"]
    armed = sum(bool(peer["armed"]) for peer in peers)
    click.echo(f"  daemon {daemon['pid']} since {daemon['since']}; keepalived {daemon['keepalived'] or 'not seen'}")
    wide = sum(bool(peer["armed"]) and peer.get("restricted") is False for peer in peers)
    more = f"; {wide} by a key that opens a shell (do-failover peers authorize)" if wide else ""
    click.echo(f"  peers: {armed} of {len(peers)} are armed{more}")
    late = [peer for peer in peers if not peer["armed"]]
    for peer in late[:_ROWS_SHOWN]:
        click.echo(f"    {peer['host']}: {peer['error'] or 'not armed yet'}")
    if len(late) > _ROWS_SHOWN:
        click.echo(f"    and {len(late) - _ROWS_SHOWN} more: do-failover peers")
