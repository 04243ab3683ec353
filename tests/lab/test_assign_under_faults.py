"""`do-failover assign` in the lab while the API has one of its bad nights: real TLS, real peers, the right owner at the end."""

from __future__ import annotations

import asyncio
import json
import sys

import pytest

from do_failover.lab.handle import LabHandle, standing_lab
from do_failover.lab.options import LabOptions

pytestmark = pytest.mark.root

# The long form (pytest --long) has every fault of the lab's API that passes; CI has the short one.
LONG = [
    "any:latency 1",
    "*:hang-connect 1",
    "*:reset-connect",
    "GET ip:hang-before 1",
    "GET ip:reset-before",
    "GET ip:hang-body 1",
    "GET ip:hang-mid-body 1",
    "GET ip:cut-body",
    "POST:hang-before 1",
    "POST:hang-after 1",
    "POST:hang-body 1",
    "POST:cut-body",
    "POST:422 busy",
    "POST:422 owns-this",
    "POST:422 owns-another",
    "POST:422 other-region",
    "POST:422 no-anchor",
    "GET ip:429 hourly reset=ahead",
    "GET ip:429 hourly reset=garbage",
    "POST:500 landed",
    "POST:500",
    "GET ip:500",
    "GET ip:502",
    "POST:503",
    "POST:504",
    "GET ip:504",
    "POST:truncated",
    "GET ip:wrong-types",
    "GET ip:bare",
    "GET ip:html",
    "GET ip:empty",
    "POST:html",
    "POST:empty",
    "POST:slow 2",
    "POST:errored",
    "POST:done",
    "action**:403",
    "action**:500",
    "list**:403",
    "list**:split 1; POST:422 busy",
]
PASSING = [
    "GET ip:503",
    "POST:502 html",
    "POST:reset-after",
    "POST:reset-before",
    "POST:422 locked",
    "GET ip:429 burst retry-after=1",
    "POST:429 hourly reset=past",
    "GET ip:truncated; POST:wrong-types",
    "POST:no-effect",
    "POST:effect-errored",
    "POST:vanish",
    "*:hang-tls 1",
]


async def assign(lab: LabHandle, node: str) -> tuple[int, dict[str, object]]:
    argv = await lab.enter(node, sys.executable, "-m", "do_failover", "-c", "/run/lab/config.toml", "assign", "-o", "json")
    process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    out, err = await process.communicate()
    assert out, err.decode()
    assert process.returncode is not None
    return process.returncode, json.loads(out)


async def test_each_passing_fault_ends_in_the_right_owner_and_healed_peers(request: pytest.FixtureRequest) -> None:
    faults = [*PASSING, *LONG] if request.config.getoption("--long") else PASSING
    async with standing_lab(LabOptions(peers=2, action_time_s=0.3)) as lab:
        while not await lab.reports("lb1"):  # until its MASTER event is served, lb1 takes the IP back from a person: that is its right
            await asyncio.sleep(0.05)
        for number, fault in enumerate(faults):
            node = ("lb2", "lb1")[number % 2]
            await lab.set_faults(fault)
            code, report = await assign(lab, node)
            assert (code, report["outcome"], report["error"]) == (0, "done", None), fault
            assert (await lab.state()).owner == node, fault
        state = await lab.state()
        met = {str(request.get("fault")) for request in state.requests}
        assert len(met) > len(faults) / 2  # the faults were really met
        assert state.answers["app1"] == "lb1"


async def test_a_fault_that_stays_is_a_sentence_and_the_ip_stays_where_it_is() -> None:
    async with standing_lab(LabOptions(peers=1, action_time_s=0.3)) as lab:
        for fault, code, fragment in (
            ("any**:401", 4, "does not know this token"),
            ("any**:403", 4, "may not do this"),
            ("ip**:no-droplet", 1, "droplet:read"),
        ):
            await lab.set_faults(fault)
            ended, report = await assign(lab, "lb2")
            error = report["error"]
            assert isinstance(error, dict), fault
            assert (ended, fragment in error["message"]) == (code, True), (fault, error)
        await lab.set_faults("")
        assert (await lab.state()).owner == "lb1"
