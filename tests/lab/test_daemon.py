"""The daemon on real parts: what keepalived says, and what becomes of it, also when one of them dies in the middle."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from do_failover.lab.handle import LabHandle
from tests.lab.daemon_lab import (
    ACTION_S,
    DROPLET,
    acts,
    come_to_rest,
    mend,
    other_of,
    poll,
    posts,
    quick_lab,
    run_here,
    wait_for_keeper,
)

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]

PEERS = 3
QUICK = "settle_s = 2\nguard_s = 3\ncool_off_s = 2\ngarp_interval_s = 0.05\n"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def standing() -> AsyncIterator[LabHandle]:
    async with quick_lab(PEERS, QUICK) as handle:
        yield handle


@pytest.fixture
def long_only(request: pytest.FixtureRequest) -> None:
    """For stories that others show in part."""
    if not request.config.getoption("--long"):
        pytest.skip("only with --long")


@pytest_asyncio.fixture(loop_scope="module")
async def lab(standing: LabHandle) -> LabHandle:
    await mend(standing, PEERS)
    return standing


async def make_master(lab: LabHandle, name: str) -> None:
    if (await lab.state()).vrrp[name] != "MASTER":
        await lab.make_master(name)
    assert await come_to_rest(lab) == name


async def test_a_master_event_moves_the_ip_once_although_it_comes_by_the_fifo_and_by_the_script(lab: LabHandle) -> None:
    old = await come_to_rest(lab)
    new = other_of(old)
    before, sent = len(await acts(lab, new)), len(await posts(lab))
    await lab.make_master(new)
    assert await come_to_rest(lab) == new
    (report,) = (await acts(lab, new))[before:]
    assert (report["decision"], report["outcome"], report["owner_after"]) == ("assign", "done", DROPLET[new])
    assert report["event"]["state"] == "MASTER"
    assert {peer["outcome"] for peer in report["peers"]} == {"healed"}
    assert (await posts(lab))[sent:] == [new]
    # A script's line that comes late is not believed, for keepalived speaks itself. The last line is one to wait for.
    await run_here(lab, new, "/run/lab/do-failover-notify INSTANCE VI_1 FAULT 100; echo 'no event' > /run/do-failover/vrrp.fifo")
    await poll(lambda: run_here(lab, new, "cat /run/log/daemon"), lambda log: "'no event'" in log, "the FIFO was not read")
    await wait_for_keeper(lab, new, lambda keeper: keeper["claim"] == "MASTER", "it believed a script")


async def test_backup_while_the_action_runs_supersedes_and_the_true_master_has_the_ip_in_the_end(lab: LabHandle) -> None:
    await make_master(lab, "lb1")
    before, sent = len(await acts(lab, "lb2")), len(await posts(lab))
    await lab.set_action_time(2)
    await lab.cut(("lb1", "lb2"), ("lb2", "lb1"))
    await poll(lambda: posts(lab), lambda found: len(found) > sent, "lb2 sent no assign")
    await lab.set_action_time(ACTION_S)
    await lab.heal()
    await lab.wait_for(lambda state: state.vrrp["lb2"] == "BACKUP", "lb2 is not BACKUP")
    reports = await poll(lambda: acts(lab, "lb2"), lambda found: len(found) > before, "lb2 wrote no report")
    assert (reports[before]["outcome"], reports[before]["exit_code"]) == ("superseded", 11)
    assert "BACKUP" in reports[before]["error"]["message"]
    (assign,) = [stage for stage in reports[before]["stages"] if stage["name"] == "assign"]
    assert "one assign was sent" in assign["detail"]
    assert await come_to_rest(lab) == "lb1"
    assert (await posts(lab))[sent:][:1] == ["lb2"]


async def test_two_masters_do_not_fight_and_the_true_one_has_the_ip_after_the_split(lab: LabHandle) -> None:
    await make_master(lab, "lb1")
    sent = len(await posts(lab))
    await lab.cut(("lb1", "lb2"))
    await lab.wait_for(lambda state: state.vrrp == {"lb1": "MASTER", "lb2": "MASTER"}, "not both are MASTER")
    await poll(lambda: posts(lab), lambda found: "lb1" in found[sent:], "lb1 did not take it back, although it hears a lower priority")
    await lab.wait_for(lambda state: state.owner == "lb1" and set(state.answers.values()) == {"lb1"}, "lb1 does not have it")
    await wait_for_keeper(lab, "lb2", lambda keeper: keeper["why"].startswith("somebody else has it"), "it does not leave it there")
    during = (await posts(lab))[sent:]
    assert 2 <= len(during) <= 4
    await lab.heal()
    assert await come_to_rest(lab) == "lb1"


async def test_the_true_master_takes_back_what_was_lost_in_a_split_in_which_it_heard_nothing(long_only: None, lab: LabHandle) -> None:
    await make_master(lab, "lb1")
    sent = len(await posts(lab))
    await lab.cut(("lb1", "lb2"), ("lb2", "lb1"))
    await lab.wait_for(lambda state: state.owner == "lb2" and state.vrrp["lb1"] == "MASTER", "no split")
    await wait_for_keeper(lab, "lb1", lambda keeper: keeper["owner"] == 2, "it did not notice")
    await lab.heal()
    assert await come_to_rest(lab) == "lb1"
    during = (await posts(lab))[sent:]
    assert "lb2" in during
    assert len(during) <= 4
    assert "lower priority" in (await acts(lab, "lb1"))[-1]["reason"] + await run_here(lab, "lb1", "cat /run/log/daemon")


async def test_a_keepalived_that_is_killed_counts_as_stop_within_a_second_and_its_successor_is_heard(lab: LabHandle) -> None:
    old = await come_to_rest(lab)
    before = await lab.daemon(old)
    assert before is not None
    assert before["keepalived"] is not None
    await lab.kill(old, "keepalived")
    await wait_for_keeper(lab, old, lambda keeper: keeper["claim"] == "STOP", "no STOP", limit_s=1.0)
    await lab.wait_for(lambda state: state.owner == other_of(old), "the other did not take over")
    await lab.start(old, "keepalived")
    await wait_for_keeper(lab, old, lambda keeper: keeper["claim"] == "BACKUP", "no BACKUP")
    assert await come_to_rest(lab) == other_of(old)
    after = await lab.daemon(old)
    assert after is not None
    assert after["keepalived"] not in {None, before["keepalived"]}


async def test_reload_and_restart_of_keepalived_are_survived(lab: LabHandle) -> None:
    master = await come_to_rest(lab)
    inode = await run_here(lab, master, "stat -c %i /run/do-failover/vrrp.fifo")
    sent = len(await posts(lab))
    await run_here(lab, master, "kill -HUP $(cat /run/keepalived.pid)")
    await poll(lambda: run_here(lab, master, "cat /run/log/keepalived"), lambda log: "Reloading" in log, "no reload")
    assert await come_to_rest(lab) == master
    assert (await posts(lab))[sent:] == []
    await lab.stop(master, "keepalived")
    await wait_for_keeper(lab, master, lambda keeper: keeper["claim"] == "STOP", "no STOP")
    await lab.start(master, "keepalived")
    assert await come_to_rest(lab) == other_of(master)
    assert await run_here(lab, master, "stat -c '%i %a %U:%G' /run/do-failover/vrrp.fifo") == f"{inode} 660 root:do-failover"


async def test_a_daemon_killed_in_the_middle_of_a_failover_finishes_it_after_its_restart(lab: LabHandle) -> None:
    new = other_of(await come_to_rest(lab))
    sent = len(await posts(lab))
    await lab.set_action_time(2)
    await lab.make_master(new)
    await poll(lambda: posts(lab), lambda found: new in found[sent:], "no assign was sent")
    await lab.kill(new, "daemon")
    await lab.start(new, "daemon")
    assert await come_to_rest(lab) == new
    (report,) = [report for report in (await acts(lab, new))[-1:] if report["outcome"] == "done"]
    assert report["event"]["state"] == "MASTER"
    assert {peer["outcome"] for peer in report["peers"]} == {"healed"}
    assert (await posts(lab))[sent:] == [new]


async def test_what_was_queued_while_no_daemon_lived_is_acted_on_at_its_start(lab: LabHandle) -> None:
    new = other_of(await come_to_rest(lab))
    notify = lab.files(new) / "lab/notify"
    hook = notify.read_text()
    await lab.kill(new, "daemon")
    notify.write_text("#!/bin/sh\n")  # or else the one-shot stands in
    try:
        sent = len(await posts(lab))
        await lab.make_master(new)
        assert (await posts(lab))[sent:] == []
        await lab.start(new, "daemon")
        assert await come_to_rest(lab) == new
        assert (await posts(lab))[sent:] == [new]
    finally:
        notify.write_text(hook)


async def test_the_one_shot_stands_in_while_no_daemon_lives_and_the_daemon_takes_over_from_it(long_only: None, lab: LabHandle) -> None:
    new = other_of(await come_to_rest(lab))
    await lab.kill(new, "daemon")
    sent = len(await posts(lab))
    await lab.make_master(new)
    await lab.wait_for(lambda state: state.owner == new and set(state.answers.values()) == {new}, "the one-shot did not heal everybody")
    await lab.start(new, "daemon")
    assert await come_to_rest(lab) == new
    assert (await posts(lab))[sent:] == [new]


async def test_a_peer_that_is_away_during_the_failover_is_healed_when_it_returns_without_an_event(lab: LabHandle) -> None:
    new = other_of(await come_to_rest(lab))
    before = len(await acts(lab, new))
    await lab.stop("app2", "sshd")
    await run_here(lab, "app2", "pkill -x sshd || true")
    await lab.make_master(new)
    served = {"client": new, "app1": new, "app2": other_of(new), "app3": new}
    await lab.wait_for(lambda state: state.answers == served, "app2 is to be cut off, and nobody else")
    reports = await poll(lambda: acts(lab, new), lambda found: len(found) > before, "no report")
    assert {peer["host"]: peer["outcome"] for peer in reports[before]["peers"]} == {
        "app1": "healed",
        "app2": "unreachable",
        "app3": "healed",
    }
    await lab.start("app2", "sshd")
    assert await come_to_rest(lab) == new
    (late,) = (await poll(lambda: acts(lab, new), lambda found: len(found) > before + 1, "no report of the late peer"))[before + 1 :]
    assert (late["event"], late["outcome"]) == (None, "done")
    assert [peer["host"] for peer in late["peers"]] == ["app2"]
