"""A standing lab through its handle: what the fabric learns and forgets, and keepalived restarted at the worst moment."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from do_failover.lab import keepalived
from do_failover.lab.errors import LabError
from do_failover.lab.handle import LabHandle, LabState, standing_lab
from do_failover.lab.options import Fault, LabOptions

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.root

RESERVED_IP = "203.0.113.47"
LB1_PUBLIC, LB2_PUBLIC, GATEWAY = "198.18.0.11", "198.18.0.12", "198.18.0.1"


def answers(expected: dict[str, str | None]) -> Callable[[LabState], bool]:
    return lambda state: expected.items() <= state.answers.items()


async def ping(lab: LabHandle, node: str, address: str) -> None:
    await lab.run(node, "ping", "-c", "1", "-W", "2", address)


async def test_the_fabric_relearns_a_peer_only_from_its_talk_to_the_new_owners_public_address() -> None:
    async with standing_lab(LabOptions(peers=2, with_tool=False, action_time_s=0.2)) as lab:
        await lab.assign("lb2")
        await lab.wait_for(lambda state: state.owner == "lb2", "the action did not complete")
        moved = {"client": "lb2", "app1": "lb1", "app2": "lb1"}
        await lab.wait_for(answers(moved), "only the far client follows the owner")
        for address in (RESERVED_IP, LB1_PUBLIC, GATEWAY, "198.18.1.2"):
            await ping(lab, "app1", address)
        assert (await lab.state()).answers == moved
        await ping(lab, "app1", LB2_PUBLIC)
        await lab.wait_for(answers({"app1": "lb2", "app2": "lb1"}), "the ping of the new owner heals app1, and app1 alone")
        await lab.assign("lb1")
        await lab.wait_for(answers({"client": "lb1", "app1": "lb2", "app2": "lb1"}), "flows stay while the IP moves back")


async def test_an_on_link_entry_that_a_live_old_owner_confirms_is_healed_by_an_announcement_only() -> None:
    options = LabOptions(peers=2, fault=Fault.ON_LINK, with_tool=False, action_time_s=0.2)
    async with standing_lab(options) as lab:
        reserved_ip = (await lab.state()).reserved_ip
        await lab.assign("lb2")
        await lab.wait_for(answers({"client": "lb2", "app1": "lb1", "app2": "lb1"}), "only the far client follows the owner")
        for address in (reserved_ip, LB2_PUBLIC):
            await ping(lab, "app1", address)
        assert answers({"app1": "lb1"})(await lab.state())
        await lab.run("app1", "ip", "neigh", "flush", "to", reserved_ip)
        await lab.wait_for(answers({"app1": "lb2", "app2": "lb1"}), "a new resolution finds the new owner")


async def test_a_wrong_token_is_refused_and_recorded_under_the_nodes_name() -> None:
    async with standing_lab(LabOptions(peers=1, action_time_s=0.2)) as lab:
        (lab.files("lb2") / "lab/token").write_text("dop_v1_wrong\n", encoding="ascii")
        await lab.kill("lb1", "haproxy")
        state = await lab.wait_for(lambda s: any(r["status"] == 401 for r in s.requests), "lb2 was not refused")
        assert {r["node"] for r in state.requests if r["status"] == 401} == {"lb2"}
        assert state.owner == "lb1"


async def test_restarting_keepalived_in_the_middle_of_an_assign_ends_with_the_right_owner_and_healed_peers() -> None:
    async with standing_lab(LabOptions(peers=2, action_time_s=3)) as lab:
        await lab.kill("lb1", "haproxy")
        await lab.wait_for(lambda s: any(r["method"] == "POST" and r["node"] == "lb2" for r in s.requests), "lb2 sent no assign")
        await lab.restart("lb2", "keepalived")
        state = await lab.wait_for(
            lambda s: s.owner == "lb2" and set(s.answers.values()) == {"lb2"},
            "not everyone reaches lb2",
            limit_s=40,
        )
        assert [r["path"] for r in state.requests if r["is_unknown"]] == []


async def test_a_dead_peer_and_a_service_that_is_down_are_said_plainly() -> None:
    async with standing_lab(LabOptions(peers=2, with_tool=False)) as lab:
        await lab.kill_node("app2")
        state = await lab.state()
        assert "app2" not in state.nodes
        assert state.answers["app2"] is None
        with pytest.raises(LabError, match="app2"):
            await lab.run("app2", "true")
        await lab.stop("app1", "sshd")
        with pytest.raises(LabError, match="sshd does not run on app1"):
            await lab.restart("app1", "sshd")
        await lab.make_master("lb2")
        assert (await lab.state()).vrrp["lb2"] == "MASTER"


def test_a_lab_that_stays_is_entered_by_name_and_ended_by_down() -> None:
    name = "test-standing"
    up = lab("up", "--peers", "1", "--without-tool", "--name", name)
    try:
        assert (up.returncode, f"lab down {name}" in up.stdout) == (0, True)
        assert "stands already" in lab("up", "--name", name).stderr
        assert lab("shell", "--name", name, "lb2", "--", "hostname").stdout == "lb2\n"
        assert lab("shell", "--name", name, "app1", "ping", "-c1", "-W1", RESERVED_IP).returncode == 0
        assert "no node 'app2'" in lab("shell", "--name", name, "app2", "true").stderr
        example = keepalived.example().replace("/usr/bin/do-failover notify", "/run/lab/notify")
        check = "cat > /run/lab/example && keepalived --vrrp -t -f /run/lab/example && keepalived --vrrp -t -f /run/lab/keepalived.conf"
        accepted = lab("shell", "--name", name, "lb1", "--", "sh", "-c", check, stdin=example)
        assert (accepted.returncode, accepted.stdout, accepted.stderr) == (0, "", "")
    finally:
        down = lab("down", name)
    assert (down.returncode, down.stdout) == (0, f"lab {name} is gone\n")
    assert lab("down", name).returncode == 1


def lab(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "do_failover", "lab", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=60)
