"""What would fail tonight, check by check."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from do_failover.config import FailoverConfig
from do_failover.errors import PeerError, RefusedError
from do_failover.model import Action, ActionStatus, Identity, Peer, ReservedIp
from do_failover.preflight import (
    Check,
    Result,
    check_api,
    check_directory,
    check_files,
    check_identity,
    check_keepalived,
    check_neighbours,
    check_peers,
)

FIFO, CONF = "/run/do-failover/vrrp.fifo", Path("/etc/keepalived/keepalived.conf")
ENTRY = FailoverConfig("203.0.113.47", instance="VI_1")
ME = Identity(2, "nyc3", "lb2", "198.18.0.12", None, "10.17.0.6")


def results(checks: list[Check]) -> list[str]:
    return [str(check.result) for check in checks]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"global_defs {{\n vrrp_notify_fifo {FIFO}\n vrrp_higher_prio_send_advert true\n}}", ["good"]),
        (f'vrrp_notify_fifo "{FIFO}" root do-failover\nvrrp_higher_prio_send_advert', ["good"]),
        ('notify "/usr/lib/do-failover/do-failover-notify"', ["good", "warn"]),
        (f"# vrrp_notify_fifo {FIFO}\n! notify do-failover", ["bad", "warn"]),
        ("vrrp_notify_fifo /run/other.fifo", ["bad", "warn"]),
        ('notify_master "/usr/bin/do-failover notify INSTANCE VI_1 MASTER"', ["bad", "warn"]),
        ("", ["bad", "warn"]),
    ],
)
def test_keepalived_has_to_tell_of_events(text: str, found: list[str]) -> None:
    checks = check_keepalived(text, CONF, FIFO)
    assert results(checks) == found
    if "notify_master" in text:
        assert "notify_master alone never says" in checks[0].sentence


@pytest.mark.parametrize(("limit", "peers", "found"), [(1024, 1000, "bad"), (8192, 1000, "good"), (1024, 100, "good")])
def test_the_neighbour_table_needs_room(tmp_path: Path, limit: int, peers: int, found: str) -> None:
    for key in ("gc_thresh2", "gc_thresh3"):
        (tmp_path / key).write_text(f"{limit}\n")
    check = check_neighbours(peers, tmp_path)
    assert check.result == found
    if found == "bad":
        assert check.remedy == f"sysctl -w net.ipv4.neigh.default.gc_thresh3={2 * (2 * peers + 128)}"


def test_open_files_are_counted_against_the_peers() -> None:
    assert check_files(1, None).result is Result.GOOD
    many = check_files(10**9, None)
    assert many.result is Result.BAD
    assert many.remedy is not None
    assert many.remedy.startswith("LimitNOFILE=2000000100")


def test_a_directory_that_is_not_there_yet_is_judged_by_its_parent(tmp_path: Path) -> None:
    assert check_directory("run_dir", tmp_path / "a" / "b").result is Result.GOOD
    assert check_directory("run_dir", Path("/dev/null/x")).result is Result.WARN


@pytest.mark.parametrize(
    ("me", "found"),
    [(ME, "good"), (None, "bad"), (Identity(), "bad"), (Identity(2, "nyc3"), "warn"), (Identity(2, public_address="198.18.0.12"), "warn")],
)
def test_this_droplet_has_to_be_known(me: Identity | None, found: str) -> None:
    assert check_identity(me).result == found


class Api:
    def __init__(self, seen: Any, newest: Any = None) -> None:
        self.seen, self.newest = seen, newest

    async def read_reserved_ip(self, address: str, timeout_s: float) -> ReservedIp:
        if isinstance(self.seen, Exception):
            raise self.seen
        return self.seen  # type: ignore[no-any-return]

    async def read_newest_action(self, address: str, timeout_s: float) -> Action | None:
        if isinstance(self.newest, Exception):
            raise self.newest
        return Action(1, ActionStatus.COMPLETED)


@pytest.mark.parametrize(
    ("api", "found", "code"),
    [
        (Api(ReservedIp("203.0.113.47", "nyc3", 1)), ["good"], 0),
        (Api(ReservedIp("203.0.113.47", "ams3", 1)), ["good", "bad"], 6),
        (Api(ReservedIp("203.0.113.47", "nyc3", None, is_owner_visible=False)), ["bad"], 4),
        (Api(RefusedError("the token was refused")), ["bad"], 4),
        (Api(ReservedIp("203.0.113.47", "nyc3", 1), RefusedError("no scope", kind="forbidden")), ["good", "warn"], 0),
    ],
)
def test_the_api_is_asked_what_a_failover_asks(api: Any, found: list[str], code: int) -> None:
    checks = asyncio.run(check_api(api, ENTRY, ME))
    assert results(checks) == found
    assert max(check.exit_code for check in checks) == code


class Shell:
    async def run(self, peer: Peer, command: str) -> str:
        match peer.host:
            case "gone":
                raise PeerError("gone: no route", kind="unreachable")
            case "mute":
                await asyncio.sleep(1000)
            case "bare":
                return "no ping\nlooked\n"
            case "forced":
                return "hello\n"
        return "looked\n"


def test_one_peer_that_fails_stops_no_other() -> None:
    peers = [Peer(number, host) for number, host in enumerate(["app1", "gone", "mute", "bare", "forced"])]
    checks = asyncio.run(check_peers(Shell(), peers, 0.05))
    assert checks[0].sentence.startswith("1 of 5 peers are reached")
    assert {check.name: str(check.result) for check in checks[1:]} == {
        "peer gone": "bad",
        "peer mute": "bad",
        "peer bare": "bad",
        "peer forced": "warn",
    }
    assert asyncio.run(check_peers(Shell(), [], 1.0)) == []
