"""A reserved IPv6 on real parts: both faults are real, heal by what should heal them and by nothing else, and are proven healed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from typing import TYPE_CHECKING, Any

import pytest

from do_failover.lab.handle import LabHandle, LabState, standing_lab
from do_failover.lab.options import Family, Fault, LabOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

pytestmark = pytest.mark.root

LIMIT_S = 60
PEERS = ["app1", "app2"]
GATEWAY, LB1_PUBLIC, LB2_PUBLIC, APP1_PUBLIC, APP2_PUBLIC = (f"2001:db8:1::{end}" for end in ("1", "11", "12", "1:1", "1:2"))
STALE = {"client": "lb2", "app1": "lb1", "app2": "lb1"}
SEND_NS = """
import sys
from ipaddress import IPv6Address
from do_failover import frames, packets
announced, target = map(IPv6Address, sys.argv[1:])
with packets.LinkSender("eth0") as sender:
    sender.send(frames.build_directed_ns(announced, packets.read_interface("eth0").lladdr, target))
"""


async def test_the_fabric_relearns_a_peer_from_its_talk_to_the_new_owner_not_from_neighbour_discovery() -> None:
    async with moved_lab(Fault.FABRIC) as lab:
        reserved_ip = (await lab.state()).reserved_ip
        for address in (reserved_ip, LB1_PUBLIC, GATEWAY, APP2_PUBLIC):
            await ping(lab, "app1", address)
        await lab.run("lb2", sys.executable, "-c", SEND_NS, LB2_PUBLIC, APP1_PUBLIC)
        assert (await tell(lab, "lb2", "announce"))[0] == 0
        code, report = await tell(lab, "lb2", "verify")
        assert (code, outcomes(report)) == (10, {"app1": "stale", "app2": "stale"})
        assert (await lab.state()).answers == STALE
        await ping(lab, "app1", LB2_PUBLIC)
        await lab.wait_for(answers({"app1": "lb2", "app2": "lb1"}), "the ping of the new owner heals app1, and app1 alone")
        code, report = await tell(lab, "lb2", "refresh")
        assert (code, outcomes(report)) == (0, {"app1": "healed", "app2": "healed"})
        assert [peer["on_link"] for peer in report["peers"]] == [False, False]
        await lab.wait_for(answers({"app2": "lb2"}), "the refresh heals app2")
        assert await read_metadata(lab, "lb2", "reserved_ip/ipv6/ip_address") == reserved_ip
        assert await read_metadata(lab, "lb1", "reserved_ip/ipv6/active") == "false"


async def test_an_on_link_entry_that_a_live_old_owner_confirms_is_healed_by_neighbour_discovery_alone() -> None:
    async with moved_lab(Fault.ON_LINK) as lab:
        reserved_ip = (await lab.state()).reserved_ip
        for address in (reserved_ip, LB2_PUBLIC):
            await ping(lab, "app1", address)
        code, report = await tell(lab, "lb2", "verify")
        assert (code, outcomes(report)) == (10, {"app1": "stale", "app2": "stale"})
        assert (await lab.state()).answers == STALE
        await lab.run("lb2", sys.executable, "-c", SEND_NS, reserved_ip, APP1_PUBLIC)
        await lab.wait_for(answers({"app1": "lb2", "app2": "lb1"}), "a directed NS heals the peer that it asks, and no other")
        assert (await tell(lab, "lb2", "announce"))[0] == 0
        await lab.wait_for(answers({"app1": "lb2", "app2": "lb2"}), "the unsolicited NA heals app2")
        code, report = await tell(lab, "lb1", "assign")
        assert (code, outcomes(report)) == (0, {"app1": "healed", "app2": "healed"})
        assert all(peer["acknowledged"] and peer["on_link"] for peer in report["peers"])
        await lab.wait_for(answers(dict.fromkeys(STALE, "lb1")), "everybody follows the IP back")
        await lab.run("app1", "ip", "neigh", "flush", "to", reserved_ip)
        await lab.assign("lb2")
        await lab.wait_for(answers(STALE), "a new resolution found lb1, and stays there")
        await lab.run("app1", "ip", "neigh", "flush", "to", reserved_ip)
        await lab.wait_for(answers({"app1": "lb2", "app2": "lb1"}), "a new resolution finds the new owner")


async def test_do_failover_heals_the_peers_of_both_faults() -> None:
    runs = await asyncio.gather(lab_run("--fault", "fabric"), lab_run("--fault", "on-link", "--kill", "keepalived"))
    for (code, result), is_on_link in zip(runs, (False, True), strict=True):
        assert (code, result["family"], result["problems"], result["cut_off_at_end"]) == (0, 6, [], [])
        report = result["report"]
        assert (report["outcome"], report["owner_after"], report["warnings"]) == ("done", 2, [])
        assert outcomes(report) == dict.fromkeys(PEERS, "healed")
        assert {(peer["witnessed"], peer["acknowledged"], peer["on_link"]) for peer in report["peers"]} == {(True, True, is_on_link)}
        assert max(result["outage_s"].values()) < 15


def answers(expected: dict[str, str]) -> Callable[[LabState], bool]:
    return lambda state: expected.items() <= state.answers.items()


@contextlib.asynccontextmanager
async def moved_lab(fault: Fault) -> AsyncIterator[LabHandle]:
    """Build a lab whose reserved IPv6 a person moved to lb2 while lb1 lives: the peers still reach lb1."""
    options = LabOptions(family=Family.IPV6, peers=len(PEERS), fault=fault, with_tool=False, action_time_s=0.2)
    async with standing_lab(options) as lab:
        await lab.assign("lb2")
        await lab.wait_for(answers(STALE), "only the far client follows the owner")
        yield lab


async def ping(lab: LabHandle, node: str, address: str) -> None:
    await lab.run(node, "ping", "-6", "-c", "1", "-W", "2", address)


async def read_metadata(lab: LabHandle, node: str, leaf: str) -> str:
    ask = "import sys, urllib.request as u; print(u.urlopen('http://169.254.169.254/metadata/v1/' + sys.argv[1]).read().decode(), end='')"
    return await lab.run(node, sys.executable, "-c", ask, leaf)


async def tell(lab: LabHandle, node: str, command: str) -> tuple[int, dict[str, Any]]:
    """Run a command of do-failover by hand on a load balancer."""
    tool = (sys.executable, "-m", "do_failover", "-c", "/run/lab/config.toml")
    code, out = await finish(*await lab.enter(node, *tool, command, "-o", "json"))
    return code, json.loads(out)


async def lab_run(*arguments: str) -> tuple[int, dict[str, Any]]:
    command = ("lab", "run", "--family", "6", "--peers", str(len(PEERS)), "--action-time", "0.5")
    code, out = await finish(sys.executable, "-m", "do_failover", *command, *arguments, "-o", "json")
    return code, json.loads(out)


async def finish(*argv: str) -> tuple[int, bytes]:
    process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL)
    try:
        out, _ = await asyncio.wait_for(process.communicate(), LIMIT_S)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
    assert process.returncode is not None
    return process.returncode, out


def outcomes(report: dict[str, Any]) -> dict[str, str]:
    return {peer["host"]: peer["outcome"] for peer in report["peers"]}
