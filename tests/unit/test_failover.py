"""The story as a whole, in virtual time: the real steps, a simulated region."""

from __future__ import annotations

from dataclasses import replace

import pytest

from do_failover import frames
from do_failover.codec import decode_report, encode_report
from do_failover.errors import PeerError, RefusedError, TemporaryError
from do_failover.model import DecisionKind, Identity, NotifyEvent, NotifyType, Outcome, PeerOutcome, VrrpState
from tests.story import IP, MASTER, ME, OLD, PUBLIC, Region, tell

BUSY = TemporaryError("POST answered 503", kind="unavailable", request_id="r-1")


def test_the_whole_story() -> None:
    told = tell(Region())
    report = told.report
    assert (report.outcome, report.exit_code, report.decision) == (Outcome.DONE, 0, DecisionKind.ASSIGN)
    assert (report.owner_before, report.owner_after, report.droplet_id) == (OLD, ME, ME)
    assert [stage.name for stage in report.stages] == ["identify", "assign", "announce", "refresh", "verify"]
    assert all(peer.outcome is PeerOutcome.HEALED and peer.witnessed for peer in report.peers)
    assert report.error is None
    assert len(told.region.posts) == 1
    assert decode_report(encode_report(report)) == report


def test_connections_are_made_while_the_api_works() -> None:
    told = tell(Region(action_s=5))
    looked = [at for at, _, command in told.region.commands if "route get" in command]
    assert len(looked) == 3
    assert max(looked) < 0.5


def test_a_hint_that_the_ip_is_elsewhere_saves_the_first_read() -> None:
    elsewhere = Identity(ME, "nyc3", "lb2", PUBLIC, None, "10.17.0.6", has_reserved_ip=False)
    region = Region(identity=elsewhere)
    told = tell(region)
    assert told.report.outcome is Outcome.DONE
    assert told.report.owner_before == OLD  # seen by the first poll
    assert region.posts[0][0] < 0.1
    by_hand = tell(Region(identity=elsewhere), event=None)
    assert by_hand.region.posts[0][0] > 0.1 - 1e-9  # a person reads first


def test_already_ours_still_heals_the_peers() -> None:
    told = tell(Region(owner=ME))
    assert told.region.posts == []
    assert told.report.api_calls == 2  # the owner, and the owner once more
    assert told.report.decision is DecisionKind.ALREADY_OWNER
    assert [peer.outcome for peer in told.report.peers] == [PeerOutcome.HEALED] * 3


def test_the_public_address_is_announced_and_the_reserved_ip_only_on_the_link() -> None:
    plain = {frames.describe_frame(frame) for frame in tell(Region()).region.frames}
    assert any(PUBLIC in line for line in plain)
    assert not any(IP in line for line in plain)
    local = {frames.describe_frame(frame) for frame in tell(Region(), is_on_link=True).region.frames}
    assert any(IP in line for line in local)
    by_a_peer = {frames.describe_frame(frame) for frame in tell(Region(on_link=frozenset({"app2"}))).region.frames}
    assert any(IP in line for line in by_a_peer)


def test_no_frame_before_the_api_names_us() -> None:
    told = tell(Region(action_s=2))
    assert told.region.frame_times
    assert min(told.region.frame_times) >= 2


def test_announcements_are_repeated_and_spaced() -> None:
    times = sorted({round(at, 2) for at in tell(Region(), peers=0).region.frame_times})
    assert len(times) == 3
    assert all(second - first == pytest.approx(0.3) for first, second in zip(times, times[1:], strict=False))


def test_one_bad_peer_is_a_row_and_delays_nobody() -> None:
    region = Region(
        peer_errors={"app1": PeerError("app1 refused the key", kind="refused"), "app3": PeerError("app3 is down")}, slow_peers={"app3": 5.0}
    )
    told = tell(region)
    rows = {peer.host: peer for peer in told.report.peers}
    assert rows["app1"].outcome is PeerOutcome.REFUSED
    assert rows["app1"].error == "app1 refused the key"
    assert rows["app3"].outcome is PeerOutcome.UNREACHABLE
    assert rows["app2"].outcome is PeerOutcome.HEALED
    assert rows["app2"].duration_s < 0.5
    assert (told.report.outcome, told.report.exit_code) == (Outcome.PARTIAL, 10)


def test_an_answered_ping_is_no_proof() -> None:
    region = Region(is_stubborn=frozenset({"app2"}))
    row = tell(region).report.peers[1]
    assert (row.outcome, row.witnessed, row.proof, row.measure) == (PeerOutcome.STALE, False, None, None)
    assert row.error is not None
    assert "the old owner answers" in row.error


def test_an_entry_that_goes_back_to_the_old_owner_is_mended_or_said() -> None:
    old, ours = "02:00:00:00:00:0b", "02:00:00:00:00:0c"
    on_link = frozenset({"app1", "app2"})
    told = tell(Region(on_link=on_link, entries={"app1": [old, ours], "app2": [old]}))
    mended, stuck, plain = told.report.peers
    assert (mended.outcome, mended.attempts) == (PeerOutcome.HEALED, 2)
    assert (stuck.outcome, stuck.witnessed) == (PeerOutcome.STALE, False)
    assert f"names {old}" in (stuck.error or "")
    assert plain.attempts == 1


def test_unproven_where_no_ping_comes_through() -> None:
    row = tell(Region(is_stubborn=frozenset({"app1"}), answers_pings=False)).report.peers[0]
    assert row.outcome is PeerOutcome.UNPROVEN


def test_another_droplet_gets_no_frame_from_here() -> None:
    told = tell(Region(owner=ME), to_droplet=OLD, event=None)
    assert told.region.frames == []
    assert told.report.owner_after == OLD
    assert {peer.outcome for peer in told.report.peers} == {PeerOutcome.UNPROVEN}
    assert told.report.exit_code == 10
    assert all("198.18.0.11" in command for _, _, command in told.region.commands if "@do-failover reserved" in command)


@pytest.mark.parametrize("state", [VrrpState.BACKUP, VrrpState.FAULT, VrrpState.STOP, VrrpState.DELETED])
def test_other_states_touch_nothing(state: VrrpState) -> None:
    told = tell(Region(), event=NotifyEvent(NotifyType.INSTANCE, "VI_1", state))
    assert (told.region.posts, told.region.frames, told.region.commands) == ([], [], [])
    assert told.report.exit_code == 0
    assert told.ended_s == 0


def test_superseded_while_the_action_runs_is_followed_and_then_says_nothing() -> None:
    told = tell(Region(action_s=3), revoke_at=1.0)
    assert told.report.outcome is Outcome.SUPERSEDED
    assert told.report.exit_code == 11
    assert told.report.owner_after == ME  # what was sent is accounted for
    assert told.region.frames == []
    assert not any("@do-failover reserved" in command for _, _, command in told.region.commands)


def test_superseded_while_peers_are_refreshed_ends_at_once() -> None:
    told = tell(Region(owner=ME, slow_peers={"app1": 3.0}), revoke_at=0.5)
    assert told.report.outcome is Outcome.SUPERSEDED
    assert told.ended_s < 0.6
    assert all(at <= 0.5 for at in told.region.frame_times)
    assert [peer.outcome for peer in told.report.peers][1:] == [PeerOutcome.HEALED] * 2


def test_a_round_ends_at_its_deadline_with_the_cause() -> None:
    told = tell(Region(api_error=BUSY, works_from=1e9), deadline_s=10)
    assert told.report.error is not None
    assert told.report.error.kind == "deadline"
    assert "POST answered 503" in told.report.error.message
    assert told.report.error.request_id == "r-1"
    assert told.report.exit_code == 1
    assert 9.9 <= told.ended_s <= 10.6


def test_while_master_the_next_round_follows_until_it_works() -> None:
    told = tell(Region(api_error=BUSY, works_from=65), deadline_s=10, rounds=True)
    assert [report.outcome for report in told.reports[:-1]] == [Outcome.FAILED] * (len(told.reports) - 1)
    assert told.report.outcome is Outcome.DONE
    assert [report.round for report in told.reports] == list(range(1, len(told.reports) + 1))
    assert told.ended_s < 65 + 30 + 10


def test_a_person_gets_one_round() -> None:
    told = tell(Region(api_error=BUSY, works_from=65), deadline_s=10, event=None, rounds=True)
    assert len(told.reports) == 1


def test_a_refused_token_is_reported_and_tried_again_while_master() -> None:
    told = tell(Region(api_error=RefusedError("401", kind="token"), works_from=20), rounds=True)
    assert told.reports[0].exit_code == 4
    assert told.report.outcome is Outcome.DONE


def test_a_new_event_ends_the_rounds() -> None:
    told = tell(Region(api_error=BUSY, works_from=1e9), deadline_s=10, rounds=True, revoke_at=35.0)
    assert told.ended_s <= 36
    assert told.region.posts == []


def test_an_ip_taken_away_meanwhile_is_not_taken_back() -> None:
    told = tell(Region(stolen_at=4.0, slow_peers={"app1": 3.0}), rounds=True)
    assert len(told.reports) == 1
    assert told.report.error is not None
    assert told.report.error.kind == "owner_changed"
    assert told.report.owner_after == OLD
    assert len(told.region.posts) == 1


def test_without_cap_net_raw_the_peers_are_refreshed_all_the_same() -> None:
    told = tell(Region(link_error=RefusedError("no CAP_NET_RAW", kind="capability")))
    assert told.report.owner_after == ME
    assert told.region.healed == {"app1", "app2", "app3"}
    assert {peer.outcome for peer in told.report.peers} == {PeerOutcome.UNPROVEN}
    assert any("no CAP_NET_RAW" in warning for warning in told.report.warnings)
    assert told.report.exit_code == 10


@pytest.mark.parametrize("step", ["announce", "refresh", "verify"])
def test_a_single_step_refuses_elsewhere(step: str) -> None:
    steps = frozenset({"refresh", "verify"}) if step == "refresh" else frozenset({step})
    told = tell(Region(owner=OLD), event=None, steps=steps)
    assert told.report.exit_code == 7
    assert (told.region.posts, told.region.frames) == ([], [])
    assert "do-failover assign" in str(told.report.error)


def test_announce_alone_only_announces() -> None:
    told = tell(Region(owner=ME), event=None, steps=frozenset({"announce"}))
    assert told.region.frames
    assert told.region.commands == []
    assert {peer.outcome for peer in told.report.peers} == {PeerOutcome.SKIPPED}
    assert told.report.exit_code == 0


def test_verify_alone_changes_nothing() -> None:
    told = tell(Region(owner=ME), event=None, steps=frozenset({"verify"}))
    assert told.region.frames == []
    assert told.region.healed == set()
    assert not any(f" {PUBLIC} >" in command for _, _, command in told.region.commands if "@do-failover reserved" in command)
    assert told.report.exit_code == 10


def test_an_unknown_droplet_is_a_configuration_error() -> None:
    told = tell(Region(identity=Identity()))
    assert told.report.exit_code == 6
    assert told.region.posts == []


def test_an_instance_is_named_in_the_report() -> None:
    report = tell(Region()).report
    assert report.instance == "VI_1"
    assert report.event == replace(MASTER)
    assert report.reason == "INSTANCE VI_1 is MASTER, and Droplet 1 owns the IP: the reserved IP goes to Droplet 2"


def test_a_droplet_of_another_region_is_refused_before_anything_is_sent() -> None:
    told = tell(Region(droplet_region="ams3"), to_droplet=9, event=None)
    assert told.report.exit_code == 6
    assert told.region.posts == []
    assert "Droplet 9 of ams3" in str(told.report.error)


def test_a_link_that_goes_down_is_a_warning_and_the_peers_are_refreshed() -> None:
    told = tell(Region(send_error=TemporaryError("eth0 is down")))
    assert told.report.outcome is Outcome.DONE
    assert any("eth0 is down" in warning for warning in told.report.warnings)


def test_a_token_that_is_revoked_at_the_end_does_not_undo_the_move() -> None:
    told = tell(Region(owner=ME, api_error=RefusedError("401", kind="token"), fails_from=0.2))
    assert told.report.outcome is Outcome.DONE
    assert any("could not be read again" in warning for warning in told.report.warnings)


def test_a_ping_that_cannot_carry_the_pattern_refreshes_and_proves_nothing() -> None:
    told = tell(Region(busybox=frozenset({"app2"})))
    row = told.report.peers[1]
    assert (row.outcome, row.attempts) == (PeerOutcome.UNPROVEN, 1)
    assert "BusyBox" in (row.error or "")
    assert "app2" in told.region.healed
