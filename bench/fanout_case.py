"""All peers refreshed, and all of them proven: from the go to the last peer's echo request on the wire.

The reserved IP moves to the other load balancer before each run, so every peer begins stale, as after a failover. `refreshed_s`
and `proven_s`: see wire.py, the same for all. `returned_s`: until the way itself says that it is through. `cpu_s` and
`peak_octets`: the load balancer's own processes; the peers' sshd's and pings are none of them, but take the same cores.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import TYPE_CHECKING, Any

from bench import ways as w
from bench.figures import Sample, make_row
from bench.process import BenchError, started
from bench.ways import Site
from bench.wire import Wire
from do_failover.lab.handle import LabHandle, standing_lab
from do_failover.lab.options import LabOptions
from do_failover.lab.plan import Plan, make_plan

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from contextlib import AsyncExitStack

    from bench.cases import Say

_QUIET_S = 0.7
"""After a run: the peers' last pings end (three, 0.2 s apart), and nothing of one way burdens the next."""

_ACTION_S = 0.02
_LAST_PACKET_S = 0.05
_SERIAL_MOST = 100
_THEIRS_MOST = 300


def choose_ways(count: int) -> list[str]:
    """Return the ways that are worth their time with that many peers."""
    missing = w.find_missing()
    theirs = [way for way in w.THEIRS if way not in missing and (way != w.SERIAL or count <= _SERIAL_MOST)]
    return [*w.OURS, *(theirs if count <= _THEIRS_MOST else []), w.UDP, w.PINGS]


async def run_case(counts: Sequence[int], rounds: dict[int, int], say: Say) -> dict[str, Any]:
    """Run all ways for each number of peers, interleaved; one lab for all numbers that share ways."""
    rows: list[dict[str, Any]] = []
    for group in ([n for n in counts if n <= _THEIRS_MOST], [n for n in counts if n > _THEIRS_MOST]):
        if group:
            say(f"a lab of {max(group)} peers")
            options = LabOptions(peers=max(group), with_tool=False, action_time_s=_ACTION_S)
            async with standing_lab(options) as lab, _open_sites(lab, make_plan(options)) as (sites, plan):
                for count in group:
                    rows += await _run_count(sites, plan, count, rounds.get(count, 3), say)
    return {"missing": w.find_missing(), "rows": rows}


@contextlib.asynccontextmanager
async def _open_sites(lab: LabHandle, plan: Plan) -> AsyncIterator[tuple[list[Site], Plan]]:
    """Listen on both load balancers' wires, and answer UDP on all peers; lb1 owns the IP."""
    async with contextlib.AsyncExitStack() as stack:
        state = await lab.state()
        sites = []
        pids = [str(state.nodes[peer.name]) for peer in plan.peers]
        for host in plan.balancers:
            wire = stack.enter_context(Wire(f"/proc/{lab.pid}/root/proc/{state.nodes[host.name]}/ns/net", host.public, host.anchor))
            sites.append(Site(lab, host.name, host.public, plan.reserved_ip, await lab.enter(host.name), wire, pids))
        await _hold_vrrp(sites[0])
        await _start_floor(stack, lab, plan, state.nodes)
        yield sites, plan


async def _hold_vrrp(site: Site) -> None:
    """Stop both keepalived: a thousand logins on these cores starve HAProxy's check, and the IP would go away in the middle of a run."""
    async with started([*site.entry, "pkill", "-STOP", "-x", "keepalived"], "pkill", is_heard=False) as ending:
        if await ending.wait():
            message = "no keepalived to stop"
            raise BenchError(message)


async def _start_floor(stack: AsyncExitStack, lab: LabHandle, plan: Plan, nodes: dict[str, int]) -> None:
    places = [f"{nodes[peer.name]}:{peer.private}" for peer in plan.peers]
    argv = ["nsenter", "-t", str(lab.pid), "-a", "-w", "--", sys.executable, "-m", "bench.floor", *places]
    floor = await stack.enter_async_context(started(argv, "the UDP peers"))
    await floor.hear()


async def _run_count(sites: list[Site], plan: Plan, count: int, rounds: int, say: Say) -> list[dict[str, Any]]:
    chosen = choose_ways(count)
    samples: dict[str, list[Sample]] = {way: [] for way in chosen}
    turn = 0
    async with contextlib.AsyncExitStack() as stack:
        for site in sites:
            site.write_files(count)
            await stack.enter_async_context(site.ready(chosen))
        for number in range(rounds):
            start = number % len(chosen)
            for way in chosen[start:] + chosen[:start]:
                turn += 1
                samples[way].append(await _run_way(sites[turn % 2], plan, way, say))
            say(f"{count} peers: round {number + 1} of {rounds}")
    return [make_row(way, found, n=count) for way, found in samples.items()]


async def _run_way(site: Site, plan: Plan, way: str, say: Say) -> Sample:
    """Move the IP to that load balancer, let the way heal the peers, and read the wire. A way that fails is a sample without times."""
    if (await site.lab.state()).owner != site.name:
        await site.lab.assign(site.name)
        await site.lab.wait_for(lambda state: state.owner == site.name and not state.is_locked, f"{site.name} does not own the IP")
    await asyncio.sleep(_QUIET_S)
    site.wire.forget()
    try:
        began, cost = await site.run(way)
    except BenchError as error:
        sample: Sample = {"trouble": str(error)}
    else:
        await asyncio.sleep(_LAST_PACKET_S)
        if (await site.lab.state()).owner != site.name:
            message = f"{way}: the reserved IP went away in the middle of the run"
            raise BenchError(message)
        sample = {"returned_s": (cost.ended_ns - began) / 1e9, "cpu_s": cost.cpu_s, "peak_octets": cost.peak_octets}
        sample |= {"trouble": cost.trouble, "exit_code": cost.exit_code}
        if way != w.UDP:
            sample |= _read_wire(site, [peer.public for peer in plan.peers[: site.count]], began)
    say(f"  {way}: {sample}")
    return sample


def _read_wire(site: Site, sources: Sequence[str], began_ns: int) -> Sample:
    """Return when the last of these peers was heard, and how many were: where one never was, no time."""
    heard = site.wire.read(began_ns)
    found: Sample = {}
    for kind in ("refreshed", "proven"):
        found |= {f"{kind}_s": heard.last_s(kind, sources, began_ns), kind: heard.count(kind, sources)}
    return found
