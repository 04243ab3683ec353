"""What others say is untrusted: peers, the metadata service, the API. One of them stops nobody else."""

from __future__ import annotations

import json

import pytest

from do_failover import refresh
from do_failover.do_api import answers
from do_failover.errors import ConfigError, RefusedError, TemporaryError
from do_failover.foreign import clean_text, parse_unicast
from do_failover.model import Identity, Outcome, Peer, PeerOutcome, ReservedIp
from tests.story import IP, ME, OLD, PUBLIC, Region, tell

HEX = "00" * 16


@pytest.mark.parametrize("source", [PUBLIC, IP, "224.0.0.1", "2001:db8::1", "0.0.0.0", "255.255.255.255", "127.0.0.1"])
def test_a_peer_that_lies_about_its_address_harms_nobody(source: str) -> None:
    told = tell(Region(route_sources={"app2": source}))
    rows = {peer.host: peer for peer in told.report.peers}
    assert rows["app1"].outcome is rows["app3"].outcome is PeerOutcome.HEALED
    assert told.report.owner_after == ME
    assert told.report.exit_code in {0, 10}


def test_what_nobody_foresaw_in_one_peer_is_its_row() -> None:
    class Broken(Region):
        async def run(self, peer: Peer, command: str) -> str:
            if peer.host == "app2":
                raise ZeroDivisionError
            return await super().run(peer, command)

    told = tell(Broken())
    rows = {peer.host: peer for peer in told.report.peers}
    assert rows["app1"].outcome is rows["app3"].outcome is PeerOutcome.HEALED
    assert "a mistake in do-failover: ZeroDivisionError" in (rows["app2"].error or "")
    assert told.report.exit_code == 10


def test_what_nobody_foresaw_in_the_story_is_its_report_and_the_next_round() -> None:
    class Broken(Region):
        async def read_reserved_ip(self, address: str, timeout_s: float) -> ReservedIp:
            if self.now() < 5:
                raise ZeroDivisionError
            return await super().read_reserved_ip(address, timeout_s)

    told = tell(Broken(), rounds=True)
    assert told.reports[0].error is not None
    assert told.reports[0].error.kind == "internal"
    assert told.report.outcome is Outcome.DONE


def test_a_token_file_that_is_empty_for_a_moment_ends_one_round_only() -> None:
    error = ConfigError("no API token: /etc/do-failover/token is empty", kind="token")
    told = tell(Region(api_error=error, works_from=0.5), rounds=True)
    assert told.reports[0].exit_code == 6
    assert told.report.outcome is Outcome.DONE


def test_without_metadata_the_apis_word_for_our_address_serves() -> None:
    told = tell(Region(identity=Identity(droplet_id=ME, region="nyc3")))
    assert told.region.frames
    assert {peer.outcome for peer in told.report.peers} == {PeerOutcome.HEALED}


def test_an_interface_that_goes_away_stops_nobody() -> None:
    told = tell(Region(link_error=TemporaryError("eth0 went away", kind="link_down")))
    assert told.region.healed == {"app1", "app2", "app3"}
    assert told.report.exit_code == 10


def test_a_peer_that_time_cut_off_is_said_to_be_that() -> None:
    told = tell(Region(owner=ME, slow_peers={"app1": 100.0}), deadline_s=5)
    assert told.report.peers[0].outcome is PeerOutcome.UNPROVEN
    assert told.report.peers[0].error == "the failover ended before this peer was refreshed"


def test_a_hidden_owner_is_no_missing_owner() -> None:
    told = tell(Region(owner=ME, is_owner_visible=False), event=None, steps=frozenset({"verify"}))
    assert told.report.error is not None
    assert told.report.error.kind == "owner_hidden"


def test_single_steps_say_that_they_assign_nothing() -> None:
    report = tell(Region(owner=OLD), event=None, steps=frozenset({"verify"})).report
    assert report.reason == "verify by hand, and Droplet 1 owns the IP: nothing is assigned"
    assert report.decision == "ignore"
    assert tell(Region(owner=ME), event=None, steps=frozenset({"verify"})).report.decision == "already_owner"


def test_an_unknown_droplet_has_no_number() -> None:
    assert tell(Region(identity=Identity())).report.reason.endswith("the reserved IP goes to this Droplet")


def test_a_wait_beyond_the_deadline_is_said_to_be_that() -> None:
    told = tell(Region(api_error=TemporaryError("429", kind="rate_limit", retry_after_s=100), works_from=1e9), event=None)
    assert told.report.error is not None
    assert "asks to wait 100 s, which is beyond the deadline" in told.report.error.message
    assert told.ended_s < 1


def test_a_token_that_may_not_read_actions_moves_the_ip_all_the_same() -> None:
    class NoActions(Region):
        async def read_action(self, address: str, action_id: int, timeout_s: float) -> object:  # type: ignore[override]
            raise RefusedError("403", kind="forbidden")

    assert tell(NoActions()).report.outcome is Outcome.DONE


def test_the_owner_is_read_once_at_the_end() -> None:
    reads = []

    class Counting(Region):
        async def read_reserved_ip(self, address: str, timeout_s: float) -> ReservedIp:
            reads.append(self.now())
            return await super().read_reserved_ip(address, timeout_s)

    tell(Counting(owner=ME))
    assert len(reads) == 2


@pytest.mark.parametrize("bad", ["fe80::1%$(touch x)", "fe80::1%;reboot;", "fe80::1%eth0"])
def test_a_scope_id_gets_into_no_command(bad: str) -> None:
    for make in (
        lambda: refresh.make_look_command(bad, IP),
        lambda: refresh.make_refresh_command(bad, IP, HEX),
        lambda: refresh.make_refresh_command(None, bad, HEX),
        lambda: refresh.make_neighbour_command(bad),
    ):
        with pytest.raises(ValueError, match="scope id"):
            make()


@pytest.mark.parametrize(
    ("value", "version", "result"),
    [
        ("198.18.0.1", 4, "198.18.0.1"),
        ("2001:DB8::1", 6, "2001:db8::1"),
        ("2001:db8::1", 4, None),
        ("fe80::1%eth0", 6, None),
        ("fe80::1%$(id)", None, None),
        *[
            (bad, None, None)
            for bad in ("garbage", "", None, 7, "0.0.0.0", "::", "224.0.0.1", "ff02::1", "127.0.0.1", "::1", "255.255.255.255")
        ],
    ],
)
def test_addresses_of_others(value: object, version: int | None, result: str | None) -> None:
    assert parse_unicast(value, version) == result


def test_text_of_others() -> None:
    assert clean_text("a\x1b[31m\nb\x07") == "a [31m b"
    assert clean_text(7) is None
    assert len(clean_text("x" * 999) or "") == 200


def test_the_apis_words_are_fit_for_a_terminal() -> None:
    body = {
        "ip": IP,
        "droplet": {"id": 1, "networks": {"v4": [{"ip_address": "\x1b[2J", "type": "public"}]}},
        "region": {"slug": "\x1b]0;x\x07"},
    }
    found = answers.read_reserved_ip(json.dumps({"reserved_ip": body}).encode(), "reserved_ip")
    assert found.owner_public_address is None
    assert "\x1b" not in (found.region or "")


def test_deeply_nested_json_is_garbage_like_any_other() -> None:
    deep = b"[" * 100_000
    assert answers.read_error("GET", "x", 503, {}, deep).kind == "unavailable"
    with pytest.raises(TemporaryError):
        answers.read_reserved_ip(b'{"reserved_ip":' + deep, "reserved_ip")


def test_our_own_address_is_never_the_reserved_ip_and_fits_its_family() -> None:
    networks = {
        "v4": [{"ip_address": IP, "type": "public"}, {"ip_address": "198.18.0.12", "type": "public"}],
        "v6": [{"ip_address": "2001:db8::c", "type": "public", "netmask": 64}],
    }
    for ip, key, public in ((IP, "reserved_ip", "198.18.0.12"), ("2001:db8::47", "reserved_ipv6", "2001:db8::c")):
        body = json.dumps({key: {"ip": ip, "droplet": {"id": 2, "networks": networks}}}).encode()
        assert answers.read_reserved_ip(body, key).owner_public_address == public


@pytest.mark.parametrize(
    ("reset", "wait_s"),
    [("1000010", 10.0), ("999000", None), ("4102444800", None), ("garbage", None), (None, None), ("nan", None), ("1000000", None)],
)
def test_ratelimit_reset(reset: str | None, wait_s: float | None) -> None:
    headers = {} if reset is None else {"ratelimit-reset": reset}
    error = answers.read_error("GET", "x", 429, headers, b"", now=1_000_000.0)
    assert isinstance(error, TemporaryError)
    assert error.retry_after_s == wait_s
