"""One node: namespaces held by a tiny init, entered with nsenter, ended by one SIGKILL.

The kernel cleans up: when the init dies, everything in its pid namespace dies with it, and so do
its mounts and its end of every cable. When the lab process dies, the init does (`--kill-child`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from pathlib import Path
from typing import IO, TYPE_CHECKING

from do_failover.lab import wiring
from do_failover.lab.commands import run
from do_failover.lab.errors import LabError
from do_failover.lab.poll import until

if TYPE_CHECKING:
    from do_failover.lab.plan import Host, Plan

READY_LIMIT_S = 30.0


class Node:
    """A node's processes and files. `files` is what the node itself sees as /run."""

    def __init__(self, host: Host, files: Path) -> None:
        """Name the node; `start` makes it."""
        self.host = host
        self.files = files
        self.pid = 0
        self._holder: subprocess.Popen[bytes] | None = None
        self._net_fd = -1

    @property
    def is_alive(self) -> bool:
        """Whether the node's init runs."""
        return self._holder is not None and self._holder.poll() is None

    @property
    def net_fd(self) -> int:
        """A descriptor of the node's network namespace, open as long as the lab."""
        return self._net_fd

    async def start(self) -> None:
        """Make the namespaces; on return the node has its /run and its host name, and no network yet."""
        for name in ("lab", "log"):
            (self.files / name).mkdir(parents=True)
        unshare = "unshare --fork --pid --kill-child=KILL --mount --net --uts --ipc --mount-proc --"
        argv = [*unshare.split(), "sh", "-c", wiring.init_script(), self.host.name, str(self.files)]
        self._holder = holder = subprocess.Popen(  # noqa: ASYNC220  asyncio's would cost a thread a node
            argv, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        up = self.files / "lab/up"
        await until(lambda: up.exists() or holder.poll() is not None, f"{self.host.name} did not come up", limit_s=READY_LIMIT_S)
        if not up.exists():
            message = f"{self.host.name} did not come up: unshare ended with {holder.returncode}"
            raise LabError(message)
        (self.pid,) = _children(holder.pid)
        self._net_fd = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    async def connect(self, plan: Plan) -> None:
        """Configure addresses, routes and sysctls; the cables are laid already."""
        await self.run("sh", "-eu", stdin=wiring.node_script(self.host, plan))

    def enter(self, *argv: str) -> list[str]:
        """Write the command that runs `argv` inside the node."""
        if not self.is_alive:
            message = f"{self.host.name} is not running"
            raise LabError(message)
        return ["nsenter", "-t", str(self.pid), "-a", "-w", "--", *argv]

    async def run(self, *argv: str, stdin: str = "") -> str:
        """Run a program inside to its end; LabError when it fails."""
        return await run(*self.enter(*argv), stdin=stdin)

    def kill(self) -> None:
        """SIGKILL the init: the whole node is gone at once, as when a machine loses power."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        # An open descriptor would keep the network namespace, and its kernel would go on answering ARP.
        os.close(self._net_fd)
        self._net_fd = -1


class Daemon:
    """A long-running program inside a node. Its output goes to `log`, or to a pipe for someone who reads along."""

    def __init__(self, node: Node, *argv: str, log: Path | None) -> None:
        """Start it."""
        self._name = " ".join(argv)
        with contextlib.ExitStack() as stack:
            out: int | IO[bytes] = subprocess.PIPE if log is None else stack.enter_context(log.open("ab"))
            self._entry = subprocess.Popen(
                node.enter(*argv),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.output = self._entry.stdout

    @property
    def is_alive(self) -> bool:
        """Whether the program (or the nsenter in front of it) runs."""
        return self._entry.poll() is None

    @property
    def returncode(self) -> int | None:
        """How it ended; None while it runs."""
        return self._entry.poll()

    def pids(self) -> list[int]:
        """Return the program and its direct children, in this process's numbering, the program first."""
        heads = _children(self._entry.pid)
        return [*heads, *(pid for head in heads for pid in _children(head))]

    def kill(self) -> None:
        """SIGKILL the program and its children, children first: a child that outlives its parent says goodbye by SIGTERM.

        No SIGSTOP before it: nsenter stops with its child and then never reports its end.
        """
        for pid in reversed(self.pids()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    async def stop(self, limit_s: float = 10.0) -> None:
        """SIGTERM the program and wait for its end."""
        for pid in _children(self._entry.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        await self.wait(limit_s)

    async def wait(self, limit_s: float = 10.0) -> None:
        """Wait for its end; LabError when it outlives the limit."""
        await until(lambda: not self.is_alive, f"`{self._name}` did not end", limit_s=limit_s)


async def start_nodes(hosts: tuple[Host, ...], plan: Plan, root: Path, *, at_once: int = 8) -> dict[str, Node]:
    """Make and connect all nodes: namespaces, then all cables in one batch, then each node's own part."""
    nodes = {host.name: Node(host, root / host.name) for host in hosts}
    gate = asyncio.Semaphore(at_once)

    async def start(node: Node) -> None:
        async with gate:
            await node.start()

    async def connect(node: Node) -> None:
        async with gate:
            await node.connect(plan)

    async with asyncio.TaskGroup() as tasks:
        for node in nodes.values():
            tasks.create_task(start(node))
    await run("ip", "-batch", "-", stdin="".join(wiring.cable_batch(node.host, node.pid) for node in nodes.values()))
    async with asyncio.TaskGroup() as tasks:
        for node in nodes.values():
            tasks.create_task(connect(node))
    return nodes


def _children(pid: int) -> list[int]:
    """Return the direct children of a process's main thread; nothing when it is gone."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
    except FileNotFoundError:
        return []
