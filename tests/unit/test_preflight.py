"""What would fail tonight, check by check."""

from __future__ import annotations

import asyncio
import socket
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
    check_logins,
    check_neighbours,
    check_peers,
    check_probe,
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
    for family in (4, 6):
        directory = tmp_path / f"ipv{family}/neigh/default"
        directory.mkdir(parents=True)
        (directory / "gc_thresh3").write_text(f"{limit}\n")
        check = check_neighbours(peers, tmp_path, family)
        assert check.result == found
        if found == "bad":
            line = f"net.ipv{family}.neigh.default.gc_thresh3 = {2 * (2 * peers + 128)} in /etc/sysctl.d/"
            assert str(check.remedy).startswith(line)


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


@pytest.mark.parametrize(
    ("logins", "concurrency", "found"),
    [
        ({}, 128, "good"),
        ({"10.0.0.5 port 22": 5, "a": 1}, 128, "good"),
        ({"a": 1, "10.0.0.5 port 22": 60}, 128, "warn"),
        ({"a": 60}, 5, "good"),
    ],
)
def test_logins_that_one_sshd_gets_at_once_are_held_against_its_usual_limit(logins: dict[str, int], concurrency: int, found: str) -> None:
    check = check_logins(logins, concurrency)
    assert check.result == found
    if found == "warn":
        assert check.sentence.startswith("10.0.0.5 port 22 gets 60 at once from each load balancer")
        assert check.remedy == "MaxStartups 120:30:240 in its sshd_config"


async def test_something_has_to_accept_what_the_probe_sends() -> None:
    with socket.create_server(("127.0.0.3", 0)) as server:
        port = server.getsockname()[1]
        assert (await check_probe(port, "127.0.0.3", "MASTER")).result is Result.GOOD
        assert (await check_probe(port, "127.0.0.4", "MASTER")).result is Result.BAD
    closed = await check_probe(port, "127.0.0.3", "MASTER")
    assert (closed.result, closed.exit_code, "nothing listens there" in closed.sentence) == (Result.BAD, 10, True)
    assert str(closed.remedy).startswith(f"let HAProxy `bind :{port}` on both")
    backup = await check_probe(port, "127.0.0.3", "BACKUP")
    assert (backup.result, backup.exit_code) == (Result.WARN, 0)
    elsewhere = await check_probe(port, "192.0.2.1", None)
    assert (elsewhere.result, "is not an address of this Droplet" in elsewhere.sentence) == (Result.BAD, True)


class SaysNothing:
    """A peer whose key runs do-failover-peer and whose kernel and ping are not up to it."""

    def __init__(self, kind: str, route: str) -> None:
        self.kind, self.route = kind, route

    async def run(self, peer: Peer, command: str) -> str:
        words = command.words  # type: ignore[attr-defined]
        return f"@do-failover kind\n{self.kind}\n@do-failover route 203.0.113.47\n{self.route}\n" if words.startswith("arm") else ""


@pytest.mark.parametrize(
    ("kind", "route", "part"), [("byte", '[{"dst":"203.0.113.47","dev":"eth0"}]', "never proven"), ("marked", "", "no route to")]
)
def test_a_peer_that_could_never_be_proven_is_said(kind: str, route: str, part: str) -> None:
    checks = asyncio.run(check_peers(SaysNothing(kind, route), [Peer(1, "app1")], 1, reserved=[("203.0.113.47", None)]))
    assert results(checks) == ["warn", "warn"]
    assert part in checks[1].sentence
