"""stdout is the result, stderr the log. Colours only on a terminal; JSON is exactly one object."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from do_failover.model import FailoverReport

_COLOURS = {"good": "green", "warn": "yellow", "bad": "red"}
_SYSLOG = Path("/dev/log")


def print_text(reports: Sequence[FailoverReport]) -> None:
    """Print reports as text; the first line of each, the verdict, is bold."""
    from do_failover.report import render_lines  # not needed for JSON

    lines = [
        click.style(line.text, fg=_COLOURS.get(line.tone), bold=number == 0)
        for report in reports
        for number, line in enumerate(render_lines(report))
    ]
    _print("\n".join(lines))


def print_json(data: bytes) -> None:
    """Print one JSON object."""
    _print(data.decode())


def _print(text: str) -> None:
    """Print the result. What was done is done, whether or not it can be printed: the exit code is about that."""
    try:
        click.echo(text)
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python would complain again at its end
        with contextlib.suppress(OSError):
            warn(f"the result could not be printed ({error.strerror}); it is in the history")


def print_failure(kind: str, message: str, exit_code: int, request_id: str | None = None, *, wants_json: bool) -> None:
    """Say what went wrong where there is no report: on stderr, and as the one JSON object where that was asked for."""
    for line in message.splitlines():
        with contextlib.suppress(OSError):
            click.secho(f"do-failover: {line}", err=True, fg="red")
    if wants_json:
        error = {"kind": kind, "message": message, "request_id": request_id}
        outcome = "superseded" if kind in {"superseded", "interrupted"} else "failed"
        print_json(msgspec.json.encode({"schema": 1, "outcome": outcome, "exit_code": exit_code, "error": error}))


def warn(message: str) -> None:
    """Print a warning on stderr."""
    click.secho(f"do-failover: warning: {message}", err=True, fg="yellow")


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show on a terminal that something is being done; elsewhere nothing."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield


def open_log(*, to_syslog: bool, is_verbose: bool) -> logging.Logger:
    """Return the log: stderr, and syslog where a daemon runs us and nobody reads stderr."""
    log = logging.getLogger("do_failover")
    log.setLevel(logging.DEBUG if is_verbose else logging.INFO)
    log.propagate = False
    log.handlers.clear()
    here = logging.StreamHandler(sys.stderr)
    here.addFilter(lambda record: not getattr(record, "is_for_syslog_only", False))  # the command prints it itself
    log.addHandler(here)
    if to_syslog and _SYSLOG.exists():
        try:
            handler = logging.handlers.SysLogHandler(str(_SYSLOG), logging.handlers.SysLogHandler.LOG_DAEMON)
        except OSError:
            return log
        handler.setFormatter(logging.Formatter("do-failover[%(process)d]: %(message)s"))
        log.addHandler(handler)
    return log
