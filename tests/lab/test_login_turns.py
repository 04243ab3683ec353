"""Turns to log in, on real sockets and sshd's: who doesn't speak, or speaks and then hangs, keeps its turn from nobody."""

from __future__ import annotations

import asyncio
import resource
import socket
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from armed_bench import EAGER, ArmedBench, open_armed_bench, open_arms
from sshd_bench import DEADLINE_S, SSHD, Server, mute_peer, open_pool, poll_until, silent_peer

from do_failover.model import Peer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(SSHD is None, reason="needs OpenSSH's sshd")

FOR_EVER_S = 1000.0


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[ArmedBench]:
    with open_armed_bench(tmp_path) as opened:
        yield opened


async def test_peers_that_never_speak_keep_their_turn_from_nobody(bench: ArmedBench) -> None:
    good = bench.add_peer()
    with socket.create_server(("127.0.0.9", 0)) as door, silent_peer() as silent:
        mute = Peer(90, "127.0.0.9", None, int(door.getsockname()[1]))
        async with open_pool(bench.settings(concurrency=1, connect_timeout_s=FOR_EVER_S)) as pool:
            bad = [asyncio.create_task(pool.connect(peer)) for peer in (mute, silent)]
            await asyncio.sleep(0)
            async with asyncio.timeout(DEADLINE_S):
                assert (await pool.run(good, "echo fine")).stdout == "fine\n"
            assert not any(task.done() for task in bad)
            with door.accept()[0] as call, pytest.raises(BlockingIOError):
                call.recv(1, socket.MSG_DONTWAIT)  # nothing costly was begun
            await pool.close()
            await asyncio.gather(*bad, return_exceptions=True)


async def test_a_peer_that_speaks_and_then_hangs_keeps_its_turn_from_nobody_for_long(bench: ArmedBench) -> None:
    good = bench.add_peer()
    async with Server(says=b"SSH-2.0-Slow\r\n") as hanging, open_pool(bench.settings(concurrency=1, connect_timeout_s=6.0)) as pool:
        bad = asyncio.create_task(pool.connect(hanging.peer))
        await poll_until(lambda: hanging.accepted == 1, "the hanging one being connected to")
        async with asyncio.timeout(DEADLINE_S):
            assert (await pool.run(good, "echo fine")).stdout == "fine\n"
        assert not bad.done()
        await pool.close()
        await asyncio.gather(bad, return_exceptions=True)


async def test_behind_a_jump_host_too(bench: ArmedBench) -> None:
    bastion, good = bench.add_peer(0), bench.add_peer(1)
    with silent_peer() as silent:
        jump = f"Host bastion\n HostName {bastion.host}\n Port {bastion.port}\n ProxyJump none\n"
        config = bench.directory / "config"
        config.write_text(f"{jump}Host {good.host} {silent.host}\n ProxyJump bastion\n")
        settings = bench.settings(ssh_config=str(config), concurrency=1, connect_timeout_s=FOR_EVER_S)
        async with open_pool(settings) as pool:
            bad = asyncio.create_task(pool.connect(silent))
            await asyncio.sleep(0)
            async with asyncio.timeout(DEADLINE_S):
                assert (await pool.run(good, "echo fine")).stdout == "fine\n"
            assert not bad.done()
            await pool.close()
            await asyncio.gather(bad, return_exceptions=True)


async def test_dead_peers_keep_nobody_from_being_armed(bench: ArmedBench) -> None:
    good = bench.add_peer()
    with mute_peer() as mute:
        dead = tuple(Peer(number, mute.host, f"u{number}", mute.port) for number in range(2))
        async with open_arms(bench.settings(concurrency=2, connect_timeout_s=FOR_EVER_S), EAGER) as arms:
            arms.peers.set_peers((*dead, good))
            await poll_until(lambda: arms.peers.is_armed(good), "the good one being armed")
            assert not any(row.attempts for row in arms.peers.show())


async def test_a_login_that_is_cancelled_while_it_waits_takes_no_turn_with_it(bench: ArmedBench) -> None:
    good = bench.add_peer()
    async with Server(says=b"SSH-2.0-Slow\r\n") as hanging, open_pool(bench.settings(concurrency=1, connect_timeout_s=FOR_EVER_S)) as pool:
        peers = [replace(hanging.peer, user=f"u{number}") for number in range(3)]
        waiting = [asyncio.create_task(pool.connect(peer)) for peer in peers]
        await poll_until(lambda: hanging.accepted == 1, "the first one's turn")
        for peer in peers:
            pool.release(peer)
        await asyncio.gather(*waiting, return_exceptions=True)
        async with asyncio.timeout(DEADLINE_S):
            await pool.connect(good)
        assert hanging.accepted == 1


async def test_a_pool_may_open_as_many_files_as_the_hard_limit_allows(bench: ArmedBench) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        async with open_pool(bench.settings()):
            assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
