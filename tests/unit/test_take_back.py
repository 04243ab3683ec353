"""The daemon in virtual time: what it takes back, on what evidence, and what it leaves to whom."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from do_failover.config import FailoverConfig
from do_failover.daemon.world import Newer
from do_failover.errors import PeerError
from tests.resident import BACKUP, ENTRY, LOWER, MASTER, PAIR, Node, become_owner, decisions, play
from tests.story import ME, OLD, PUBLIC, Region

if TYPE_CHECKING:
    from do_failover.daemon.daemon import Daemon


def lose(node: Node) -> None:
    """The IP goes to the other router, by an action that is younger than ours."""
    node.region.owner, node.region.newest_action_id = OLD, 100


@pytest.mark.parametrize("entry", [ENTRY, PAIR])
def test_lost_while_settling_it_is_taken_back_once_and_then_left(entry: FailoverConfig) -> None:
    async def scene(daemon: Daemon) -> None:
        await become_owner(daemon, settled_s=5)
        for _ in range(3):
            lose(node)
            await asyncio.sleep(20)

    node = Node(Region(), entry=entry)
    play(node, scene)
    assert decisions(node) == ["ignore", "assign", "reassert"]
    assert "lost while settling" in node.reports[-1].reason
    assert node.region.owner == OLD
    assert any("two masters never fight" in sentence for sentence in node.said)


def test_after_settling_only_evidence_takes_it_back() -> None:
    async def scene(daemon: Daemon) -> None:
        await become_owner(daemon)
        lose(node)
        await asyncio.sleep(300)
        assert node.region.owner == OLD
        node.region.owner_status = "off"
        await asyncio.sleep(40)

    node = Node(Region(), entry=PAIR)
    play(node, scene)
    assert decisions(node) == ["ignore", "assign", "reassert"]
    assert "the API calls its owner, Droplet 1, off" in node.reports[-1].reason
    assert node.region.owner == ME


def test_an_older_action_that_landed_late_is_evidence_at_any_time_but_once() -> None:
    async def scene(daemon: Daemon) -> None:
        await become_owner(daemon)
        node.region.owner, node.region.newest_action_id = OLD, 1
        await asyncio.sleep(40)
        assert node.region.owner == ME
        node.region.owner, node.region.newest_action_id = OLD, 1
        await asyncio.sleep(40)

    node = Node(Region(), entry=PAIR)
    play(node, scene)
    assert decisions(node) == ["ignore", "assign", "reassert"]
    assert "an older one landed after it" in node.reports[-1].reason
    assert node.region.owner == OLD


@pytest.mark.parametrize(("silent", "is_taken"), [({"198.18.0.11"}, True), ({"198.18.0.11", PUBLIC}, False), (set(), False)])
def test_a_silent_owner_is_evidence_when_most_peers_hear_us(silent: set[str], is_taken: bool) -> None:
    async def scene(daemon: Daemon) -> None:
        await become_owner(daemon)
        lose(node)
        node.region.silent = frozenset(silent)
        await asyncio.sleep(70)

    node = Node(Region(), entry=PAIR, peers=3)
    play(node, scene)
    assert (node.region.owner == ME) is is_taken
    if is_taken:
        assert "3 of 3 peers get no answer from its owner at 198.18.0.11" in node.reports[-1].reason


def test_most_peers_unreachable_is_no_evidence() -> None:
    async def scene(daemon: Daemon) -> None:
        await become_owner(daemon)
        gone = PeerError("no route", kind="unreachable")
        node.region.owner, node.region.newest_action_id, node.region.silent = OLD, 100, frozenset({"198.18.0.11"})
        node.region.peer_errors = {"app1": gone, "app2": gone}
        await asyncio.sleep(200)

    node = Node(Region(), entry=PAIR, peers=3)
    assert play(node, scene).region.owner == OLD


def test_a_move_to_a_droplet_outside_the_pair_is_a_persons_and_a_new_event_overrules_it() -> None:
    async def scene(daemon: Daemon) -> None:
        await become_owner(daemon, settled_s=5)
        node.region.owner = 9
        await asyncio.sleep(100)
        assert node.region.owner == 9
        daemon.feed(BACKUP)
        daemon.feed(MASTER)
        await asyncio.sleep(10)

    node = Node(Region(), entry=PAIR)
    play(node, scene)
    assert any("a person moved it to Droplet 9, which is none of the pair" in sentence for sentence in node.said)
    assert node.region.owner == ME


def test_an_unassign_is_a_persons() -> None:
    async def scene(daemon: Daemon) -> None:
        await become_owner(daemon, settled_s=5)
        node.region.owner = None
        await asyncio.sleep(100)

    node = Node(Region())
    play(node, scene)
    assert node.region.owner is None
    assert any("a person unassigned it" in sentence for sentence in node.said)


def test_lower_priorities_are_debounced_and_lead_to_making_sure() -> None:
    async def scene(daemon: Daemon) -> None:
        await become_owner(daemon)
        for _ in range(6):
            daemon.feed(LOWER)
            await asyncio.sleep(1)
        await asyncio.sleep(100)

    node = Node(Region())
    play(node, scene)
    assert decisions(node) == ["ignore", "assign", "already_owner", "already_owner"]
    assert node.reports[3].event is not None
    assert node.reports[3].event.state == "MASTER_RX_LOWER_PRI"


def test_a_lower_priority_takes_a_stolen_ip_back() -> None:
    async def scene(daemon: Daemon) -> None:
        await become_owner(daemon)
        lose(node)
        await asyncio.sleep(40)
        assert node.region.owner == OLD
        daemon.feed(LOWER)
        await asyncio.sleep(5)

    node = Node(Region(), entry=PAIR)
    play(node, scene)
    assert (node.region.owner, decisions(node)[-1]) == (ME, "reassert")


def test_only_a_lower_priority_tells_a_daemon_that_knows_nothing_that_it_is_master() -> None:
    async def scene(daemon: Daemon) -> None:
        await asyncio.sleep(5)
        daemon.feed(LOWER)
        await asyncio.sleep(10)

    assert play(Node(Region()), scene).region.owner == ME


def test_a_persons_move_by_another_process_is_left_alone() -> None:
    async def scene(daemon: Daemon) -> None:
        await become_owner(daemon, settled_s=5)
        node.region.owner = OLD
        node.newer = Newer((9000, 4242), None)
        daemon.look_at_others()
        await asyncio.sleep(100)
        assert node.region.owner == OLD

    node = Node(Region(), entry=PAIR)
    play(node, scene)
    assert any("a person moved it to Droplet 1 by hand (process 4242)" in sentence for sentence in node.said)
