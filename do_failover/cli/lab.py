"""`do-failover lab`: the rehearsal region. The lab itself is imported only inside the commands."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

from do_failover.cli.lab_view import View, show_comparison
from do_failover.errors import MissingProgramError

if TYPE_CHECKING:
    from collections.abc import Callable

    from do_failover.lab.launch import LabProcess
    from do_failover.lab.options import LabOptions

_FAULTS = ["fabric", "on-link"]
_KILLS = ["haproxy", "keepalived", "node"]
_EXIT_OK = 0
_EXIT_FAILED = 1


def _option(name: str, **settings: Any) -> Callable[[Any], Any]:  # noqa: ANN401 - click's own signature
    """One option, also as DO_FAILOVER_LAB_NAME."""
    return click.option(f"--{name}", envvar=f"DO_FAILOVER_LAB_{name.upper().replace('-', '_')}", show_envvar=True, **settings)


def _region_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of every lab."""
    for option in (
        _option("action-time", type=click.FloatRange(min=0), default=1.5, show_default=True, help="Seconds that an API action takes."),
        _option("family", type=click.Choice(["4", "6"]), default="4", show_default=True, help="IP version of the reserved IP."),
        _option("peers", type=click.IntRange(1, 1000), default=5, show_default=True, help="How many same-region Droplets."),
    ):
        function = option(function)
    return function


class _FaultText(click.ParamType):  # type: ignore[type-arg]  # it is generic since click 8.4
    """A script of the API's faults, checked here so that a mistake is said at once. The variable's are split at `;`."""

    name = "fault"
    envvar_list_splitter: ClassVar[str] = ";"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Read it, and keep the text."""
        from do_failover.lab.fault_text import parse_faults

        try:
            parse_faults(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return value


_fault = _option("fault", type=click.Choice(_FAULTS), default="fabric", show_default=True, help="How link-layer state goes stale.")
_kill = _option("kill", type=click.Choice(_KILLS), default="haproxy", show_default=True, help="How lb1 dies.")
_without_tool = _option("without-tool", is_flag=True, help="The control: a bare script only moves the IP.")
_daemon = _option("daemon", is_flag=True, help="do-failover resident on both: do-failover daemon, unprivileged, its peers armed.")
_watch = _option(
    "watch",
    type=click.FloatRange(min=0),
    help="Seconds to watch: at most 60, and 1 for 10 peers, with the tool; 10 after the client recovered.",
)
_name = _option("name", default="lab", show_default=True, help="Name of a lab that stays.")


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Example: do-failover lab run --fault on-link --kill node",
)
def lab() -> None:
    """Rehearse a failover: real keepalived, HAProxy and sshd in namespaces, and a simulated DigitalOcean.

    Needs Linux and root. Nothing is left afterwards, whatever ends it.
    """


@lab.command("run", epilog="Exit: 0 all is well, 10 some stayed cut off, 1 anything else.\n\nExample: do-failover lab run --fault on-link")
@_region_options
@_fault
@_kill
@_without_tool
@_daemon
@_option("unarmed", type=click.IntRange(min=0), default=0, help="With --daemon: so many peers are listed only a moment before the kill.")
@_watch
@_option("keep", is_flag=True, help="Leave the lab standing afterwards, and say how to look around.")
@_name
@_option(
    "api-fault",
    type=_FaultText(),
    multiple=True,
    help="What goes wrong with the API after the kill, such as 'POST*2:503', 'GET ip:hang-body' or 'action**:404'; may be repeated.",
)
@_option("logs", type=click.Path(file_okay=False, path_type=Path), help="Copy all logs here, also of a failed run.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", envvar="DO_FAILOVER_OUTPUT", show_default=True)
def run_lab(
    peers: int,
    family: str,
    action_time: float,
    fault: str,
    kill: str,
    without_tool: bool,
    daemon: bool,
    unarmed: int,
    watch: float | None,
    keep: bool,
    name: str,
    api_fault: tuple[str, ...],
    logs: Path | None,
    output: str,
) -> int:
    """Kill lb1 and watch who reaches the reserved IP (floating IP), and since when."""
    _require_packages()
    from do_failover.lab.options import Mode

    options = _lab_options(
        peers,
        action_time,
        family=family,
        fault=fault,
        kill=kill,
        with_tool=not without_tool,
        with_daemon=daemon,
        unarmed=unarmed,
        watch_s=watch,
        mode=Mode.KEEP if keep else Mode.RUN,
        logs=_logs_path(logs),
        api_fault=";".join(api_fault),
    )
    view = View.for_terminal() if output == "text" else View.silent()
    result, code = asyncio.run(_run(options, view, name))
    if output == "json":
        click.echo(json.dumps(result))
    if keep:
        _say_how_to_look_around(name, to_stderr=output == "json")
    return code


@lab.command("up", epilog="Example: do-failover lab up --peers 3 && do-failover lab shell app1")
@_region_options
@_fault
@_without_tool
@_daemon
@_name
def up(peers: int, family: str, action_time: float, fault: str, without_tool: bool, daemon: bool, name: str) -> int:
    """Build a lab that stays: lb1 is MASTER and owner, every peer is served."""
    _require_packages()
    from do_failover.lab.options import Mode

    tool = {"with_tool": not without_tool, "with_daemon": daemon}
    options = _lab_options(peers, action_time, **tool, family=family, fault=fault, mode=Mode.UP)
    asyncio.run(_run(options, View.for_terminal(), name))
    _say_how_to_look_around(name)
    return _EXIT_OK


@lab.command(
    "shell",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    epilog="Example: do-failover lab shell app1 -- ip neigh",
)
@click.option("--name", help="Which lab, when several stand.")
@click.argument("node")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def shell(name: str | None, node: str, command: tuple[str, ...]) -> None:
    """Enter NODE (lb1, lb2, app1.., client), or run COMMAND there: do-failover lab shell lb1 -- ip addr."""
    _require_packages()
    from do_failover.lab import requirements, state_file
    from do_failover.lab.handle import LabHandle

    requirements.check_machine()
    _, pid = state_file.pid_of(name)
    argv = asyncio.run(LabHandle(pid).enter(node, *(command[command[:1] == ("--",) :] or ("bash",))))
    sys.stdout.flush()
    os.execvp(argv[0], argv)  # noqa: S606 - it becomes the shell that was asked for


@lab.command("down", epilog="Example: do-failover lab down")
@click.argument("name", required=False)
def down(name: str | None) -> int:
    """End a lab that stays, and everything in it."""
    _require_packages()
    from do_failover.lab import requirements, state_file

    requirements.check_machine()
    name, pid = state_file.pid_of(name)
    asyncio.run(state_file.end(name, pid))
    click.echo(f"lab {name} is gone")
    return _EXIT_OK


@lab.command(
    "compare",
    epilog="Exit 0: every control's peers stayed cut off while its client recovered, and every real run was well."
    "\n\nExample: do-failover lab compare --peers 20",
)
@_region_options
@_kill
@_option("watch", type=click.FloatRange(min=0), help="Seconds that each control is watched after its client recovered (10).")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", envvar="DO_FAILOVER_OUTPUT", show_default=True)
def compare(peers: int, family: str, action_time: float, kill: str, watch: float | None, output: str) -> int:
    """For each fault, the control and the real run side by side."""
    _require_packages()
    from do_failover.lab.result import is_telling

    view = View.for_terminal() if output == "text" else View.silent()
    results: list[dict[str, Any]] = []
    asked = {"family": family, "kill": kill}
    for fault in _FAULTS:
        pair = [
            _lab_options(peers, action_time, **asked, fault=fault, with_tool=with_tool, watch_s=None if with_tool else watch)
            for with_tool in (False, True)
        ]
        results += asyncio.run(_run_side_by_side(pair, view))
    telling = [is_telling(control, real) for control, real in zip(results[::2], results[1::2], strict=True)]
    if output == "json":
        click.echo(json.dumps({"schema": 1, "runs": results}))
    else:
        show_comparison(results)
        click.echo(
            "Moving the IP alone left every same-region peer cut off; do-failover healed them all."
            if all(telling)
            else "This is not what should happen: see the problems above, or run one of these alone with --logs."
        )
    return _EXIT_OK if all(telling) else _EXIT_FAILED


def _require_packages() -> None:
    """Say in one sentence what is missing before anything of the lab is imported."""
    import importlib.util

    if any(importlib.util.find_spec(name) is None for name in ("aiohttp", "trustme")):
        message = "the lab needs a few more Python packages: pip install 'do-failover[lab]'"
        raise MissingProgramError(message)


def _lab_options(peers: int, action_time: float, **more: Any) -> LabOptions:  # noqa: ANN401 - the fields of LabOptions
    from do_failover.lab.options import Family, Fault, Kill, LabOptions

    if more.get("with_daemon") and not more["with_tool"]:
        message = "--without-tool and --daemon: a control runs without the tool, so also without its daemon; leave one of them out"
        raise click.UsageError(message)
    if more.get("unarmed") and not (more["with_daemon"] and more["unarmed"] < peers):
        message = "--unarmed: some of the peers, where --daemon arms the others; add --daemon, or ask for fewer than --peers"
        raise click.UsageError(message)
    more["family"] = Family(int(more["family"]))
    more["fault"] = Fault(more["fault"])
    more["kill"] = Kill(more.get("kill", "haproxy"))
    return LabOptions(peers=peers, action_time_s=action_time, **more)


def _logs_path(logs: Path | None) -> str:
    path = logs.absolute() if logs else None
    if path and path.is_relative_to("/run"):
        message = "the lab hides /run from itself: choose another directory for the logs"
        raise click.BadParameter(message, param_hint="--logs")
    return str(path) if path else ""


async def _run(options: LabOptions, view: View, name: str) -> tuple[dict[str, Any], int]:
    """Run one lab to its end, or until it stands on its own."""
    from do_failover.lab import state_file
    from do_failover.lab.launch import launch
    from do_failover.lab.options import Mode
    from do_failover.lab.result import exit_code

    stays = options.mode is not Mode.RUN
    if stays:
        state_file.check_free(name)
    result: dict[str, Any] = {}
    async with launch(options, is_tied=not stays) as process:
        async for event in process.events():
            view.show(event)
            if event["event"] == "result":
                result = event["result"]
            if event["event"] == "ready":
                _let_stand(process, name)
                break
    return result, exit_code(result) if result else _EXIT_OK


def _let_stand(process: LabProcess, name: str) -> None:
    from do_failover.lab import state_file

    state_file.write(name, process.pid)
    process.release()


async def _run_side_by_side(pair: list[LabOptions], view: View) -> list[dict[str, Any]]:
    views = [view.labelled(f"{options.fault} {'with tool' if options.with_tool else 'control'}") for options in pair]
    runs = await asyncio.gather(*(_run(options, own, "") for options, own in zip(pair, views, strict=True)))
    return [result for result, _ in runs]


def _say_how_to_look_around(name: str, *, to_stderr: bool = False) -> None:
    which = "" if name == "lab" else f" --name {name}"
    click.echo(
        f"The lab {name!r} stands. Look around, and end it:\n"
        f"  do-failover lab shell{which} lb2                       its files: /run/lab, its logs: /run/log\n"
        f"  do-failover lab shell{which} app1 -- ping -c 1 198.18.0.12\n"
        f"  do-failover lab down {name}",
        err=to_stderr,
    )
