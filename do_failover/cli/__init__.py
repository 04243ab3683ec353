"""The command line: one file a group of commands, exit codes, and the only home of click and rich.

__init__   the root command, lazily loading the others; errors become exit codes
options    what all commands share: -c, -o, -n, -v
output     stdout is the result, stderr the log; colours on a terminal only
wiring     the edges, built from the configuration
story      runs a failover under signals, with live progress
notify     keepalived's hook
daemon     the resident failover; resident: its outside, built from the configuration
asking     asks the daemon over its local socket
preflight  what would fail tonight; peers: who would be refreshed; init: the first configuration
status     VRRP's claim, the API's owner, the peers, in one view
by_hand    assign, announce, refresh, verify
plan       --dry-run: every call and frame, nothing sent
peers      who is refreshed, and the discovery by Droplet tag
init       the first configuration, and what systemd needs
config     config check
lab        the rehearsal region
"""

from __future__ import annotations

import importlib
import os
import re
from typing import TYPE_CHECKING

import click

from do_failover import __version__
from do_failover.cli.output import print_failure
from do_failover.errors import ConfigError, FailoverError

if TYPE_CHECKING:
    from collections.abc import Sequence

# Help order; each command's module is imported only when that command runs.
COMMANDS = {
    "notify": ("do_failover.cli.notify", "keepalived's hook: its four arguments, unchanged."),
    "daemon": ("do_failover.cli.daemon", "Resident: reads keepalived's FIFO, supersedes, guards, keeps the peers armed."),
    "assign": ("do_failover.cli.by_hand", "The whole story by hand: move the reserved IP, heal the peers, prove it."),
    "announce": ("do_failover.cli.by_hand", "Announce this Droplet's addresses on its link, again."),
    "refresh": ("do_failover.cli.by_hand", "Make the peers ping this Droplet, and prove that they reach it."),
    "verify": ("do_failover.cli.by_hand", "Prove, peer by peer, that they reach the reserved IP here."),
    "status": ("do_failover.cli.status", "One view: VRRP's claim, the API's owner, the peers; are they at odds."),
    "preflight": ("do_failover.cli.preflight", "Everything that would fail tonight, found today."),
    "peers": ("do_failover.cli.peers", "Who would be refreshed, from where we know them, and who is skipped and why."),
    "init": ("do_failover.cli.init", "Write the first configuration, and with --systemd what the daemon needs."),
    "config": ("do_failover.cli.config", "Check the configuration: all problems at once."),
    "lab": ("do_failover.cli.lab", "The rehearsal region: a whole failover on real parts, on this machine."),
}
EXIT_INTERRUPTED = 130


class _LazyGroup(click.Group):
    """Knows its commands' names and summaries, and imports a command only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        found = getattr(importlib.import_module(COMMANDS[cmd_name][0]), cmd_name)
        return found if isinstance(found, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Example: do-failover assign 203.0.113.47 --dry-run",
)
@click.option("-c", "--config", "config_path", metavar="FILE", help="Configuration (default: /etc/do-failover/config.toml).")
@click.version_option(__version__, prog_name="do-failover", message="%(prog)s %(version)s")
@click.pass_context
def root(context: click.Context, config_path: str | None) -> None:
    """Move a DigitalOcean reserved IP (floating IP) with keepalived, make every peer notice, and prove it."""
    context.obj = config_path


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; every expected error becomes one clear message."""
    wants_json = _wants_json(arguments)
    try:
        code = root.main(list(arguments), prog_name="do-failover", standalone_mode=False)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except (click.Abort, KeyboardInterrupt):
        print_failure("interrupted", "interrupted", EXIT_INTERRUPTED, wants_json=wants_json)
        return EXIT_INTERRUPTED
    except click.ClickException as error:
        hint = f" (see {error.ctx.command_path} --help)" if isinstance(error, click.UsageError) and error.ctx else ""
        print_failure("usage", error.format_message() + hint, error.exit_code, wants_json=wants_json)
        return error.exit_code
    except ConfigError as error:
        print_failure(error.kind, "\n".join(error.problems), error.exit_code, wants_json=wants_json)
        return error.exit_code
    except FailoverError as error:
        print_failure(error.kind, error.message, error.exit_code, error.request_id, wants_json=wants_json)
        return error.exit_code
    return code if isinstance(code, int) else 0


def _wants_json(arguments: Sequence[str]) -> bool:
    """Tell whether JSON was asked for, also where the arguments can't be parsed."""
    found = re.findall(r"(?:^| )(?:-[a-zA-Z]*o[ =]?|--output[ =])(json|text)(?= |$)", " ".join(arguments))
    return (found[-1] if found else os.environ.get("DO_FAILOVER_OUTPUT")) == "json"
