"""A standing lab with do-failover's daemon on both load balancers, brought to rest between stories."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from do_failover.lab.errors import LabError
from do_failover.lab.handle import LabHandle, LabState, standing_lab
from do_failover.lab.options import LabOptions

BALANCERS = ("lb1", "lb2")
DROPLET = {"lb1": 1, "lb2": 2, "spare": 2001}
PROGRAM = "/run/lab/do-failover"
ACTION_S = 0.3
CREATED = 201
Status = dict[str, Any]


@contextlib.asynccontextmanager
async def quick_lab(peers: int, settings: str) -> AsyncIterator[LabHandle]:
    """A standing lab with both daemons, on these settings of [[failover]]: stories don't wait for real life's durations."""
    async with standing_lab(LabOptions(peers=peers, action_time_s=ACTION_S, with_daemon=True)) as handle:
        for name in BALANCERS:
            await reload_with(handle, name, settings)
        yield handle


def find_master(state: LabState) -> str | None:
    """Name the one MASTER; None while there is none, or more than one."""
    masters = [name for name in BALANCERS if state.vrrp.get(name) == "MASTER"]
    return masters[0] if len(masters) == 1 else None


def other_of(name: str) -> str:
    return "lb2" if name == "lb1" else "lb1"


async def find_unrest(lab: LabHandle) -> str | None:
    """Say what is not as it should be at rest; None when the owner is the MASTER, and everybody reaches it."""
    state = await lab.state()
    master = find_master(state)
    if master is None or state.vrrp.get(other_of(master)) != "BACKUP":
        return f"VRRP: {state.vrrp}"
    if state.is_locked:
        return "an action is in progress"
    if state.owner != master:
        return f"VRRP says {master}, the API says {state.owner}"
    if away := {name for name, answer in state.answers.items() if answer != master}:
        return f"not answered by {master}: {sorted(away)}"
    for name in BALANCERS:
        status = await lab.daemon(name)
        if status is None:
            return f"{name}'s daemon does not answer"
        (keeper,) = status["failovers"]
        if keeper["claim"] != state.vrrp[name] or not keeper["is_served"] or keeper["is_acting"]:
            return f"{name}'s daemon: {keeper}"
        if late := [peer for peer in status["peers"] if not peer["armed"]]:
            return f"{name} has not armed: {late}"
    return None


async def come_to_rest(lab: LabHandle, *, limit_s: float = 30.0) -> str:
    """Wait until there is no unrest; return the MASTER's name."""
    try:
        await poll(lambda: find_unrest(lab), lambda found: found is None, "no rest", limit_s=limit_s)
    except AssertionError as error:
        logs = [await run_here(lab, name, "tail -n 12 /run/log/daemon | cut -c 1-300") for name in BALANCERS]
        raise AssertionError("\n\n".join([str(error), *logs])) from None
    master = find_master(await lab.state())
    assert master is not None
    return master


async def mend(lab: LabHandle, peers: int) -> str:
    """Undo what a story left behind, and come to rest; return the MASTER's name."""
    await lab.heal()
    await lab.set_action_time(ACTION_S)
    for name in BALANCERS:
        for service in ("daemon", "haproxy", "keepalived"):
            await start_if_down(lab, name, service)
    for number in range(1, peers + 1):
        await start_if_down(lab, f"app{number}", "sshd")
    state = await lab.state()
    if state.owner is None or find_master(state) not in {None, state.owner}:  # a failed story's, or a person's move
        with contextlib.suppress(LabError):  # an action is in progress, and comes first
            await lab.assign(find_master(state) or "lb1")
    return await come_to_rest(lab)


async def start_if_down(lab: LabHandle, node: str, service: str) -> None:
    with contextlib.suppress(LabError):  # it runs already
        await lab.start(node, service)


async def poll(read: Callable[[], Awaitable[Any]], is_true: Callable[[Any], bool], complaint: str, *, limit_s: float = 15.0) -> Any:
    """Read until it is as wanted, and return it."""
    end = time.monotonic() + limit_s
    while not is_true(found := await read()):
        assert time.monotonic() < end, f"{complaint} within {limit_s:g} s: {found}"
        await asyncio.sleep(0.03)
    return found


async def wait_for_keeper(lab: LabHandle, node: str, is_true: Callable[[Status], bool], complaint: str, *, limit_s: float = 15.0) -> Status:
    """Wait until the daemon's view of the reserved IP is as wanted."""

    async def read() -> Status:
        status = await lab.daemon(node)
        return status["failovers"][0] if status is not None else {}

    found: Status = await poll(read, lambda keeper: bool(keeper) and is_true(keeper), f"{node}: {complaint}", limit_s=limit_s)
    return found


async def acts(lab: LabHandle, node: str) -> list[dict[str, Any]]:
    """Return the node's reports, without those of events that ask for nothing."""
    return [report for report in await lab.reports(node) if report["decision"] != "ignore"]


async def posts(lab: LabHandle) -> list[str]:
    """Name who began each action so far: assigns that were refused are none."""
    return [request["node"] for request in (await lab.state()).requests if request["method"] == "POST" and request["status"] == CREATED]


async def reload_with(lab: LabHandle, node: str, keys: str) -> None:
    """Add keys to the reserved IP's table of the configuration, and let the daemon read it again."""
    config = lab.files(node) / "lab/config.toml"
    config.write_text(config.read_text().replace("deadline_s  = 30\n", f"deadline_s  = 30\n{keys}"))
    await send_reload(lab, node)


async def send_reload(lab: LabHandle, node: str) -> None:
    """SIGHUP, and wait until the daemon has said what it makes of it."""
    log = lab.files(node) / "log/daemon"
    skip = log.stat().st_size
    await run_here(lab, node, "kill -HUP $(cat /run/do-failover/daemon.lock)")

    async def read() -> str:
        return log.read_text()[skip:]

    await poll(read, lambda text: "was read again" in text or "is refused" in text, f"{node} did not read its configuration again")


async def run_here(lab: LabHandle, node: str, script: str) -> str:
    return (await lab.run(node, "sh", "-c", script)).strip()
