"""A region on loopback for what needs no peers: the raw API, configurations, and do-failover's daemon beside it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.costs import Enclosure
from bench.process import BenchError, Talker, make_environment, poised, started
from bench.raw_api import IP, TOKEN
from bench.scripts import Where

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


MASTER, BACKUP = "MASTER", "BACKUP"
EVENT = ("INSTANCE", "VI_1", "MASTER", "150")
_LIMIT_S = 20.0


@dataclass
class Loopback:
    """Its addresses, its API, and the requests that came."""

    directory: Path
    api: Talker
    where: Where
    requests: list[dict[str, Any]] = field(default_factory=list)

    def program(self) -> str:
        """Return the command as it is installed."""
        found = Path(sys.executable).with_name("do-failover")
        return str(found) if found.exists() else str(shutil.which("do-failover"))

    def write(self, name: str, text: str) -> Path:
        """Write a file of this region."""
        path = self.directory / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o700)
        return path

    def configure(self, name: str) -> Path:
        """Write a configuration with a run directory of its own."""
        run = self.directory / name
        run.mkdir(exist_ok=True)
        self.write("token", TOKEN + "\n").chmod(0o600)
        self.write("peers", "")
        return self.write(
            f"{name}.toml",
            f"""
[digitalocean]
token_file = "{self.directory}/token"
api_url = "{self.where.api_url}"
metadata_url = "{self.where.metadata_url}"
ca_file = "{self.where.ca_file}"
[[failover]]
reserved_ip = "{IP}"
instance = "VI_1"
interface = "lo"
garp_repeat = 1
[peers]
file = "{self.directory}/peers"
[keepalived]
fifo = "{run}/vrrp.fifo"
pid_file = "{run}/keepalived.pid"
[paths]
run_dir = "{run}"
history_dir = "{run}/history"
""",
        )

    async def follow(self) -> None:
        """Note each request of the API as it comes."""
        while True:
            line = await self.api.hear(limit_s=float("inf"))
            self.requests.append(line)

    async def reset(self) -> None:
        """Give the IP back to Droplet 1, and forget the requests so far."""
        self.api.tell("reset")
        await until(lambda: any("reset" in line for line in self.requests), "the API did not reset")
        self.requests.clear()

    async def wait_for_post(self) -> dict[str, Any]:
        """Return the POST that was accepted."""
        try:
            await until(lambda: bool(self.posts()), "no POST came")
        except BenchError as error:
            message = f"{error}; what came: {self.requests}"
            raise BenchError(message) from None
        return self.posts()[0]

    def posts(self) -> list[dict[str, Any]]:
        """Return the POSTs that began an action."""
        return [line for line in self.requests if line.get("method") == "POST" and line["status"] == 201]  # noqa: PLR2004 - HTTP

    def check_requests(self) -> None:
        """BenchError for a request that DigitalOcean doesn't have."""
        odd = [line for line in self.requests if line.get("is_unknown")]
        if odd:
            message = f"a request that the published API does not have: {odd[0]}"
            raise BenchError(message)


async def until(is_true: Callable[[], bool], complaint: str, limit_s: float = _LIMIT_S) -> None:
    """Poll; BenchError(complaint) after the limit."""
    end = time.monotonic() + limit_s
    while not is_true():
        if time.monotonic() > end:
            raise BenchError(complaint)
        await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def open_loopback(directory: Path, action_time_s: float) -> AsyncIterator[Loopback]:
    """Start the API; it ends with the block."""
    directory.mkdir(exist_ok=True)
    async with started([sys.executable, "-m", "bench.raw_api", str(directory), str(action_time_s)], "the API") as api:
        found = await api.hear()
        where = Where(found["api_url"], found["metadata_url"], found["ca_file"], TOKEN, IP, sys.executable)
        loopback = Loopback(directory, api, where)
        following = asyncio.create_task(loopback.follow())
        try:
            yield loopback
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)


@dataclass
class Resident:
    """do-failover's daemon, and how it is told: by a line in its FIFO, or by the shim."""

    directory: Path
    enclosure: Enclosure
    shim: Path | None

    @property
    def fifo(self) -> Path:
        """Where keepalived would write."""
        return self.directory / "vrrp.fifo"

    async def say(self, state: str) -> int:
        """Tell it as keepalived does; return the moment before it, on CLOCK_MONOTONIC."""
        if self.shim is None:
            return self._write(f'INSTANCE "VI_1" {state} 150\n')
        argv = [str(self.shim), "INSTANCE", "VI_1", state, "150"]
        async with poised(argv, "the shim", enclosure=self.enclosure, environment={"DO_FAILOVER_RUN_DIR": str(self.directory)}) as shim:
            began = time.monotonic_ns()
            shim.tell("go")
            await shim.wait()
        return began

    def _write(self, line: str) -> int:
        fd = os.open(self.fifo, os.O_RDWR | os.O_NONBLOCK)
        try:
            began = time.monotonic_ns()
            os.write(fd, line.encode())
        finally:
            os.close(fd)
        return began

    def count_reports(self) -> int:
        """Return how many stories it has told."""
        return sum(1 for _ in (self.directory / "history").glob("*.json"))

    async def wait_for_report(self, number: int) -> None:
        """Wait until it has told so many."""
        await until(lambda: self.count_reports() >= number, "the daemon wrote no report")


@contextlib.asynccontextmanager
async def open_daemon(loopback: Loopback, name: str, *, is_shimmed: bool = False) -> AsyncIterator[Resident]:
    """Start a daemon with a run directory of its own; it reads when this returns."""
    config = loopback.configure(name)
    with Enclosure() as enclosure:
        resident = Resident(loopback.directory / name, enclosure, _write_shim(loopback, name) if is_shimmed else None)
        argv = [loopback.program(), "daemon", "-c", str(config)]
        async with started(argv, "the daemon", enclosure=enclosure, is_heard=False, environment={"NOTIFY_SOCKET": "/nonexistent"}):
            await until((resident.directory / "do-failover.sock").exists, "the daemon made no socket")
            yield resident


def _write_shim(loopback: Loopback, name: str) -> Path:
    """Write the notify script as it is shipped, for the daemon of this region."""
    text = resources.files("do_failover").joinpath("share/do-failover-notify").read_text(encoding="utf-8")
    text = re.sub(r"^program=do-failover .*$", f"program={loopback.program()}", text, flags=re.MULTILINE)
    text = re.sub(r"^config= .*$", f"config={loopback.directory}/{name}.toml", text, flags=re.MULTILINE)
    return loopback.write(f"notify-{name}", text)


def list_imports(config: Path) -> list[str]:
    """Return the modules that one `notify` imports, in its order: others', and ours."""
    argv = [sys.executable, "-X", "importtime", "-m", "do_failover", "-c", str(config), "notify", *EVENT]
    ended = subprocess.run(argv, capture_output=True, text=True, check=False, env=make_environment(), timeout=60)
    names = re.findall(r"^import time:\s+\d+ \|\s+\d+ \|\s+(\S+)$", ended.stderr, flags=re.MULTILINE)
    return _keep_importable([name for name in names if _is_module(name)])


def _keep_importable(names: list[str]) -> list[str]:
    """Leave out what a module only tried to import."""
    program = """import importlib, sys
for name in sys.argv[1:]:
    try: importlib.import_module(name)
    except ImportError: continue
    print(name)
"""
    argv = [sys.executable, "-c", program, *names]
    ended = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    return ended.stdout.split()


def _is_module(name: str) -> bool:
    return (
        not name.startswith(("do_failover.__main__", "bench", "_frozen", "__", "site", "_distutils_hack", "_virtualenv")) and name.isascii()
    )
