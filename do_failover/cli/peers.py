"""`do-failover peers`: who would be refreshed, from where we know them, who is skipped and why, are they armed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from do_failover import discovery
from do_failover.cli.asking import ask_status
from do_failover.cli.options import HELP, common_options, read_config
from do_failover.cli.output import print_json, warn
from do_failover.cli.peers_authorize import authorize
from do_failover.cli.peers_trust import trust
from do_failover.cli.wiring import ask_for_droplets, read_identity, read_peers
from do_failover.errors import FailoverError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from do_failover.config import Config
    from do_failover.fanout import FoundPeers
    from do_failover.model import Peer

_ARMED = "armed"
_NOBODY = "no daemon runs here"
_UNKNOWN = "unknown to the daemon"


@click.group(
    invoke_without_command=True,
    context_settings=HELP,
    epilog="Example: do-failover peers --refresh -o json",
)
@click.option("--refresh", is_flag=True, envvar="DO_FAILOVER_REFRESH", help="Ask the API for the Droplets of peers.tag now, and keep them.")
@common_options
@click.pass_context
def peers(
    context: click.Context,
    refresh: bool,
    config_path: str | None,
    output: str,
    verbose: bool,  # noqa: ARG001 - a common option
) -> int:
    """Show who would be refreshed, from where we know them, who is skipped and why, and who is armed.

    Without --refresh nobody is asked but this Droplet's metadata service: it is what a failover would use now.
    """
    context.obj = config_path or context.obj  # for the commands below this one
    if context.invoked_subcommand is not None:
        return 0
    config, nits = read_config(context, config_path)
    if refresh:
        nits += _refresh(config)
    found = read_peers(config, asyncio.run(read_identity(config)))
    for nit in (*nits, *found.nits):
        warn(nit)
    armed = _ask_daemon(config)
    if output == "json":
        import msgspec

        print_json(msgspec.json.encode(make_answer(found, armed, nits)))
    else:
        show_peers(found, armed)
    return 0


def _ask_daemon(config: Config) -> Mapping[str, str] | None:
    """Return each host's state as the daemon has it; None where no daemon runs, or where it can't be asked."""
    try:
        answer = ask_status(config)
    except FailoverError as error:
        warn(error.message)
        return None
    if answer is None:
        return None
    return {row["host"]: _describe(row) for row in answer["peers"]}


def _describe(row: Mapping[str, object]) -> str:
    """Say whether a peer is armed; and where its key opens a whole shell, that this is more than needed."""
    if not row["armed"]:
        return str(row["error"] or "not yet")
    return _ARMED if row.get("restricted") is not False else f"{_ARMED}, wider than needed"


def _refresh(config: Config) -> list[str]:
    """Ask the API and keep the answer. Raises FailoverError: what was kept before stays then."""
    if config.peers.tag is None:
        return ["peers.tag is not set: --refresh has nothing to ask the API for"]
    try:
        fresh = asyncio.run(ask_for_droplets(config))
        discovery.save_discovery(discovery.locate_discovery(config), fresh)
    except FailoverError:
        warn(f"the Droplets of tag {config.peers.tag} were not refreshed: a failover uses those that were known before")
        raise
    return []


def make_answer(found: FoundPeers, armed: Mapping[str, str] | None, nits: Iterable[str] = ()) -> dict[str, object]:
    """Return the JSON form. `armed` is each host's state by the daemon; null where no daemon runs."""
    rows = [
        {
            "host": peer.host,
            "user": peer.user,
            "port": peer.port,
            "source": source,
            "address": next(iter(peer.public_addresses), None),
            "droplet_id": peer.droplet_id,
            "name": peer.name,
            "armed": _find_armed(peer, armed),
        }
        for peer, source in zip(found.peers, found.sources, strict=True)
    ]
    skipped = [{"host": skip.host, "reason": skip.reason} for skip in found.skipped]
    return {"schema": 1, "outcome": "done", "exit_code": 0, "peers": rows, "skipped": skipped, "nits": [*nits, *found.nits]}


def _find_armed(peer: Peer, armed: Mapping[str, str] | None) -> str | None:
    return None if armed is None else armed.get(peer.host, _UNKNOWN)


def show_peers(found: FoundPeers, armed: Mapping[str, str] | None) -> None:
    """Print the peers as columns, then who is skipped. `armed` None: no daemon runs here."""
    states = [_find_armed(peer, armed) or "" for peer in found.peers]
    state = f"{sum(state.startswith(_ARMED) for state in states)} are armed" if armed is not None else f"none is armed: {_NOBODY}"
    if (wide := sum("wider" in state for state in states)) > 0:
        state += f", {wide} by a key that opens a shell (do-failover peers authorize)"
    click.secho(f"PEERS  {len(found.peers)} would be refreshed, {len(found.skipped)} are skipped; {state}", bold=True)
    rows = [
        (_write_login(peer), peer.name or "-", next(iter(peer.public_addresses), "-"), _find_armed(peer, armed) or "-", source)
        for peer, source in zip(found.peers, found.sources, strict=True)
    ]
    _print_columns(("PEER", "DROPLET", "PUBLIC ADDRESS", "ARMED", "KNOWN FROM"), rows)
    _print_columns(("SKIPPED", "WHY"), [(skip.host, skip.reason) for skip in found.skipped])


def _write_login(peer: Peer) -> str:
    host = f"[{peer.host}]" if ":" in peer.host else peer.host
    return f"{f'{peer.user}@' if peer.user else ''}{host}{f':{peer.port}' if peer.port != 22 else ''}"  # noqa: PLR2004 - ssh's own


def _print_columns(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print the rows under their head, each column as wide as its widest; nothing for no rows."""
    if not rows:
        return
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for number, row in enumerate((head, *rows)):
        line = "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        click.secho(f"  {line}", dim=number == 0)


peers.add_command(authorize)
peers.add_command(trust)
