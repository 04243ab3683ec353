"""The ways to make all peers ping the new owner, each one ready and waiting for its go.

All of them run on a load balancer of the lab, over the same network, to the same sshd's. What people run today makes each peer
ping the owner's public address and then the reserved IP, once each. Ours pings three times at most, marks its pings, and reads
each peer's routes and neighbour entry as well.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.costs import Enclosure
from bench.process import BenchError, started
from do_failover.lab.files import USER

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from bench.process import Talker
    from bench.wire import Wire
    from do_failover.lab.handle import LabHandle

ARMED, COLD, ONE_SHOT = "armed", "cold", "one-shot refresh"
UDP, PINGS = "UDP floor", "the peers' pings alone"
SERIAL, XARGS, MASTERS = "serial ssh loop", "xargs -P32 ssh", "ControlMaster, warm, xargs -P32"
PSSH, CLUSH, ANSIBLE = "parallel-ssh -p 128", "clush -f 128", "ansible raw -f 128"
OURS = (ARMED, COLD, ONE_SHOT)
TOOLS = {PSSH: "parallel-ssh", CLUSH: "clush", ANSIBLE: "ansible"}
THEIRS = (SERIAL, XARGS, MASTERS, PSSH, CLUSH, ANSIBLE)
_LIMIT_S = 240.0


@dataclass(frozen=True, slots=True)
class Cost:
    """What one run took: its end (CLOCK_REALTIME), the load balancer's CPU and peak memory, exit code, and what it complained of."""

    ended_ns: int
    cpu_s: float | None
    peak_octets: int | None
    exit_code: int = 0
    trouble: str = ""


@dataclass
class Site:
    """One load balancer of the lab, with as many of its peers as are measured now."""

    lab: LabHandle
    name: str
    public: str
    reserved_ip: str
    entry: list[str]
    wire: Wire
    pids: list[str]
    """Of the peers' nodes, in the order of the list."""
    count: int = 0
    armed: Talker | None = None
    cold: Talker | None = None
    enclosures: dict[str, Enclosure] | None = None

    @property
    def ping(self) -> str:
        """What each peer runs for people's ways."""
        return f"ping -n -q -c 1 -W 1 {self.public} >/dev/null; ping -n -q -c 1 -W 1 {self.reserved_ip} >/dev/null"

    def write_files(self, count: int) -> None:
        """Write the list of that many peers, and what the ways need beside it."""
        self.count = count
        directory = self.lab.files(self.name) / "lab"
        (directory / "bench-peers").write_text("".join(f"app{number}\n" for number in range(1, count + 1)), encoding="ascii")
        (directory / "bench-ssh").write_text(_SSH_CONFIG, encoding="ascii")
        config = (directory / "config.toml").read_text(encoding="utf-8").replace("/run/lab/peers", "/run/lab/bench-peers")
        (directory / "bench.toml").write_text(config, encoding="utf-8")

    @contextlib.asynccontextmanager
    async def ready(self, ways: list[str]) -> AsyncIterator[None]:
        """Start what has to be there before a go: drivers, armed peers, ssh's masters. All of it ends with the block."""
        async with contextlib.AsyncExitStack() as stack:
            self.enclosures = {name: stack.enter_context(Enclosure()) for name in (ARMED, COLD, MASTERS)}
            if {COLD, UDP} & set(ways):
                self.cold = await self._start_driver(stack, COLD)
            if ARMED in ways:
                self.armed = await self._start_driver(stack, ARMED)
                await ask(self.armed, "arm")
            if MASTERS in ways:
                await self._start_masters(stack)
            yield

    async def _start_driver(self, stack: contextlib.AsyncExitStack, name: str) -> Talker:
        argv = [*self.entry, sys.executable, "-m", "bench.driver", self.reserved_ip, self.public, str(self.count)]
        enclosure = self.enclosures[name] if self.enclosures else None
        driver = await stack.enter_async_context(started(argv, f"the {name} driver on {self.name}", enclosure=enclosure))
        await driver.hear()
        return driver

    async def _start_masters(self, stack: contextlib.AsyncExitStack) -> None:
        script = f"rm -f /run/lab/master-*; xargs -P 16 -I@ ssh -n -F /run/lab/bench-ssh -MNf -S {_SOCKET} @ </run/lab/bench-peers"
        enclosure = self.enclosures[MASTERS] if self.enclosures else None
        argv = [*self.entry, "sh", "-c", script]
        masters = await stack.enter_async_context(started(argv, "ssh's masters", enclosure=enclosure, is_heard=False))
        if await masters.wait():
            message = "not every ControlMaster came up"
            raise BenchError(message)

    async def run(self, way: str) -> tuple[int, Cost]:
        """Run a way once; return when it began (CLOCK_REALTIME) and what it took."""
        if way in {ARMED, COLD, UDP}:
            return await self._drive(way)
        with Enclosure() as enclosure:
            before = self._masters_cpu_s()
            async with started(self._write_argv(way), way, enclosure=enclosure) as talker:
                await talker.hear()
                base = enclosure.cpu_s()
                began = time.time_ns()
                talker.tell("go")
                code = await talker.wait(_LIMIT_S)
                ended = time.time_ns()
            masters_s = self._masters_cpu_s() - before if way == MASTERS else 0.0
            if way == PINGS:
                return began, Cost(ended, None, None, code)
            return began, Cost(ended, enclosure.cpu_s() - base + masters_s, self._peak(way, enclosure), code)

    def _write_argv(self, way: str) -> list[str]:
        """Return a shell that is on the load balancer already, and runs the way's script at its go; the pings: what waits on the peers."""
        if way == PINGS:
            program = [sys.executable, "-m", "bench.pings", self.public, self.reserved_ip, *self.pids[: self.count]]
            return ["nsenter", "-t", str(self.lab.pid), "-a", "-w", "--", *program]
        return [*self.entry, "sh", "-c", f"echo {{}}; read -r go; exec >/dev/null 2>&1 </dev/null; {self.write_script(way)}"]

    async def _drive(self, way: str) -> tuple[int, Cost]:
        name = ARMED if way == ARMED else COLD
        driver = self.armed if way == ARMED else self.cold
        if driver is None or self.enclosures is None:
            message = f"no driver for {way}"
            raise BenchError(message)
        if way == ARMED:
            await ask(driver, "look")
        enclosure = self.enclosures[name]
        base, began = enclosure.cpu_s(), time.time_ns()
        said = await ask(driver, "udp" if way == UDP else way)
        return began, Cost(said["at_ns"], enclosure.cpu_s() - base, enclosure.peak_octets(), trouble="; ".join(said.get("errors", [])))

    def _masters_cpu_s(self) -> float:
        return self.enclosures[MASTERS].cpu_s() if self.enclosures else 0.0

    def _peak(self, way: str, enclosure: Enclosure) -> int | None:
        peak = enclosure.peak_octets()
        if way != MASTERS or peak is None or self.enclosures is None:
            return peak
        return peak + (self.enclosures[MASTERS].peak_octets() or 0)

    def write_script(self, way: str) -> str:
        """Write a way as a shell script."""
        ping, ssh = shlex.quote(self.ping), "ssh -n -F /run/lab/bench-ssh"
        program = Path(sys.executable).with_name("do-failover")
        return {
            ONE_SHOT: f"exec {program} -c /run/lab/bench.toml refresh {self.reserved_ip}",
            SERIAL: f"while read -r peer; do {ssh} $peer {ping}; done </run/lab/bench-peers",
            XARGS: f"exec xargs -P 32 -I@ {ssh} @ {ping} </run/lab/bench-peers",
            MASTERS: f"exec xargs -P 32 -I@ {ssh} -S {_SOCKET} @ {ping} </run/lab/bench-peers",
            PSSH: f"exec parallel-ssh -h /run/lab/bench-peers -p 128 -t 120 -x '-F /run/lab/bench-ssh' {ping}",
            CLUSH: f"exec clush --hostfile /run/lab/bench-peers -f 128 -o '-F /run/lab/bench-ssh' {ping}",
            ANSIBLE: (
                "HOME=$(mktemp -d -p /run/lab) exec ansible all -i /run/lab/bench-peers -f 128 "
                f"--ssh-common-args '-F /run/lab/bench-ssh' -m raw -a {ping}"
            ),
        }[way]


async def ask(driver: Talker, what: str) -> dict[str, Any]:
    """Let a driver do one thing, and return what it says."""
    driver.tell(json.dumps({"do": what}))
    return await driver.hear(_LIMIT_S)


def find_missing() -> dict[str, str]:
    """Return the ways whose program is not installed here, and its name."""
    return {way: program for way, program in TOOLS.items() if shutil.which(program) is None}


_SOCKET = "/run/lab/master-%h"
_SSH_CONFIG = f"""\
Host *
  User {USER}
  IdentityFile /run/lab/identity
  IdentitiesOnly yes
  UserKnownHostsFile /run/lab/known_hosts
  StrictHostKeyChecking yes
  BatchMode yes
  LogLevel ERROR
"""
