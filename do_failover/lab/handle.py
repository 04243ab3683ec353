"""A standing lab in the hands of a test, or of a person at a shell.

    async with standing_lab(LabOptions(peers=2, action_time_s=5)) as lab:
        await lab.make_master("lb2")
        await lab.wait_for(lambda state: state.owner == "lb2", "lb2 does not own the reserved IP")
        await lab.restart("lb2", "keepalived")
        print(await lab.run("app1", "ip", "neigh"))

Node names: lb1, lb2, app1.., client. Services: haproxy, keepalived and (with_daemon) daemon on load balancers, sshd on peers.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from do_failover.lab.commands import run
from do_failover.lab.daemon import ask_status
from do_failover.lab.errors import LabError
from do_failover.lab.launch import launch
from do_failover.lab.options import LabOptions, Mode
from do_failover.lab.rehearsal import ROOT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

_EVERY_S = 0.05


@dataclass(frozen=True, slots=True)
class LabState:
    """A moment of the lab. `requests` is the API's whole log; `answers` says who answers each source (None: nobody).

    `owner` is None for no Droplet and for one that is no load balancer; `owner_id` tells which. `is_locked`: an action on
    the reserved IP is in progress.
    """

    owner: str | None
    owner_id: int | None
    is_locked: bool
    reserved_ip: str
    token: str
    vrrp: dict[str, str]
    requests: list[dict[str, Any]]
    answers: dict[str, str | None]
    nodes: dict[str, int]


class LabHandle:
    """One standing lab, by the pid of its lab process. Every method raises LabError when the lab is gone."""

    def __init__(self, pid: int) -> None:
        """Nothing is opened until something is asked."""
        self.pid = pid
        self._root = Path(f"/proc/{pid}/root") / ROOT.relative_to("/")

    def files(self, node: str) -> Path:
        """Return the directory that the node sees as /run, from outside: its configuration is below lab/, its logs below log/."""
        return self._root / "nodes" / node

    async def state(self) -> LabState:
        """Everything at this moment."""
        return LabState(**await self._ask(op="state"))

    async def wait_for(self, is_true: Callable[[LabState], bool], complaint: str, *, limit_s: float = 30.0) -> LabState:
        """Poll until the state is as wanted; LabError(complaint, with the state) after `limit_s`."""
        end = time.monotonic() + limit_s
        while not is_true(state := await self.state()):
            if time.monotonic() > end:
                shown = dataclasses.replace(state, token="")
                message = f"{complaint} within {limit_s:g} s: {shown}"
                raise LabError(message)
            await asyncio.sleep(_EVERY_S)
        return state

    async def enter(self, node: str, *argv: str) -> list[str]:
        """Return the command, for this machine's root, that runs `argv` inside a node."""
        nodes = (await self.state()).nodes
        if node not in nodes:
            message = f"there is no node {node!r} in this lab, only {', '.join(nodes)}"
            raise LabError(message)
        through = ["nsenter", "-t", str(self.pid), "-a", "-w", "--"]
        return [*through, "nsenter", "-t", str(nodes[node]), "-a", "-w", "--", *argv]

    async def run(self, node: str, *argv: str, stdin: str = "") -> str:
        """Run a program in a node to its end and return its stdout; LabError when it fails."""
        return await run(*await self.enter(node, *argv), stdin=stdin)

    async def reports(self, node: str) -> list[dict[str, Any]]:
        """Return a load balancer's failover reports, oldest first."""
        reports: list[dict[str, Any]] = await self._ask(op="reports", node=node)
        return reports

    async def set_action_time(self, seconds: float) -> None:
        """How long actions that start from now on take."""
        await self._ask(op="set_action_time", seconds=seconds)

    async def set_faults(self, text: str) -> None:
        """Replace the API's faults (fault_text.py); "" is health. LabError says what can't be read."""
        await self._ask(op="set_faults", text=text)

    async def make_busy(self, node: str, type_: str = "snapshot", *, seconds: float = 1.0) -> None:
        """Begin another action on the node's Droplet: until it ends an assign to it is refused."""
        await self._ask(op="make_busy", node=node, type=type_, seconds=seconds)

    async def assign(self, node: str) -> None:
        """Move the reserved IP to a node, or to "spare", by hand, as in the control panel; the action runs on after the return."""
        await self._ask(op="assign", node=node)

    async def start(self, node: str, service: str) -> None:
        """Start a service."""
        await self._ask(op="service", do="start", node=node, name=service)

    async def stop(self, node: str, service: str) -> None:
        """SIGTERM a service and wait for its end."""
        await self._ask(op="service", do="stop", node=node, name=service)

    async def kill(self, node: str, service: str) -> None:
        """SIGKILL a service with its children, so that it sends nothing any more."""
        await self._ask(op="service", do="kill", node=node, name=service)

    async def restart(self, node: str, service: str) -> None:
        """Stop and start a service."""
        await self._ask(op="service", do="restart", node=node, name=service)

    async def daemon(self, node: str) -> dict[str, Any] | None:
        """Return what do-failover's daemon on a load balancer says of itself; None while none answers."""
        return await ask_status(self.files(node))

    async def cut(self, *ways: tuple[str, str]) -> None:
        """Cut the private network, VRRP's, between nodes: each way from the first to the second, and in no other than these."""
        await self._ask(op="cut", ways=ways)

    async def heal(self) -> None:
        """Undo every cut."""
        await self.cut()

    async def kill_node(self, node: str) -> None:
        """End a whole node at once."""
        await self._ask(op="kill_node", node=node)

    async def make_master(self, node: str) -> None:
        """Force mastership: the other load balancer's HAProxy is down until `node` is MASTER."""
        (other,) = {"lb1", "lb2"} - {node}
        await self.kill(other, "haproxy")
        await self.wait_for(lambda state: state.vrrp.get(node) == "MASTER", f"{node} did not become MASTER")
        await self.start(other, "haproxy")

    async def _ask(self, **request: object) -> Any:  # noqa: ANN401  JSON
        try:
            reader, writer = await asyncio.open_unix_connection(self._root / "control", limit=1 << 26)
        except OSError as error:
            message = f"the lab does not answer: {error}"
            raise LabError(message) from None
        try:
            writer.write(json.dumps(request).encode() + b"\n")
            answer = json.loads(await reader.readline() or b'{"error": "the lab ended"}')
        finally:
            writer.close()
        if "error" in answer:
            raise LabError(answer["error"])
        return answer["ok"]


@contextlib.asynccontextmanager
async def standing_lab(options: LabOptions) -> AsyncIterator[LabHandle]:
    """Build a lab that stands (lb1 MASTER and owner, everyone served, and armed by daemons); it ends with the block or this process."""
    async with launch(dataclasses.replace(options, mode=Mode.UP), is_tied=True) as process:
        async for event in process.events():
            if event["event"] == "ready":
                break
        yield LabHandle(process.pid)
