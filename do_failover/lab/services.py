"""The real programs of a lab: keepalived, HAProxy and do-failover's daemon on the load balancers, sshd on the peers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from do_failover.lab import daemon as resident
from do_failover.lab import keepalived
from do_failover.lab.errors import LabError
from do_failover.lab.node import Daemon, Node
from do_failover.lab.poll import until

if TYPE_CHECKING:
    from pathlib import Path

    from do_failover.lab.plan import Plan

OnState = Callable[[str, str], None]
"""Called with the load balancer's name and the VRRP state that it entered."""

_COMMANDS = {
    "haproxy": ["haproxy", "-db", "-f", "/run/lab/haproxy.cfg"],
    "keepalived": ["keepalived", "--vrrp", "-n", "-D", "-l", "-f", "/run/lab/keepalived.conf"],
    "daemon": resident.COMMAND,
    "sshd": ["/usr/sbin/sshd", "-D", "-e", "-f", "/run/lab/sshd_config"],
}

_STOP_LIMIT_S = 20.0
"""do-failover's daemon follows what it sent to the end: TimeoutStopSec of its unit."""


class Services:
    """Starts, stops and kills the daemons of all nodes, and hears what keepalived says."""

    def __init__(self, plan: Plan, nodes: dict[str, Node], on_state: OnState) -> None:
        """Nothing runs yet."""
        self._plan = plan
        self._nodes = nodes
        self._on_state = on_state
        self._daemons: dict[tuple[str, str], Daemon] = {}
        self.vrrp_state: dict[str, str] = {}

    async def start_peers(self, limit_s: float) -> None:
        """Start sshd on all peers; on return all of them listen. LabError after the limit."""
        for peer in self._plan.peers:
            self.start(peer.name, "sshd")
            await asyncio.sleep(0)
        for peer in self._plan.peers:
            log = self._nodes[peer.name].files / "log/sshd"
            await until(partial(_listens, log), f"sshd on {peer.name} does not listen", limit_s=limit_s)

    def start_balancers(self) -> None:
        """Start HAProxy on both load balancers, and keepalived on lb1: so lb1 becomes MASTER first."""
        for lb in self._plan.balancers:
            self.start(lb.name, "haproxy")
        self.start(self._plan.balancers[0].name, "keepalived")

    def start(self, node_name: str, name: str) -> None:
        """Start one daemon; LabError when it runs already."""
        if self.is_running(node_name, name):
            message = f"{name} runs on {node_name} already"
            raise LabError(message)
        node = self._nodes[node_name]
        is_heard = name == "keepalived"
        daemon = Daemon(node, *_COMMANDS[name], log=None if is_heard else node.files / "log" / name)
        self._daemons[node_name, name] = daemon
        if is_heard:
            self._listen(node, daemon)

    def is_running(self, node_name: str, name: str) -> bool:
        """Whether that daemon runs."""
        daemon = self._daemons.get((node_name, name))
        return daemon is not None and daemon.is_alive

    async def stop(self, node_name: str, name: str) -> None:
        """SIGTERM one daemon and wait for its end."""
        await self._daemon(node_name, name).stop(_STOP_LIMIT_S)

    async def kill(self, node_name: str, name: str) -> None:
        """SIGKILL one daemon with its children and wait for their end."""
        daemon = self._daemon(node_name, name)
        daemon.kill()
        await daemon.wait()

    async def restart(self, node_name: str, name: str) -> None:
        """SIGTERM one daemon, wait for its end, start it again: `systemctl restart`."""
        await self.stop(node_name, name)
        self.start(node_name, name)

    def dead(self) -> list[str]:
        """Daemons that ended, each with how: for the sentence when a set-up does not get anywhere."""
        return [
            f"{name} on {node_name} ended with {daemon.returncode}"
            for (node_name, name), daemon in self._daemons.items()
            if not daemon.is_alive
        ]

    def _daemon(self, node_name: str, name: str) -> Daemon:
        if not self.is_running(node_name, name):
            message = f"{name} does not run on {node_name}"
            raise LabError(message)
        return self._daemons[node_name, name]

    def _listen(self, node: Node, daemon: Daemon) -> None:
        """Copy keepalived's output to its log as it comes, and tell of every state that it enters."""
        output = daemon.output
        if output is None:
            return
        os.set_blocking(output.fileno(), False)
        loop = asyncio.get_running_loop()
        log = (node.files / "log/keepalived").open("ab", buffering=0)
        rest = bytearray()

        def hear() -> None:
            data = os.read(output.fileno(), 65536)
            if not data:
                self.vrrp_state.pop(node.host.name, None)
                loop.remove_reader(output.fileno())
                output.close()
                log.close()
                return
            log.write(data)
            *lines, tail = (bytes(rest) + data).split(b"\n")
            rest[:] = tail
            for line in lines:
                self._hear_line(node.host.name, line.decode(errors="replace"))

        loop.add_reader(output.fileno(), hear)

    def _hear_line(self, name: str, line: str) -> None:
        state = keepalived.state_in(line)
        if state is not None:
            self.vrrp_state[name] = state
            self._on_state(name, state)


def _listens(log: Path) -> bool:
    """Whether an sshd has written that it listens."""
    return b"Server listening" in log.read_bytes()
