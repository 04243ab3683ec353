"""`do-failover lab run` as a person starts it: controls, real runs, and what is left afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from do_failover.lab.handle import LabHandle
from do_failover.lab.launch import launch
from do_failover.lab.options import LabOptions
from do_failover.lab.result import exit_code

pytestmark = pytest.mark.root

PEERS = ["app1", "app2", "app3"]
COMMAND = (sys.executable, "-m", "do_failover", "lab", "run", "--peers", "3", "--action-time", "0.5")
LIMIT_S = 60


async def lab_run(*arguments: str) -> tuple[int | None, dict[str, Any]]:
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        *arguments,
        "-o",
        "json",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), 2 * LIMIT_S)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
    assert err == b""
    return process.returncode, json.loads(out)


async def test_moving_the_ip_alone_leaves_the_peers_cut_off_for_both_faults_in_labs_side_by_side() -> None:
    control = ("--without-tool", "--watch", "4")
    runs = await asyncio.gather(*(lab_run("--fault", fault, *control) for fault in ("fabric", "on-link")))
    for (code, result), fault in zip(runs, ("fabric", "on-link"), strict=True):
        assert (code, result["fault"], result["with_tool"], result["report"]) == (10, fault, False, None)
        assert result["owner"] == "lb2"
        assert result["cut_off_at_end"] == PEERS
        assert result["outage_s"]["client"] < result["watched_s"] - 3.9
        assert {result["outage_s"][peer] for peer in PEERS} == {result["watched_s"]}


async def test_do_failover_heals_the_peers_of_both_faults(tmp_path: Path) -> None:
    runs = await asyncio.gather(*(lab_run("--fault", fault, "--logs", str(tmp_path / fault)) for fault in ("fabric", "on-link")))
    for code, result in runs:
        assert (code, result["problems"], result["cut_off_at_end"]) == (0, [], [])
        report = result["report"]
        assert (report["outcome"], report["owner_after"], report["node"]) == ("done", 2, "lb2")
        assert {peer["host"]: peer["outcome"] for peer in report["peers"]} == dict.fromkeys(PEERS, "healed")
        assert max(result["outage_s"].values()) < 15
        logs = tmp_path / result["fault"]
        assert "Entering MASTER STATE" in (logs / "lb2/keepalived").read_text(encoding="utf-8")
        posts = [line for line in (logs / "api.jsonl").read_text(encoding="utf-8").splitlines() if '"POST"' in line]
        assert [json.loads(line)["node"] for line in posts] == ["lb2"]


async def test_when_the_node_itself_dies_the_kernel_heals_on_link_peers_and_a_silent_daemon_is_noticed() -> None:
    runs = await asyncio.gather(
        lab_run("--fault", "on-link", "--kill", "node", "--without-tool", "--watch", "30"),
        lab_run("--kill", "keepalived"),
    )
    for code, result in runs:
        assert (code, result["problems"], result["cut_off_at_end"]) == (0, [], [])
    assert runs[0][1]["watched_s"] < 30


async def test_a_request_that_the_api_does_not_have_ends_the_run_and_is_named() -> None:
    ask = "import ssl, urllib.request as u; u.urlopen(u.Request('https://192.0.2.129/v2/droplets/', headers={'Authorization': 'Bearer '+\
open('/run/lab/token').read().strip()}), context=ssl.create_default_context(cafile='/run/lab/ca.pem'))"
    result: dict[str, Any] = {}
    async with launch(LabOptions(peers=1, action_time_s=0.5, with_tool=False, watch_s=LIMIT_S), is_tied=True) as process:
        async for event in process.events():
            if event["event"] == "timeline" and event["what"] == "MASTER":
                handle = LabHandle(process.pid)
                with contextlib.suppress(Exception):
                    await handle.run("lb2", sys.executable, "-c", ask)
            if event["event"] == "result":
                result = event["result"]
    assert "a request that DigitalOcean's API does not have: lb2: GET /v2/droplets/" in result["problems"]
    assert exit_code(result) == 1
    assert result["watched_s"] < LIMIT_S / 2


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=str)
def test_nothing_is_left_when_the_command_is_ended(number: signal.Signals) -> None:
    before = mount_lines()
    command = [*COMMAND, "--without-tool", "--watch", str(LIMIT_S)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert any("client" in line and "answered by lb2" in line for line in process.stdout)
        family = descendants(process.pid)
        spaces = {space for pid in family for space in namespaces(pid)} - namespaces(os.getpid())
        assert len(family) > 20
        assert len(spaces) >= 4 * 7
        process.send_signal(number)
        assert process.wait(timeout=20) == (130 if number == signal.SIGINT else -number)
    end = time.monotonic() + 10
    while left := [pid for pid in all_pids() if spaces & namespaces(pid)]:
        assert time.monotonic() < end, f"still there: {left}"
    assert mount_lines() == before


def all_pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def descendants(pid: int) -> set[int]:
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        current = waiting.pop()
        with contextlib.suppress(FileNotFoundError):
            children = [int(word) for task in Path(f"/proc/{current}/task").iterdir() for word in (task / "children").read_text().split()]
            found.update(children)
            waiting += children
    return found


def namespaces(pid: int) -> set[str]:
    found = set()
    with contextlib.suppress(OSError):  # gone meanwhile, or not ours to look at
        for name in ("net", "mnt", "pid", "uts"):
            found.add(os.readlink(f"/proc/{pid}/ns/{name}"))
    return found


def mount_lines() -> int:
    return len(Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines())
