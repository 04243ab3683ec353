"""Guards that nothing else would miss: each of these was once removed by a reviewer without a test turning red."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import msgspec
import pytest

from do_failover.announce import Announcer
from do_failover.claims import Claims, Running, read_order
from do_failover.cli.wiring import make_api
from do_failover.config import parse_config
from do_failover.echo import build_pattern
from do_failover.mandate import Mandate
from do_failover.model import Peer
from do_failover.verify import Witness
from tests.story import ANCHOR, PUBLIC, Region, echo_request
from tests.virtual_time import VirtualClock, run_virtually

PEER, RUN, OTHER_RUN = Peer(3, "app4"), b"run-0001", b"run-0002"


def test_no_frame_leaves_once_the_mandate_has_ended() -> None:
    async def scene() -> list[bytes]:
        region, mandate = Region(owner=2), Mandate()
        announcer = Announcer(region, mandate, (PUBLIC,))
        mandate.revoke("superseded")
        await announcer.announce(VirtualClock(), repeat=3, interval_s=0.1)
        announcer.announce_to(PUBLIC, "198.18.1.1")
        announcer.include("198.18.0.99")
        return region.frames

    assert run_virtually(scene()) == []


def test_the_echo_request_of_another_run_proves_nothing() -> None:
    witness = Witness(RUN)
    witness.note_packet(echo_request("198.18.1.4", ANCHOR, build_pattern(OTHER_RUN, PEER.number)))
    assert not witness.has_seen(PEER)
    witness.note_packet(echo_request("198.18.1.4", ANCHOR, build_pattern(RUN, PEER.number)))
    assert witness.has_seen(PEER)


def test_a_pid_that_was_used_again_runs_nothing(tmp_path: Path) -> None:
    mine = read_order(os.getpid())
    assert mine is not None
    running = Running(mine.start_ticks - 1, mine.pid, is_manual=False)
    (tmp_path / "203.0.113.47.running").write_bytes(msgspec.json.encode(running))
    assert Claims(tmp_path).read_running("203.0.113.47") is None


def test_a_ca_file_may_begin_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    document = {"digitalocean": {"ca_file": "~/ca.pem"}, "failover": [{"reserved_ip": "203.0.113.47", "instance": "VI_1"}]}
    api = make_api(parse_config(document, "config.toml"))
    assert api._transport._verify == str(tmp_path / "ca.pem")
    api.close()


def test_the_plan_for_another_droplet_names_the_call_for_its_region() -> None:
    document = {"failover": [{"reserved_ip": "203.0.113.47", "instance": "VI_1"}]}
    api = make_api(parse_config(document, "config.toml"))
    assert any("/droplets/9 " in line for line in api.plan_assign("203.0.113.47", 9, is_here=False))
    assert not any("/droplets/" in line for line in api.plan_assign("203.0.113.47", 9, is_here=True))
    api.close()


def test_no_wait_for_is_used_in_the_runtime() -> None:
    """Python 3.11's swallows a cancel that comes in the turn of its result; asyncio.timeout does not."""
    assert hasattr(asyncio, "timeout")
    top = Path(__file__).parents[2] / "do_failover"
    found = [path for path in top.rglob("*.py") if "lab" not in path.parts and "asyncio.wait_for(" in path.read_text()]
    assert found == []
