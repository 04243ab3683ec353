"""`assign`, `announce`, `refresh`, `verify`: the story, or one step of it, by a person. The same code as `notify`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from do_failover import do_metadata
from do_failover.cli import plan
from do_failover.cli.asking import ask_order
from do_failover.cli.claiming import open_claims
from do_failover.cli.options import HELP, common_options, dry_run_option, read_config
from do_failover.cli.output import print_json, print_text, warn
from do_failover.cli.story import Story, live_progress, tell
from do_failover.cli.wiring import is_on_link, make_api, read_peers, read_peers_by_hand
from do_failover.codec import encode_report
from do_failover.config import Config, FailoverConfig, find_failover
from do_failover.errors import FailoverError, TemporaryError
from do_failover.model import Identity, VrrpState
from do_failover.request import ALL_STEPS

if TYPE_CHECKING:
    from collections.abc import Callable

    from do_failover.claims import Claims
    from do_failover.model import FailoverReport, Stage
    from do_failover.report import OpenStage


@click.command(context_settings=HELP, epilog="Example: do-failover assign 203.0.113.47")
@click.argument("reserved_ip", required=False)
@click.option(
    "--to", "to_droplet", type=click.IntRange(min=1), metavar="DROPLET_ID", envvar="DO_FAILOVER_TO", help="Another Droplet than this one."
)
@click.option("--no-refresh", is_flag=True, envvar="DO_FAILOVER_NO_REFRESH", help="Don't touch the peers.")
@dry_run_option
@common_options
@click.pass_context
def assign(
    context: click.Context,
    reserved_ip: str | None,
    to_droplet: int | None,
    no_refresh: bool,
    dry_run: bool,
    config_path: str | None,
    output: str,
    verbose: bool,
) -> int:
    """Move the reserved IP (floating IP) to this Droplet, heal its peers, and prove it.

    One round, one report. With --to another Droplet gets it: then nothing is announced from here, and
    what its peers reach can't be proven from here either (exit 10).
    """
    config, nits = read_config(context, config_path)
    entry = find_failover(config, reserved_ip)
    if dry_run:
        return _show_plan(config, entry, to_droplet, nits, wants_refresh=not no_refresh, output=output)
    steps = ALL_STEPS - {"refresh", "verify"} if no_refresh else ALL_STEPS
    return _tell(config, entry, nits, steps, output=output, to_droplet=to_droplet, is_verbose=verbose)


def _single_step(name: str, steps: frozenset[str], text: str) -> click.Command:
    @click.command(name, context_settings=HELP, help=text, epilog=f"Example: do-failover {name} 203.0.113.47 -o json")
    @click.argument("reserved_ip", required=False)
    @common_options
    @click.pass_context
    def command(
        context: click.Context,
        reserved_ip: str | None,
        config_path: str | None,
        output: str,
        verbose: bool,
    ) -> int:
        config, nits = read_config(context, config_path)
        return _tell(config, find_failover(config, reserved_ip), nits, steps, output=output, is_verbose=verbose)

    return command


announce = _single_step(
    "announce",
    frozenset({"announce"}),
    "Announce this Droplet's public address, and the reserved IP where it is on the link, by gratuitous ARP or NA. "
    "Refuses (exit 7) unless the API names this Droplet as the owner.",
)
refresh = _single_step(
    "refresh",
    frozenset({"refresh", "verify"}),
    "Make every peer ping this Droplet and then the reserved IP, and prove that its packets arrive here. "
    "Refuses (exit 7) unless the API names this Droplet as the owner.",
)
verify = _single_step(
    "verify",
    frozenset({"verify"}),
    "Prove, peer by peer, that the reserved IP is reached here, and change nothing. "
    "Refuses (exit 7) unless the API names this Droplet as the owner.",
)


def _tell(
    config: Config,
    entry: FailoverConfig,
    nits: list[str],
    steps: frozenset[str],
    *,
    output: str,
    to_droplet: int | None = None,
    is_verbose: bool = False,
) -> int:
    claims, warning = open_claims(config)
    nits = [*nits, *_warn_of_vrrp(claims, entry, steps)]
    with live_progress() as observe:
        report = _ask_daemon(config, entry, steps, to_droplet, observe)
    if report is not None:
        for nit in nits:
            warn(nit)
        return _print(report, output)
    warnings = [*nits, *([warning] if warning is not None else [])]
    peers = read_peers_by_hand(config) if steps & {"refresh", "verify"} else read_peers(config)
    story = Story(
        config,
        (entry,),
        peers.peers,
        (*warnings, *peers.nits),
        to_droplet=to_droplet,
        steps=steps,
        is_verbose=is_verbose,
    )
    with live_progress() as observe:
        (report,) = tell(story, claims, observe)
    return _print(report, output)


def _ask_daemon(
    config: Config, entry: FailoverConfig, steps: frozenset[str], to_droplet: int | None, observe: Callable[[OpenStage | Stage], None]
) -> FailoverReport | None:
    """Let this machine's daemon do it, with its armed peers, in its own order; None where there is none, or where it can't be asked."""
    try:
        return ask_order(config, entry.reserved_ip, entry.deadline_s, to_droplet=to_droplet, steps=steps, observe=observe)
    except TemporaryError as error:
        if error.kind != "socket":
            raise
        warn(f"{error.message}; doing it without the daemon")
        return None


def _print(report: FailoverReport, output: str) -> int:
    if output == "json":
        print_json(encode_report(report))
    else:
        print_text([report])
    return report.exit_code


def _warn_of_vrrp(claims: Claims | None, entry: FailoverConfig, steps: frozenset[str]) -> list[str]:
    """Warn that VRRP and the person are at odds: the next VRRP event may move the IP again."""
    kind = entry.vrrp_type
    state = claims.read_claim(kind, entry.vrrp_name or "") if claims is not None else None
    if "assign" not in steps or state is None or state is VrrpState.MASTER:
        return []
    return [f"VRRP says that {kind} {entry.vrrp_name} is {state} on this node: the next VRRP event may move the IP again"]


def _show_plan(config: Config, entry: FailoverConfig, to_droplet: int | None, nits: list[str], *, wants_refresh: bool, output: str) -> int:
    """Print what would be sent. Asks this Droplet's metadata service, and nobody else."""
    family = 6 if ":" in entry.reserved_ip else 4
    try:
        identity = asyncio.run(do_metadata.read_identity(config.digitalocean, family=family))
    except FailoverError:
        if to_droplet is None:
            raise
        identity = Identity()
    peers = read_peers(config)
    target = to_droplet or identity.droplet_id or 0
    is_here = target == identity.droplet_id
    api = make_api(config)
    on_link = asyncio.run(is_on_link(entry.interface, entry.reserved_ip))
    sections = {
        "api": plan.plan_calls(api, entry, target, is_here=is_here),
        "frames": plan.plan_frames(entry, identity, is_on_link=on_link) if is_here else ["none: the owner is another Droplet"],
        "peers": plan.plan_peers(entry, config.peers, peers.peers, identity) if wants_refresh else ["none: --no-refresh"],
    }
    for nit in (*nits, *peers.nits):
        warn(nit)
    if output == "json":
        import msgspec

        print_json(msgspec.json.encode({"schema": 1, "dry_run": True, "reserved_ip": entry.reserved_ip, "droplet_id": target, **sections}))
        return 0
    click.secho(f"DRY RUN  {entry.reserved_ip} to Droplet {target}: nothing is sent", bold=True)
    for name, lines in sections.items():
        for number, line in enumerate(lines):
            click.echo(f"  {name if number == 0 else '':<7} {line}")
    return 0
