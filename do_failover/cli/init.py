"""`do-failover init`: the first configuration, and with --systemd all that the daemon needs outside this package.

Guarantees: a file that is there with other content is kept, unless --force, which leaves the old one beside
it (NAME.old); files appear whole or not at all, with the modes that it prints, whatever the umask. It asks
nobody, starts nothing, and never writes a token: it says where that goes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import sys
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import click
import msgspec

from do_failover.cli.options import HELP, common_options, find_config_path
from do_failover.cli.output import print_json, warn
from do_failover.config import DEFAULT_PATH
from do_failover.errors import PermanentError, RefusedError
from do_failover.foreign import parse_unicast
from do_failover.whole_file import write_whole

SHIM = Path("/usr/lib/do-failover/do-failover-notify")
_UNIT = Path("/etc/systemd/system/do-failover.service")
_SYSUSERS = Path("/etc/sysusers.d/do-failover.conf")
_TMPFILES = Path("/etc/tmpfiles.d/do-failover.conf")
_PLAIN_PATH = re.compile(r"/[\w./+@-]+", re.ASCII)  # needs no quotes in a unit, in TOML or in sh
_INTERFACE = re.compile(r"[^\s/\"\\]{1,15}")


@dataclass(frozen=True, slots=True)
class _File:
    """What is to stand at `path`, and what for."""

    path: Path
    mode: int
    purpose: str
    text: str


class _Row(msgspec.Struct, frozen=True):
    """What became of one file: written, replaced (by --force), unchanged, or kept (it differs)."""

    path: str
    mode: str
    state: str
    purpose: str


@click.command(context_settings=HELP, epilog="Example: do-failover init --systemd --reserved-ip 203.0.113.47 --instance VI_1")
@click.option(
    "--systemd", "has_systemd", envvar="DO_FAILOVER_SYSTEMD", is_flag=True, help="Also the daemon's unit, user, FIFO and notify script."
)
@click.option("--reserved-ip", envvar="DO_FAILOVER_RESERVED_IP", metavar="IP", help="The reserved IP (floating IP) that is to move.")
@click.option(
    "--instance", envvar="DO_FAILOVER_INSTANCE", metavar="NAME", help="keepalived's vrrp_instance that decides over it.  [default: VI_1]"
)
@click.option("--interface", envvar="DO_FAILOVER_INTERFACE", metavar="NAME", help="This Droplet's public interface.  [default: eth0]")
@click.option(
    "--directory",
    envvar="DO_FAILOVER_DIRECTORY",
    default="/",
    show_default=True,
    metavar="DIR",
    help="Write below this directory: an image, a package.",
)
@click.option("--force", envvar="DO_FAILOVER_FORCE", is_flag=True, help="Replace files that differ; the old ones stay as NAME.old.")
@click.option("-n", "--dry-run", "is_dry", is_flag=True, envvar="DO_FAILOVER_DRY_RUN", help="Say what would be written, and write nothing.")
@common_options
@click.pass_context
def init(
    context: click.Context,
    has_systemd: bool,
    reserved_ip: str | None,
    instance: str | None,
    interface: str | None,
    directory: str,
    force: bool,
    is_dry: bool,
    config_path: str | None,
    output: str,
    verbose: bool,  # noqa: ARG001 - a common option
) -> int:
    """Write the first configuration, and with --systemd what the daemon needs; then say what comes next.

    A file that is there with other content is kept, unless --force. A token is never written: it says where one goes.
    """
    path = _check_path(find_config_path(context, config_path).absolute(), "configuration")
    values = _check_values(reserved_ip, instance, interface)
    files = _plan_configuration(path, values)
    if has_systemd:
        files += _plan_systemd(path, _check_path(_find_program(), "do-failover program"))
    rows = [_write(file, Path(directory), is_forced=force, is_dry=is_dry) for file in files]
    is_unused = bool(values) and rows[0].state == "kept"
    steps = _list_steps(path, has_systemd=has_systemd, is_filled="reserved_ip" in values)
    _print(rows, steps, output, is_dry=is_dry, exit_code=1 if is_unused else 0)
    if is_unused:
        warn(f"{path} is there already and was kept: {', '.join(values)} did not get into it; edit it, or say --force")
    return 1 if is_unused else 0


def _check_values(reserved_ip: str | None, instance: str | None, interface: str | None) -> dict[str, str]:
    """Return the given values by their keys. Raises UsageError for what the configuration would refuse."""
    if reserved_ip is not None and parse_unicast(reserved_ip) is None:
        msg = f"--reserved-ip: {reserved_ip!r} is not a unicast IPv4 or IPv6 address"
        raise click.UsageError(msg)
    if instance is not None and not (instance and instance.isprintable()):
        msg = f"--instance: {instance!r} is no name that keepalived could have written"
        raise click.UsageError(msg)
    if interface is not None and not (interface.isprintable() and _INTERFACE.fullmatch(interface)):
        msg = f"--interface: {interface!r} is no name of a network interface"
        raise click.UsageError(msg)
    given = {"reserved_ip": reserved_ip, "instance": instance, "interface": interface}
    return {key: value for key, value in given.items() if value is not None}


def _check_path(path: Path, what: str) -> Path:
    if not _PLAIN_PATH.fullmatch(str(path)):
        msg = f"the path of the {what}, {str(path)!r}, holds characters that units and scripts would have to quote; choose a plain one"
        raise click.UsageError(msg)
    return path


def _find_program() -> Path:
    """Return the full path of the do-failover that runs here: by its name in PATH where that is the same, else its own."""
    named = shutil.which("do-failover")
    beside = Path(sys.executable).with_name("do-failover")
    own = Path(sys.argv[0]).absolute()
    mine = own if own.name == "do-failover" and own.exists() else beside
    if not mine.exists():
        if named is None:
            msg = "no do-failover program is installed (this is python -m): the unit could start nothing; install it by pip first"
            raise PermanentError(msg, kind="not_installed")
        return Path(named).absolute()
    if named is not None and Path(named).samefile(mine):
        return Path(named).absolute()
    return mine


def _read_shared(name: str) -> str:
    return resources.files("do_failover").joinpath("share", name).read_text(encoding="utf-8")


def _substitute(text: str, pattern: str, replacement: str) -> str:
    """Replace the one line that matches. A shipped file that lost it is our mistake, and is said."""
    text, count = re.subn(rf"^{pattern}$", lambda _: replacement, text, flags=re.MULTILINE)
    if count != 1:
        msg = f"a shipped file has {count} lines like `{pattern}`, and 1 is needed: this installation is broken; install it again"
        raise PermanentError(msg, kind="broken_installation")
    return text


def _plan_configuration(path: Path, values: dict[str, str]) -> list[_File]:
    text = _read_shared("config.toml")
    for key, value in values.items():
        text = _substitute(text, f'{key} = ".*"', f"{key} = {json.dumps(value, ensure_ascii=False)}")
    text = text.replace(f"{DEFAULT_PATH.parent}/", f"{path.parent}/")
    if path.parent != DEFAULT_PATH.parent:
        text = text.replace("# token_file", "token_file")  # its default is elsewhere
    return [
        _File(path, 0o644, "the configuration", text),
        _File(path.parent / "peers", 0o644, "the fan-out list: who is refreshed", _read_shared("peers")),
        _File(path.parent / "known_hosts", 0o644, "the peers' host keys", _read_shared("known_hosts")),
    ]


def _plan_systemd(path: Path, program: Path) -> list[_File]:
    unit = _substitute(_read_shared("do-failover.service"), "ExecStart=.*", f"ExecStart={program} daemon -c {path}")
    shim = _substitute(_read_shared("do-failover-notify"), "program=do-failover .*", f"program={program}")
    shim = _substitute(shim, "config= .*", f"config={path if path != DEFAULT_PATH else ''}")
    for name in (program, path):
        if str(name).startswith(("/home/", "/root/")):
            warn(f"{name} is in a home directory, which the unit can't see (ProtectHome=yes): keep it elsewhere, /opt or /etc")
    return [
        _File(_UNIT, 0o644, "the daemon's unit", unit),
        _File(_SYSUSERS, 0o644, "its user, do-failover", _read_shared("do-failover.sysusers.conf")),
        _File(_TMPFILES, 0o644, "its directory in /run, and the FIFO", _read_shared("do-failover.tmpfiles.conf")),
        _File(SHIM, 0o755, "keepalived's notify script: the daemon's FIFO, or the one-shot", shim),
    ]


def _write(file: _File, directory: Path, *, is_forced: bool, is_dry: bool) -> _Row:
    """Write one file below `directory`. Raises RefusedError or PermanentError with what was not possible."""
    path = directory / file.path.relative_to("/")
    data = file.text.encode()
    try:
        is_there = os.path.lexists(path)
        is_same = is_there and path.is_file() and path.read_bytes() == data
        state = "unchanged" if is_same else "written" if not is_there else "replaced" if is_forced else "kept"
        if not is_dry and state in {"written", "replaced"}:
            _make_directories(path.parent)
            if state == "replaced":
                write_whole(path.with_name(f"{path.name}.old"), path.read_bytes(), stat.S_IMODE(path.stat().st_mode))
            write_whole(path, data, file.mode)
    except OSError as error:
        msg = f"{path}: {error.strerror}; it and what follows it was not written; run it as root, or name another place (--directory)"
        if isinstance(error, PermissionError):
            raise RefusedError(msg) from None
        raise PermanentError(msg, kind="not_written") from None
    return _Row(str(file.path), f"{file.mode:04o}", state, file.purpose)


def _make_directories(directory: Path) -> None:
    """Make what is missing, 0755 whatever the umask: the daemon's user passes through, and nobody else writes."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir()
        path.chmod(0o755)


def _list_steps(path: Path, *, has_systemd: bool, is_filled: bool) -> list[str]:
    """Return what a person does next, in order: sentences, each with its command."""
    place = path.parent
    token = f"install -m {'0640 -g do-failover' if has_systemd else '0600'} /dev/stdin {place}/token"
    steps = [] if is_filled else [f"Write your reserved IP and keepalived's instance into {path}."]
    if has_systemd:
        steps.append("Make the user, and the FIFO: systemd-sysusers do-failover.conf && systemd-tmpfiles --create do-failover.conf")
    steps += [
        f"The token goes into {place}/token, and nowhere else; paste it, then Ctrl-D: {token}",
        f"List the peers in {place}/peers, and their host keys in {place}/known_hosts.",
        f"Check it all by daylight: do-failover config check{'' if path == DEFAULT_PATH else f' -c {path}'}",
    ]
    if not has_systemd:
        return [*steps, 'In keepalived.conf, inside vrrp_instance: notify "/usr/bin/do-failover notify"']
    return [
        *steps,
        "Start the daemon, now and at boot: systemctl daemon-reload && systemctl enable --now do-failover",
        (
            "In keepalived.conf, inside global_defs (the FIFO stays root's, 0660; newer keepalived refuses another owner): "
            "vrrp_notify_fifo /run/do-failover/vrrp.fifo"
        ),
        f'In keepalived.conf, inside vrrp_instance, for when no daemon lives: notify "{SHIM}"',
        (
            "Scripts that don't run as root need the group as their own (keepalived drops all others), inside global_defs: "
            "script_user keepalived_script do-failover"
        ),
        "Then: systemctl reload keepalived",
    ]


def _print(rows: list[_Row], steps: list[str], output: str, *, is_dry: bool, exit_code: int) -> None:
    if output == "json":
        outcome = "failed" if exit_code else "done"
        answer = {"schema": 1, "outcome": outcome, "exit_code": exit_code, "is_dry_run": is_dry, "files": rows, "next": steps}
        if exit_code:
            answer["error"] = {"kind": "kept", "message": f"{rows[0].path} was kept, so not all options had an effect", "request_id": None}
        print_json(msgspec.json.encode(answer))
        return
    for row in rows:
        click.echo(f"{'would be ' if is_dry else ''}{row.state:9}  {row.mode}  {row.path}  ({row.purpose})")
    if any(row.state == "kept" for row in rows):
        click.echo("kept: it was there and differs; --force replaces it, and leaves the old one beside it")
    click.echo("\nNext:")
    for number, step in enumerate(steps, start=1):
        click.echo(f"{number:2}. {step}")
