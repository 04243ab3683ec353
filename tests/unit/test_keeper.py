"""The daemon in virtual time: what it does on each event, and when nothing is to be done."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from do_failover.config import FailoverConfig
from do_failover.daemon.world import Newer
from do_failover.errors import PeerError, TemporaryError
from do_failover.model import DecisionKind, NotifyEvent, NotifyType, Outcome, Peer, VrrpState
from tests.resident import BACKUP, ENTRY, LOWER, MASTER, Node, become_owner, decisions, play
from tests.story import IP, ME, OLD, Region
from tests.virtual_time import run_virtually

if TYPE_CHECKING:
    from do_failover.daemon.daemon import Daemon


def test_master_moves_the_ip_and_the_guard_rests() -> None:
    async def scene(daemon: Daemon) -> None:
        await become_owner(daemon)
        assert daemon.keepers[IP].choice.why.endswith("guarding")

    node = Node(Region())
    play(node, scene)
    assert decisions(node) == ["ignore", "assign"]
    assert node.reports[-1].outcome is Outcome.DONE
    assert (node.region.owner, len(node.region.posts)) == (ME, 1)


def test_backup_ends_a_running_failover_within_50_ms_and_the_post_is_accounted_for() -> None:
    async def scene(daemon: Daemon) -> None:
        daemon.feed(MASTER)
        await asyncio.sleep(0.5)
        daemon.feed(BACKUP)
        await asyncio.sleep(0.05)
        assert len(node.reports) == 0, "its POST is followed"
        await asyncio.sleep(20)

    node = Node(Region(action_s=5.0))
    play(node, scene)
    assert [report.outcome for report in node.reports] == [Outcome.SUPERSEDED, Outcome.DONE]
    assert "one assign was sent" in next(stage.detail for stage in node.reports[0].stages if stage.name == "assign")


def test_backup_ends_the_refreshing_at_once() -> None:
    async def scene(daemon: Daemon) -> None:
        daemon.feed(MASTER)
        while not any("@do-failover reserved" in command for _, _, command in node.region.commands):
            await asyncio.sleep(0.01)
        daemon.feed(BACKUP)
        await asyncio.sleep(0.05)
        assert node.reports
        assert node.reports[0].outcome is Outcome.SUPERSEDED

    node = Node(Region(slow_peers={"app1": 3.0, "app2": 3.0}))
    play(node, scene)


def test_a_peer_that_was_down_is_healed_when_it_returns() -> None:
    async def scene(daemon: Daemon) -> None:
        await become_owner(daemon)
        assert "app2" not in node.region.healed
        node.region.peer_errors.clear()
        daemon.note_return(Peer(1, "app2"))
        await asyncio.sleep(2)
        assert "app2" in node.region.healed

    node = Node(Region(peer_errors={"app2": PeerError("no route", kind="unreachable")}), entry=replace(ENTRY, refresh_s=0))
    play(node, scene)
    assert [row.outcome for row in node.reports[-1].peers] == ["healed"]
    assert node.reports[-1].reason.startswith("announce and refresh and verify by hand")


def test_a_peer_that_was_down_is_tried_again_also_without_a_word_of_it() -> None:
    async def scene(daemon: Daemon) -> None:
        await become_owner(daemon)
        node.region.peer_errors.clear()
        await asyncio.sleep(61)
        assert "app2" in node.region.healed

    node = Node(Region(peer_errors={"app2": PeerError("no route", kind="unreachable")}), entry=replace(ENTRY, refresh_s=0))
    play(node, scene)


def test_all_peers_are_refreshed_now_and_then_and_only_what_changed_is_kept() -> None:
    async def scene(daemon: Daemon) -> None:
        await become_owner(daemon)
        node.region.commands.clear()
        await asyncio.sleep(260)
        pinged = [host for _, host, command in node.region.commands if "@do-failover reserved" in command]
        assert sorted(pinged) == ["app1", "app1", "app2", "app2"]
        daemon.feed(BACKUP)
        await asyncio.sleep(1)
        node.region.commands.clear()
        await asyncio.sleep(300)
        assert node.region.commands == []

    node = Node(Region())
    play(node, scene)
    assert decisions(node) == ["ignore", "assign", "ignore"]


def test_an_event_interrupts_the_refreshing() -> None:
    async def scene(daemon: Daemon) -> None:
        await become_owner(daemon)
        node.region.slow_peers = {"app1": 15.0}
        while not daemon.keepers[IP].is_acting:
            await asyncio.sleep(0.1)
        daemon.feed(LOWER)
        await asyncio.sleep(2)
        assert node.reports[-1].event is not None

    node = Node(Region())
    play(node, scene)


def test_keepalived_that_is_replaced_counts_as_stop() -> None:
    async def scene(daemon: Daemon) -> None:
        await become_owner(daemon)
        daemon.note_keepalived((2000, 99))
        await asyncio.sleep(1)
        assert daemon.keepers[IP].standing.claim == "STOP"

    node = Node(Region())
    play(node, scene)
    assert node.reports[-1].decision is DecisionKind.IGNORE
    assert any("keepalived (process 77) has ended, which counts as STOP" in sentence for sentence in node.said)


def test_scripts_are_ignored_where_keepalived_speaks_itself_and_late_ones_always() -> None:
    async def scene(daemon: Daemon) -> None:
        daemon.feed(b'SCRIPT 100 5 INSTANCE "VI_1" MASTER 150\n')
        daemon.feed(b'SCRIPT 100 4 INSTANCE "VI_1" BACKUP 150\n')
        assert daemon.keepers[IP].standing.claim == "MASTER"
        daemon.feed(b'SCRIPT 101 1 INSTANCE "VI_1" FAULT 150\n')
        assert daemon.keepers[IP].standing.claim == "FAULT"
        daemon.feed(BACKUP)
        daemon.feed(b'SCRIPT 900 9 INSTANCE "VI_1" MASTER 150\n')
        assert daemon.keepers[IP].standing.claim == "BACKUP"

    play(Node(Region()), scene)


def test_what_piled_up_is_coalesced_and_the_newest_counts() -> None:
    async def scene(daemon: Daemon) -> None:
        daemon.feed(BACKUP + MASTER + BACKUP + MASTER[:7])
        daemon.feed(MASTER[7:] + BACKUP)
        await asyncio.sleep(10)

    node = Node(Region())
    play(node, scene)
    assert (node.region.posts, node.region.owner) == ([], OLD)


def test_reload_takes_new_changed_and_gone_reserved_ips() -> None:
    async def scene(daemon: Daemon) -> None:
        await become_owner(daemon)
        other = FailoverConfig("203.0.113.48", instance="VI_1")
        undisturbed = daemon.keepers[IP]
        await daemon.reload((ENTRY, other))
        assert daemon.keepers[IP] is undisturbed
        assert daemon.keepers["203.0.113.48"].standing.claim == "MASTER"
        await daemon.reload((replace(ENTRY, deadline_s=9.0),))
        assert list(daemon.keepers) == [IP]
        assert daemon.keepers[IP].standing.claim == "MASTER"
        assert daemon.keepers[IP].standing.is_served

    play(Node(Region()), scene)


def test_after_the_end_nothing_starts() -> None:
    async def scene() -> None:
        async with node.daemon() as daemon:
            daemon.feed(BACKUP)
            await asyncio.sleep(1)
        daemon.feed(MASTER)
        await asyncio.sleep(30)

    node = Node(Region())
    run_virtually(scene())
    assert node.region.posts == []
    assert node.memory.kept[IP].claim == "MASTER", "the next process takes it up"


def test_a_daemon_that_knows_itself_needs_no_metadata_service() -> None:
    async def scene(daemon: Daemon) -> None:
        daemon.feed(BACKUP)
        await asyncio.sleep(3)
        node.metadata_error = TemporaryError("no answer", kind="metadata")
        await asyncio.sleep(60)
        daemon.feed(MASTER)
        await asyncio.sleep(5)

    node = Node(Region())
    play(node, scene)
    assert node.region.owner == ME


def test_what_another_process_heard_is_an_event_unless_it_is_older_than_keepalived() -> None:
    def make(state: VrrpState) -> NotifyEvent:
        return NotifyEvent(NotifyType.INSTANCE, "VI_1", state, 100)

    async def scene(daemon: Daemon) -> None:
        node.newer = Newer((999, 5), make(VrrpState.MASTER))
        daemon.look_at_others()
        assert daemon.keepers[IP].standing.claim is None
        node.newer = Newer((1001, 5), make(VrrpState.MASTER))
        daemon.look_at_others()
        assert daemon.keepers[IP].standing.claim == "MASTER"
        node.newer = Newer((1002, 5), make(VrrpState.BACKUP))
        daemon.look_at_others()
        assert daemon.keepers[IP].standing.claim == "BACKUP"

    node = Node(Region())
    play(node, scene)


def test_a_line_without_an_end_does_not_take_the_next_one_with_it() -> None:
    async def scene(daemon: Daemon) -> None:
        daemon.feed(b"hello" + MASTER)
        assert daemon.keepers[IP].standing.claim == "MASTER"
        daemon.feed(b"SCRIPT 1 x " + BACKUP)
        assert daemon.keepers[IP].standing.claim == "MASTER", "a script's line that can't be placed is none of keepalived's"

    node = Node(Region())
    play(node, scene)


def test_peers_are_judged_by_the_story_that_asked_them() -> None:
    async def scene(daemon: Daemon) -> None:
        daemon.feed(MASTER)
        await asyncio.sleep(0.5)
        node.peers = 5
        await asyncio.sleep(5)
        assert daemon.keepers[IP].standing.due.late == {("app1", 22): 1}

    node = Node(Region(peer_errors={"app1": PeerError("no route", kind="unreachable")}), entry=replace(ENTRY, refresh_s=0))
    play(node, scene)
