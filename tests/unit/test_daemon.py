"""The daemon in virtual time: what it does on each event, and what it leaves alone."""

from __future__ import annotations

import asyncio

from do_failover.model import DecisionKind, Outcome
from tests.resident import Node
from tests.story import ME, OLD, Region
from tests.virtual_time import run_virtually

MASTER, BACKUP, LOWER = (f'INSTANCE "VI_1" {state} 150\n'.encode() for state in ("MASTER", "BACKUP", "MASTER_RX_LOWER_PRI"))


def test_master_moves_the_ip_and_the_guard_rests() -> None:
    node = Node(Region())

    async def scene() -> None:
        async with node.daemon() as daemon:
            daemon.feed(BACKUP)
            await asyncio.sleep(3)
            daemon.feed(MASTER)
            await asyncio.sleep(60)
            assert node.region.owner == ME
            assert daemon.keepers["203.0.113.47"].choice.why.endswith("guarding")

    run_virtually(scene())
    assert [report.decision for report in node.reports] == [DecisionKind.IGNORE, DecisionKind.ASSIGN]
    assert node.reports[-1].outcome is Outcome.DONE
    assert len(node.region.posts) == 1


def test_backup_supersedes_a_running_failover() -> None:
    node = Node(Region(action_s=5.0))

    async def scene() -> None:
        async with node.daemon() as daemon:
            daemon.feed(MASTER)
            await asyncio.sleep(0.02)
            daemon.feed(BACKUP)
            await asyncio.sleep(30)

    run_virtually(scene())
    assert [report.outcome for report in node.reports] == [Outcome.SUPERSEDED, Outcome.DONE]
    assert node.region.owner in {OLD, ME}
