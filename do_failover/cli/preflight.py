"""`do-failover preflight`: everything that would fail tonight, found today."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from do_failover import do_metadata
from do_failover.cli.asking import ask_status
from do_failover.cli.options import HELP, common_options, read_config
from do_failover.cli.output import print_json, waiting
from do_failover.cli.wiring import LazyPeers, make_api, make_ssh_settings, make_tree, read_peers
from do_failover.config import find_missing_files
from do_failover.daemon_lock import find_daemon
from do_failover.errors import ConfigError, FailoverError, PeerError
from do_failover.packets import LinkSender, read_interface
from do_failover.preflight import (
    Check,
    Result,
    check_api,
    check_directory,
    check_files,
    check_identity,
    check_keepalived,
    check_logins,
    check_neighbours,
    check_peers,
    check_probe,
    explain,
)
from do_failover.token import TokenSource

if TYPE_CHECKING:
    from do_failover.config import Config, FailoverConfig
    from do_failover.model import Identity, Peer
    from do_failover.tree.shell import TreeShell

_COLOURS = {Result.GOOD: "green", Result.WARN: "yellow", Result.BAD: "red"}
_KEEPALIVED_CONF = Path("/etc/keepalived/keepalived.conf")


@click.command(context_settings=HELP, epilog="Example: do-failover preflight")
@click.option("--no-peers", is_flag=True, envvar="DO_FAILOVER_NO_PEERS", help="Don't log in to the peers.")
@common_options
@click.pass_context
def preflight(
    context: click.Context,
    no_peers: bool,
    config_path: str | None,
    output: str,
    verbose: bool,
) -> int:
    """Find today what would fail tonight: configuration, token, rights, limits, keepalived, every peer.

    Changes nothing. Exit 0 when all would work; else the code of what would fail first.
    """
    config, nits = read_config(context, config_path)
    checks = [Check("configuration", Result.BAD, nit, exit_code=6) for nit in (*nits, *find_missing_files(config))]
    checks += _check_token(config)
    daemon, check = _ask_daemon(config)
    checks += [*_check_machine(config), check]
    found = read_peers(config)
    checks += [Check("peers", Result.BAD, nit, exit_code=6) for nit in found.nits]
    checks += _check_limits(config, len(found.peers))
    with waiting("asking the API and the peers ..."):
        checks += asyncio.run(_check_outside(config, () if no_peers else found.peers, daemon))
    exit_code = next((check.exit_code for check in checks if check.result is Result.BAD), 0)
    if output == "json":
        rows = [{"name": c.name, "result": c.result, "sentence": c.sentence, "remedy": c.remedy} for c in checks]
        outcome = "done" if exit_code == 0 else "failed"
        print_json(msgspec.json.encode({"schema": 1, "outcome": outcome, "exit_code": exit_code, "checks": rows}))
    else:
        _print(checks, is_verbose=verbose)
    return exit_code


def _check_token(config: Config) -> list[Check]:
    try:
        tokens = TokenSource(config.digitalocean.token_file, os.environ).read()
    except ConfigError as error:
        return [explain("token", error)]
    return [Check("token", Result.GOOD, "there is one" if len(tokens) == 1 else f"there are {len(tokens)}")]


def _check_machine(config: Config) -> list[Check]:
    """Look at interfaces, rights, directories and keepalived."""
    checks = []
    for interface in sorted({entry.interface for entry in config.failover}):
        try:
            read_interface(interface)
            with LinkSender(interface):
                checks.append(Check(f"interface {interface}", Result.GOOD, "frames can be sent and seen there"))
        except FailoverError as error:
            checks.append(explain(f"interface {interface}", error))
    checks.append(check_directory("run_dir", Path(config.paths.run_dir)))
    checks.append(check_directory("history_dir", Path(config.paths.history_dir)))
    path, text = _find_keepalived_conf(config)
    if text is None:
        checks.append(Check(str(path), Result.WARN, "keepalived's configuration can't be read by this user"))
    else:
        checks += check_keepalived(text, path, config.keepalived.fifo)
    return checks


def _check_limits(config: Config, peers: int) -> list[Check]:
    """Look at what the kernel and the service manager allow."""
    families = sorted({4, *(_family(entry) for entry in config.failover)})
    tables = [check_neighbours(peers, family=family) for family in families]
    return [check_files(peers, find_daemon(Path(config.paths.run_dir))), *tables]


def _family(entry: FailoverConfig) -> int:
    return ipaddress.ip_address(entry.reserved_ip).version


def _ask_daemon(config: Config) -> tuple[dict[str, Any] | None, Check]:
    """Return the daemon's view, and what is to be said of it."""
    try:
        answer = ask_status(config)
    except FailoverError as error:
        return None, Check("daemon", Result.WARN, error.message)
    if answer is None:
        sentence = "none runs: each event pays imports and logins first"
        return None, Check("daemon", Result.WARN, sentence, "do-failover init --systemd (docs/systemd.md)")
    armed = sum(bool(peer["armed"]) for peer in answer["peers"])
    if answer["keepalived"] is None:
        remedy = f"start keepalived, or correct keepalived.pid_file ({config.keepalived.pid_file})"
        return answer, Check("daemon", Result.WARN, f"process {answer['pid']} sees no keepalived: its crash would go unnoticed", remedy)
    return answer, Check("daemon", Result.GOOD, f"process {answer['pid']}; {armed} of {len(answer['peers'])} peers are armed")


def _find_keepalived_conf(config: Config) -> tuple[Path, str | None]:
    """Return the file that the running keepalived was started with, or the usual one."""
    path = _KEEPALIVED_CONF
    try:
        pid = int(Path(config.keepalived.pid_file).read_text())
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        found = re.search(r"\0(?:-f|--use-file[=\0])\0?([^\0]+)", words)
        path = Path(found[1]) if found else path
    except (OSError, ValueError):
        pass  # none runs: the usual file counts
    try:
        return path, path.read_text(errors="replace")
    except OSError:
        return path, None


async def _check_outside(config: Config, peers: tuple[Peer, ...], daemon: dict[str, Any] | None) -> list[Check]:
    """Ask the metadata service, the API and every peer."""
    me: Identity | None = None
    checks = []
    try:
        me = await do_metadata.read_identity(config.digitalocean)
    except FailoverError as error:
        checks.append(explain("metadata", error))
    else:
        checks.append(check_identity(me))
    for entry in config.failover:
        api = make_api(config)
        try:
            checks += await check_api(api, entry, me)
        finally:
            api.close()
    checks += await _check_probes(config, me, daemon)
    return [*checks, *await _check_peers(config, peers, me)]


async def _check_peers(config: Config, peers: tuple[Peer, ...], me: Identity | None) -> list[Check]:
    if not peers:
        return []
    limit_s = 2 * (config.peers.connect_timeout_s + config.peers.command_timeout_s) * (1 + len(peers) // config.peers.concurrency)
    own = {4: me.public_address, 6: me.public_address_v6} if me is not None else {}
    reserved = [(entry.reserved_ip, own.get(_family(entry))) for entry in config.failover]
    if config.peers.is_tree:
        async with make_tree(config.peers) as tree:
            check = await _check_gateways(tree)
            return [check, *(await check_peers(tree, peers, limit_s, reserved=reserved) if check.result is not Result.BAD else ())]
    from do_failover.ssh.crowd import count_logins

    logins = check_logins(await count_logins(peers, make_ssh_settings(config.peers)), config.peers.concurrency)
    async with LazyPeers(config.peers) as shell:
        return [logins, *await check_peers(shell, peers, limit_s, reserved=reserved)]


async def _check_gateways(tree: TreeShell) -> Check:
    """Look whether ClusterShell is there and can use its topology. Each peer's own check tells whether its gateway works."""
    try:
        gateways = await tree.open()
    except PeerError as error:
        return explain("gateways", error)
    if not gateways:
        return Check("gateways", Result.WARN, "the topology has none: every peer is logged in to from here", 'set peers.fanout = "ssh"')
    return Check("gateways", Result.GOOD, f"peers are reached through {len(gateways)}: {', '.join(gateways[:8])}")


async def _check_probes(config: Config, me: Identity | None, daemon: dict[str, Any] | None) -> list[Check]:
    """Look at what peers.probe needs here: IPv4 arrives at the anchor IP, IPv6 at the reserved IP itself."""
    port = config.peers.probe_port
    claims = {row["reserved_ip"]: row["claim"] for row in (daemon or {}).get("failovers", [])}
    places = {}
    for entry in config.failover:
        address = (me.anchor_address if me is not None else None) if _family(entry) == 4 else entry.reserved_ip  # noqa: PLR2004 - IPv4
        if address is not None:  # without it check_identity has said so
            places[address] = claims.get(entry.reserved_ip)
    return [await check_probe(port, address, claim) for address, claim in places.items()] if port is not None else []


def _print(checks: list[Check], *, is_verbose: bool) -> None:
    bad = sum(check.result is Result.BAD for check in checks)
    warned = sum(check.result is Result.WARN for check in checks)
    head = "READY" if bad == 0 else "NOT READY"
    click.secho(f"{head}  {len(checks)} checks, {bad} would fail, {warned} could be better", bold=True, fg="red" if bad else "green")
    width = min(28, max(len(check.name) for check in checks))
    for check in sorted(checks, key=lambda check: [Result.BAD, Result.WARN, Result.GOOD].index(check.result)):
        click.secho(f"  {check.result:<4} {check.name:<{width}} ", nl=False, fg=_COLOURS[check.result])
        click.echo(check.sentence)
        if check.remedy is not None and (check.result is not Result.GOOD or is_verbose):
            click.echo(f"       {'':<{width}} -> {check.remedy}")
