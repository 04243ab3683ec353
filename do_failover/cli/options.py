"""What all commands share: `-c`, `-o`, `-v`, and their DO_FAILOVER_* variables."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from do_failover.config import DEFAULT_PATH, Config, find_file_nits, load_config

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., Any]")

HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def common_options(function: F) -> F:
    """Add the options that make sense everywhere."""
    for option in (
        click.option("-v", "--verbose", is_flag=True, envvar="DO_FAILOVER_VERBOSE", help="Say more on stderr."),
        click.option(
            "-o",
            "--output",
            type=click.Choice(["text", "json"]),
            default="text",
            show_default=True,
            envvar="DO_FAILOVER_OUTPUT",
            help="What stdout holds.",
        ),
        click.option("-c", "--config", "config_path", metavar="FILE", help="Configuration (default: /etc/do-failover/config.toml)."),
    ):
        function = option(function)
    return function


def dry_run_option(function: F) -> F:
    """Add `-n`."""
    return click.option(
        "-n",
        "--dry-run",
        is_flag=True,
        envvar="DO_FAILOVER_DRY_RUN",
        help="Show every call and frame, and send none (only this Droplet's metadata service is asked).",
    )(function)


def find_config_path(context: click.Context, own: str | None) -> Path:
    """Return the command's own -c, the root's, the variable's, or the default."""
    return Path(own or context.obj or os.environ.get("DO_FAILOVER_CONFIG") or DEFAULT_PATH)


def read_config(context: click.Context, own: str | None) -> tuple[Config, list[str]]:
    """Return the configuration and its nits. Raises ConfigError."""
    config = load_config(find_config_path(context, own))
    return config, [*config.nits, *find_file_nits(config)]
