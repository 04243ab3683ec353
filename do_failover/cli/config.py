"""`do-failover config check`: every problem of the configuration at once, by daylight."""

from __future__ import annotations

import os

import click

from do_failover.cli.options import HELP, common_options, read_config
from do_failover.cli.output import print_json
from do_failover.cli.wiring import read_peers
from do_failover.config import find_missing_files
from do_failover.errors import ConfigError
from do_failover.packets import read_interface
from do_failover.token import TokenSource


@click.group(context_settings=HELP, epilog="Example: do-failover config check -c /etc/do-failover/config.toml")
def config() -> None:
    """Check the configuration: all problems at once."""


@config.command(context_settings=HELP, epilog="Example: do-failover config check")
@common_options
@click.pass_context
def check(
    context: click.Context,
    config_path: str | None,
    output: str,
    verbose: bool,  # noqa: ARG001 - a common option
) -> int:
    """Read everything that a failover reads. What is a warning at failover is an error here (exit 6).

    Nothing is sent, and the token is not shown.
    """
    loaded, problems = read_config(context, config_path)
    peers = read_peers(loaded)
    problems += [*peers.nits, *find_missing_files(loaded)]
    try:
        for entry in loaded.failover:
            read_interface(entry.interface)
    except ConfigError as error:
        problems += error.problems
    try:
        TokenSource(loaded.digitalocean.token_file, os.environ).read()
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(*problems)
    reserved = [entry.reserved_ip for entry in loaded.failover]
    if output == "json":
        import msgspec

        answer = {"schema": 1, "outcome": "done", "exit_code": 0, "reserved_ips": reserved, "peers": len(peers.peers)}
        print_json(msgspec.json.encode(answer))
    else:
        click.echo(f"OK  {loaded.path}: {', '.join(reserved)}; {len(peers.peers)} peers")
    return 0
