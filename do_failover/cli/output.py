"""stdout is the result, stderr the log. Colours only on a terminal; JSON is exactly one object."""

from __future__ import annotations

import logging
import logging.handlers
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

if TYPE_CHECKING:
    from do_failover.report import Line

_COLOURS = {"good": "green", "warn": "yellow", "bad": "red"}
_SYSLOG = Path("/dev/log")


def print_lines(lines: list[Line]) -> None:
    """Print a report's text; the first line, the verdict, is bold."""
    for number, line in enumerate(lines):
        click.secho(line.text, fg=_COLOURS.get(line.tone), bold=number == 0)


def print_json(data: bytes) -> None:
    """Print one JSON object."""
    sys.stdout.write(data.decode() + "\n")
    sys.stdout.flush()


def print_failure(kind: str, message: str, exit_code: int, request_id: str | None = None, *, wants_json: bool) -> None:
    """Say what went wrong where there is no report: on stderr, and as the one JSON object where that was asked for."""
    for line in message.splitlines():
        click.secho(f"do-failover: {line}", err=True, fg="red")
    if wants_json:
        error = {"kind": kind, "message": message, "request_id": request_id}
        print_json(msgspec.json.encode({"schema": 1, "outcome": "failed", "exit_code": exit_code, "error": error}))


def warn(message: str) -> None:
    """Print a warning on stderr."""
    click.secho(f"do-failover: warning: {message}", err=True, fg="yellow")


def open_log(*, to_syslog: bool, is_verbose: bool) -> logging.Logger:
    """Return the log: stderr, and syslog where a daemon runs us and nobody reads stderr."""
    log = logging.getLogger("do_failover")
    log.setLevel(logging.DEBUG if is_verbose else logging.INFO)
    log.propagate = False
    log.handlers.clear()
    log.addHandler(logging.StreamHandler(sys.stderr))
    if to_syslog and _SYSLOG.exists():
        try:
            handler = logging.handlers.SysLogHandler(str(_SYSLOG), logging.handlers.SysLogHandler.LOG_DAEMON)
        except OSError:
            return log
        handler.setFormatter(logging.Formatter("do-failover[%(process)d]: %(message)s"))
        log.addHandler(handler)
    return log
