"""A region whose peers are behind two gateways, through real ClusterShell: all are proven; a dead gateway's are rows; by the daemon too."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from daemon_lab import poll, run_here, send_reload
from tree_lab import TreeLab, tree_lab

if TYPE_CHECKING:
    from do_failover.lab.handle import LabHandle

pytestmark = pytest.mark.root
pytest.importorskip("ClusterShell")
COMMAND = (sys.executable, "-m", "do_failover", "-c", "/run/lab/config.toml")
DEBIAN = "/usr/bin/python3"  # with python3-clustershell, which is 1.9 there


@dataclass
class Ended:
    code: int
    answer: dict[str, Any]
    err: str

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        return {row["host"]: row for row in self.answer["peers"]}


async def do(lab: LabHandle, *arguments: str) -> Ended:
    """Run `do-failover ... -o json` on lb2."""
    argv = await lab.enter("lb2", *COMMAND, *arguments, "-o", "json")
    process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    out, err = await process.communicate()
    assert process.returncode is not None
    assert out, err.decode()
    return Ended(process.returncode, json.loads(out), err.decode())


async def expect_nothing_left(tree: TreeLab) -> None:
    for node in ("lb2", *tree.behind):
        await poll(lambda node=node: tree.list_left(node), lambda left: not left, f"left on {node}", limit_s=20)  # type: ignore[misc]


async def test_sixty_peers_behind_two_gateways_are_proven_and_a_dead_gateways_thirty_are_rows() -> None:
    async with tree_lab(60) as tree:
        lab, (first, second) = tree.lab, tree.behind
        checked = await asyncio.to_thread(
            lambda: subprocess.run([*asyncio.run(lab.enter("lb2", "ping", "-c1", "-W1", "10.110.1.1"))], capture_output=True)
        )
        assert checked.returncode == 1  # nobody reaches a peer from lb2 but through its gateway
        moved = await do(lab, "assign")
        assert (moved.code, moved.answer["outcome"]) == (0, "done")
        assert {host: row["outcome"] for host, row in moved.rows.items()} == {f"app{n}": "healed" for n in range(1, 61)}
        assert {(row["proof"], row["witnessed"], row["error"]) for row in moved.rows.values()} == {("icmp", True, None)}

        await lab.kill(first, "sshd")
        again = await do(lab, "refresh")
        assert (again.code, again.answer["outcome"]) == (10, "partial")
        lost = {host: row for host, row in again.rows.items() if host in tree.behind[first]}
        assert {row["outcome"] for row in lost.values()} == {"unreachable"}
        for host, row in lost.items():
            assert row["error"].startswith(f"{host}: none of its gateways can be used ({first}: ssh: connect to host {first} port 22: ")
        assert {row["outcome"] for host, row in again.rows.items() if host in tree.behind[second]} == {"healed"}
        await expect_nothing_left(tree)


async def test_the_daemon_arms_nobody_says_so_and_proves_them_and_is_superseded_without_a_trace() -> None:
    async with tree_lab(4, with_daemon=True) as tree:
        lab, gateways = tree.lab, list(tree.behind)
        await send_reload(lab, "lb2")
        status = await lab.daemon("lb2")
        assert status is not None
        assert [(row["host"], row["armed"]) for row in status["peers"]] == [(f"app{n}", False) for n in range(1, 5)]
        assert {row["error"] for row in status["peers"]} == {
            "reached through ClusterShell's gateways when an event comes: no connection is kept open"
        }
        assert "no connection is kept open" in await run_here(lab, "lb2", "/run/lab/do-failover status || [ $? = 7 ]")
        assert "no connection is kept open" in await run_here(lab, "lb2", "/run/lab/do-failover peers")
        assert json.loads(await run_here(lab, "lb2", "/run/lab/do-failover config check -o json"))["peers"] == 4
        checks = {row["name"]: row for row in (await do(lab, "preflight")).answer["checks"]}
        assert (checks["gateways"]["result"], checks["peers"]["result"]) == ("good", "good"), checks

        await lab.make_master("lb2")
        reports = await poll(lambda: lab.reports("lb2"), lambda found: found[-1]["event"]["state"] == "MASTER", "no report", limit_s=30)
        report = reports[-1]
        assert {(row["host"], row["outcome"]) for row in report["peers"]} == {(f"app{n}", "healed") for n in range(1, 5)}

        # Peers that hang: an event that ends the story ends all that it started, on the gateways too.
        for peer in ("app1", "app3"):
            (lab.files(peer) / "lab/do-failover-peer").write_text("#!/bin/sh\nwhile echo; do sleep 0.2; done\n")
        argv = await lab.enter("lb2", *COMMAND, "refresh")
        process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL)
        try:
            for gateway in gateways:
                await poll(lambda at=gateway: tree.list_left(at), bool, "it never began")  # type: ignore[misc]
            pid = await run_here(lab, "lb2", "pgrep -f 'do_failover -c /run/lab/config.toml [r]efresh' | tail -n 1")
            await run_here(lab, "lb2", f"kill -{signal.SIGTERM} {pid}")
            assert await process.wait() == 11
        finally:
            if process.returncode is None:
                process.kill()
        await expect_nothing_left(tree)


@pytest.mark.skipif(
    subprocess.run([DEBIAN, "-c", "import ClusterShell"], capture_output=True, check=False).returncode != 0,
    reason="needs python3-clustershell, for gateways that run another release than we",
)
async def test_gateways_may_run_debians_release() -> None:
    async with tree_lab(2, python=DEBIAN) as tree:
        moved = await do(tree.lab, "assign")
        assert {host: row["outcome"] for host, row in moved.rows.items()} == {"app1": "healed", "app2": "healed"}
