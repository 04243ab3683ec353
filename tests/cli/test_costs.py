"""Costs that creep, counted and not timed: each has a bound here, with what it was when the bound was set.

A bound that is in the way is raised by whoever can say in one sentence what is bought with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from do_failover.model import PeerOutcome
from tests import cli_process
from tests.daemon_process import BACKUP, MASTER, configure, running
from tests.loopback import serve
from tests.story import Region, tell

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

HERE = Path(__file__).parent
SHIM = resources.files("do_failover").joinpath("share/do-failover-notify")
HEAVY = {"asyncssh", "cryptography", "digitalocean", "requests", "urllib3", "tenacity", "rich", "aiohttp"}


def list_imports(trace: str) -> list[str]:
    return re.findall(r"^import time:\s+\d+ \|\s+\d+ \|\s+(\S+)$", trace, flags=re.MULTILINE)


def count_own(imported: list[str]) -> int:
    return sum(name.startswith("do_failover") for name in imported)


async def notify(directory: Path, state: str) -> list[str]:
    """Run one `notify` to its end, and return which modules it imported."""
    async with serve(directory, action_time_s=0.1) as region:
        configure(region)
        process = await cli_process.start(region, "notify", "INSTANCE", "VI_1", state, "150", PYTHONPROFILEIMPORTTIME="1", **config(region))
        ended = await cli_process.end(process)
        assert ended.code == 0, ended.err
        return list_imports(ended.err)


def config(region: Any) -> dict[str, str]:
    return {"DO_FAILOVER_CONFIG": str(region.config)}


async def test_notify_backup_imports_nothing_that_only_a_failover_needs(tmp_path: Path) -> None:
    imported = await notify(tmp_path, "BACKUP")
    assert {name.partition(".")[0] for name in imported} & HEAVY == set()
    assert count_own(imported) <= 20  # 17
    assert len(imported) <= 250  # 222; the standard library's own parts change with Python


@pytest.mark.skipif(sys.platform != "linux", reason="opens packet sockets")
@pytest.mark.root
async def test_notify_master_imports_no_ssh_without_peers_and_never_rich_or_the_lab(tmp_path: Path) -> None:
    imported = await notify(tmp_path, "MASTER")
    assert {name.partition(".")[0] for name in imported} & {"asyncssh", "cryptography", "rich", "aiohttp"} == set()
    assert not [name for name in imported if name.startswith("do_failover.lab")]
    assert count_own(imported) <= 50  # 47
    assert len(imported) <= 500  # 457


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_shim_starts_two_programs_while_a_daemon_lives(tmp_path: Path) -> None:
    started = count_programs(tmp_path, tmp_path / "daemon")
    assert started == Counter({"dd": 1, "flock": 1})


def count_programs(tmp_path: Path, run_dir: Path) -> Counter[str]:
    """Run the shim where each program that it can find writes its name down first; a real flock is held, a real FIFO is there."""
    programs, log = tmp_path / "programs", tmp_path / "log"
    programs.mkdir()
    run_dir.mkdir()
    log.touch()
    for name in ("dd", "flock", "timeout", "logger", "cat", "cut", "sed", "awk", "stat", "printf", "sleep", "do-failover"):
        real = shutil.which(name) or "/bin/true"
        (programs / name).write_text(f'#!/bin/sh\necho {name} >>{log}\nexec {real} "$@"\n')
        (programs / name).chmod(0o755)
    os.mkfifo(run_dir / "vrrp.fifo")
    reader = os.open(run_dir / "vrrp.fifo", os.O_RDWR | os.O_NONBLOCK)
    holder = subprocess.Popen(["flock", "-x", str(run_dir / "daemon.lock"), "sh", "-c", "echo held; read -r end"], stdin=-1, stdout=-1)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        (run_dir / "daemon.lock").write_text(f"{holder.pid}\n")
        environment = {"PATH": str(programs), "DO_FAILOVER_RUN_DIR": str(run_dir)}
        subprocess.run(["/bin/sh", str(SHIM), "INSTANCE", "VI_1", "MASTER", "150"], check=True, env=environment, timeout=20)
        assert os.read(reader, 4096).endswith(b'INSTANCE "VI_1" MASTER 150\n')
    finally:
        holder.communicate(b"end\n")
        os.close(reader)
    return Counter(log.read_text().split())


async def test_between_an_event_and_its_post_nothing_is_imported_resolved_connected_or_started(tmp_path: Path) -> None:
    async with serve(tmp_path, action_time_s=0.1) as region:
        configure(region)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(HERE / "hot_path_costs.py"), str(region.config)), stdout=asyncio.subprocess.PIPE, env=region.environment()
        )
        out, _ = await process.communicate()
        found = json.loads(out)
    between = Counter(found["between"])
    forbidden = ("import", "socket.getaddrinfo", "socket.connect", "subprocess.Popen", "os.posix_spawn", "os.fork", "time.sleep")
    assert {name: between[name] for name in forbidden if between[name]} == {}
    assert between["a GET before the POST"] == 0
    assert between["open"] <= 12  # 10: keepalived's pid, our memory, turn and claim, the CA, the token
    assert between["compile"] + between["exec"] == 0, "types are to be resolved before the first event"
    assert found["post_octets"] <= 420  # 355
    assert found["sends"] <= 2  # head and body


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.root
async def test_system_calls_between_an_event_and_its_post(tmp_path: Path) -> None:
    """Counted by strace: from the read of keepalived's line to the POST's first write, all threads together."""
    async with serve(tmp_path, action_time_s=0.1) as region:
        configure(region)
        async with running(region) as daemon:
            daemon.say(BACKUP)
            await daemon.wait_for_report()
            async with traced(daemon.process.pid, tmp_path / "trace"):
                daemon.say(MASTER)
                await daemon.wait_for_report(2)
        port = region.api.url.split(":")[2].split("/")[0]
    lines = (tmp_path / "trace").read_text(errors="replace").splitlines()
    heard = next(number for number, line in enumerate(lines) if " read(" in line and "MASTER 150" in line)
    post = re.compile(rf"\d+ +write\(\d+<TCP:[^>]*>127.0.0.1:{port}\]")
    sent = next(number for number, line in enumerate(lines) if number > heard and post.match(line))
    calls = Counter(match[1] for line in lines[heard + 1 : sent] if (match := re.match(r"\d+ +(\w+)\(", line)))
    waits = ("clone", "clone3", "execve", "connect", "fsync", "fdatasync", "sync", "clock_nanosleep")
    assert {name: calls[name] for name in waits if calls[name]} == {}
    assert calls["openat"] + calls["open"] <= 8  # 7
    assert calls.total() - calls["getpid"] <= 80  # 54; getpid: asyncio asks itself whether it was forked, and the kernel answers at once


@contextlib.asynccontextmanager
async def traced(pid: int, trace: Path) -> AsyncIterator[None]:
    """Let strace write down the system calls of a process and its threads."""
    argv = ("strace", "-f", "-yy", "-s", "64", "-o", str(trace), "-p", str(pid))
    process = await asyncio.create_subprocess_exec(*argv, stderr=asyncio.subprocess.PIPE)
    assert process.stderr is not None
    assert b"attached" in await process.stderr.readline()
    try:
        yield
    finally:
        process.terminate()
        await process.communicate()


async def test_a_failover_costs_few_calls_of_the_api(tmp_path: Path) -> None:
    async with serve(tmp_path, action_time_s=0.3) as region:
        configure(region)
        async with running(region) as daemon:
            daemon.say(BACKUP)
            await daemon.wait_for_report()
            before = len(region.calls())
            daemon.say(MASTER)
            report = await daemon.wait_for_report(2)
        assert sum(call.startswith("POST") for call in region.calls()) == 1
        assert report["api_calls"] <= 7  # one POST, and a read of the owner now and then
        assert len(region.calls()) - before <= report["api_calls"] + 2  # and what the guard reads afterwards


def test_a_long_action_costs_a_call_now_and_then_and_no_more() -> None:
    region = Region(action_s=11.0)
    told = tell(region)
    assert told.report.exit_code == 0
    assert region.calls <= 17  # 15


def test_a_healthy_peer_costs_two_round_trips() -> None:
    region = Region()
    told = tell(region, peers=5)
    assert [peer.outcome for peer in told.report.peers] == [PeerOutcome.HEALED] * 5
    trips = Counter(host for _, host, _ in region.commands)
    assert set(trips.values()) == {2}, "routes while the API works, and the pings"


def test_what_a_peer_is_told_stays_short() -> None:
    region = Region()
    tell(region, peers=1)
    assert max(len(command) for _, _, command in region.commands) <= 560  # 523
    assert sum(len(command) for _, _, command in region.commands) <= 1000  # 937
