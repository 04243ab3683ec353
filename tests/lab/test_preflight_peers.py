"""What preflight finds on peers behind a real sshd, with a key that runs do-failover-peer only, and with one that opens a shell."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from forced_command import ALLOWED, SHELLS, have, make_stand
from sshd_bench import SSHD, Bench, open_bench, open_pool
from test_peer_key import IP, PUBLIC, RESERVED, Shell

from do_failover.preflight import Check, check_peers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from do_failover.model import Peer

pytestmark = [pytest.mark.root, pytest.mark.skipif(SSHD is None or not have("busybox"), reason="scripts/test installs them")]
HEARS, DEAF, FORBIDDEN = "exit 0", "exit 1", 'echo "ping: socket: Operation not permitted" >&2; exit 2'


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:  # tmp_path is root's alone; the user has to read the script
        Path(directory).chmod(0o755)
        yield Path(directory)


def add_restricted(bench: Bench, place: Path, number: int, ping: str) -> Peer:
    ping = f'#!/bin/sh\n[ "$1" != -V ] || exit 0\n{ping}\n'
    stand = make_stand(place / f"stand{number}", SHELLS["dash"], ip=IP, ping=ping, logger="")
    command = f"{stand.script} --allow {ALLOWED}"
    return bench.add_peer(number, options=f'restrict,command="{command}" ', user="dofailover")


def look(bench: Bench, *peers: Peer, reserved: str = RESERVED, us: str | None = PUBLIC) -> dict[str, Check]:
    async def check() -> list[Check]:
        async with open_pool(bench.settings()) as pool:
            return await check_peers(Shell(pool), peers, 20, reserved=[(reserved, us)])

    return {check.name: check for check in asyncio.run(check())}


def test_each_peer_is_made_to_do_what_a_failover_asks_of_it(tmp_path: Path, place: Path) -> None:
    with open_bench(tmp_path) as bench:
        good, deaf, forbidden = (add_restricted(bench, place, number, ping) for number, ping in enumerate((HEARS, DEAF, FORBIDDEN)))
        found = look(bench, good, deaf, forbidden)
        assert {name: str(check.result) for name, check in found.items()} == {
            "peers": "warn",
            f"peer {deaf.host}": "warn",
            f"peer {forbidden.host}": "bad",
        }
        assert found["peers"].sentence.startswith("1 of 3 peers are reached and have what it takes")
        assert f"hears nothing of this Droplet's public address {PUBLIC}" in found[f"peer {deaf.host}"].sentence
        assert "ping_group_range" in found[f"peer {forbidden.host}"].sentence
        strange = look(bench, good, reserved="192.0.2.7")
        assert "its do-failover-peer refused" in strange[f"peer {good.host}"].sentence, "the list of its key lacks the reserved IP"
        assert (str(strange[f"peer {good.host}"].result), strange[f"peer {good.host}"].exit_code) == ("bad", 10)


def test_a_key_that_opens_a_shell_is_good_and_wider_than_needed(tmp_path: Path) -> None:
    with open_bench(tmp_path) as bench:
        found = look(bench, bench.add_peer(0), reserved="127.0.0.1", us="127.0.0.1")
    assert {name: str(check.result) for name, check in found.items()} == {"peers": "good"}
    assert "1 of them by a key that opens a shell, which is wider than needed" in found["peers"].sentence
    assert found["peers"].remedy == "do-failover peers authorize"
