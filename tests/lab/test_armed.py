"""Armed peers on real sshd's."""

from __future__ import annotations

import asyncio
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from armed_bench import EAGER, ArmedBench, open_armed_bench, open_arms, states_of
from sshd_bench import DEADLINE_S, SSHD, Server, free_port, make_key, mute_peer, poll_until, sockets

from do_failover.errors import PeerError
from do_failover.model import Peer
from do_failover.ssh import Pace

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(SSHD is None, reason="needs OpenSSH's sshd")
BUSYBOX = shutil.which("busybox")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[ArmedBench]:
    with open_armed_bench(tmp_path) as opened:
        yield opened


# -- commands


async def test_many_commands_on_one_channel(bench: ArmedBench) -> None:
    peer = bench.add_peer()
    async with open_arms(bench.settings(command_timeout_s=20.0)) as arms:
        await arms.arm(peer)
        processes = bench.below()
        answers = await asyncio.gather(*(arms.peers.run(peer, f"echo {number}") for number in range(100)))
        assert answers == [f"{number}\n" for number in range(100)]
        assert set(bench.below()) <= set(processes)  # nothing was started by sshd for them
        (row,) = arms.peers.show()
        assert (row.host, row.is_armed, row.attempts, row.error) == (peer.host, True, 0, None)
        assert row.since_s is not None
        assert row.since_s >= 0
        await poll_until(lambda: arms.armed == [peer], "on_armed")
        assert arms.said == []  # as it should be: nothing to say
    assert bench.log().count("Accepted publickey") == 1


async def test_an_answer_is_the_same_armed_and_cold(bench: ArmedBench) -> None:
    peer = bench.add_peer()
    long = "head -c 60000 /dev/zero | tr '\\0' a"
    commands = ["echo a; echo b; echo; echo", "true", "printf x", "exit 3", "printf 'a\\377b'", "export LC_ALL=C; echo 'a  b' | cat", long]
    async with open_arms(bench.settings()) as cold:
        expected = [await cold.peers.run(peer, command) for command in commands]
        assert not cold.peers.is_armed(peer)
    assert expected[0] == "a\nb\n"
    async with open_arms(bench.settings()) as arms:
        await arms.arm(peer)
        assert [await arms.peers.run(peer, command) for command in commands] == expected
        assert await arms.peers.run(peer, "echo one\necho two") == "one\ntwo\n"  # two lines go another way
        assert arms.peers.is_armed(peer)


@pytest.mark.skipif(BUSYBOX is None, reason="needs BusyBox")
async def test_busybox(bench: ArmedBench) -> None:
    shell = bench.directory / "bin"
    shell.mkdir()
    (shell / "sh").symlink_to(str(BUSYBOX))
    peer = bench.add_peer(options=f'restrict,command="PATH={shell}:$PATH sh -c \\"$SSH_ORIGINAL_COMMAND\\"" ')
    async with open_arms(bench.settings()) as arms:
        await arms.arm(peer)
        (loop,) = bench.loops()
        assert "busybox" in os.readlink(f"/proc/{loop}/exe")
        answers = await asyncio.gather(*(arms.peers.run(peer, f"echo {number}") for number in range(20)))
        assert answers == [f"{number}\n" for number in range(20)]


async def test_a_command_that_takes_too_long_leaves_the_channel_usable(bench: ArmedBench, tmp_path: Path) -> None:
    peer, gate = bench.add_peer(), tmp_path / "gate"
    async with open_arms(bench.settings(command_timeout_s=0.8)) as arms:
        await arms.arm(peer)
        loops = bench.loops()
        with pytest.raises(PeerError, match="was not done within 0.8 s") as caught:
            await arms.peers.run(peer, f"while [ ! -e {gate} ]; do sleep 0.05; done")
        assert caught.value.kind == "command"
        assert arms.peers.is_armed(peer)
        assert await arms.peers.run(peer, f": > {gate}; echo on") == "on\n"
        assert bench.loops() == loops
    assert len(arms.armed) == 1


async def test_no_zombie_and_no_more_processes(bench: ArmedBench) -> None:
    peer = bench.add_peer()
    async with open_arms(bench.settings()) as arms:
        await arms.arm(peer)
        before = bench.below()
        for _ in range(200):
            await arms.peers.run(peer, "true | cat; true")
        await poll_until(lambda: bench.below() == before, "as many processes as before")
        assert "Z" not in states_of(bench.below())


# -- peers that can't be armed


@pytest.mark.parametrize(
    ("forced", "parts"),
    [
        ('echo "not allowed: $SSH_ORIGINAL_COMMAND" | head -c 1000', ["ended with status 0", "not allowed: exec sh -c"]),
        ("exit 7", ["ended with status 7"]),
        ("printf '\\033[31mred'; exec cat >/dev/null", ["no greeting within 1 s", "[31mred"]),
        ("exec cat", ["no greeting within 1 s"]),
        ("head -c 1000000 /dev/zero; exec cat", ["more than 8 KiB before"]),
    ],
)
async def test_a_forced_command_that_is_no_loop(bench: ArmedBench, forced: str, parts: list[str]) -> None:
    quoted = forced.replace('"', '\\"')
    peer = bench.add_peer(options=f'restrict,command="{quoted}" ')
    async with open_arms(bench.settings(connect_timeout_s=1.0)) as arms:
        arms.peers.set_peers((peer,))
        await poll_until(lambda: bool(arms.error()), "its sentence")
        assert not arms.peers.is_armed(peer)
        for part in ("it does not run the loop", *parts):
            assert part in arms.error()
        assert arms.error().isprintable()
        assert arms.said == [arms.error()]
        if forced.startswith(("echo", "exit")):
            assert (await arms.peers.run(peer, "x")).startswith("not allowed: x\n" if forced.startswith("echo") else "")
        await poll_until(lambda: bench.loops() == [], "the refused channel being closed")
    assert bench.log().count("Accepted publickey") == 1  # its connection stays open, for the commands started anew


async def test_a_changed_host_key_is_never_armed(bench: ArmedBench) -> None:
    peer = bench.add_peer(is_known=False)
    bench.know(peer, make_key(bench.directory / "other").with_suffix(".pub"))
    async with open_arms(bench.settings()) as arms:
        arms.peers.set_peers((peer,))
        await poll_until(lambda: arms.peers.show()[0].attempts >= 3, "three tries")
        assert "its host key changed" in arms.error()
        assert arms.said == [arms.error()]  # once, not at each try
        with pytest.raises(PeerError, match="its host key changed"):
            await arms.peers.run(peer, "true")
        bench.know(peer, bench.host_key())  # a person vouches for the new one
        await poll_until(lambda: arms.peers.is_armed(peer), "armed without a restart")
        assert arms.said[1:] == [f"{peer.host}: armed"]


async def test_mute_and_absent_peers_beside_a_good_one(bench: ArmedBench) -> None:
    good, absent = bench.add_peer(), Peer(7, "127.0.0.7", None, free_port("127.0.0.7"))
    with mute_peer() as mute:
        async with open_arms(bench.settings(connect_timeout_s=0.3)) as arms:
            arms.peers.set_peers((mute, absent, good))
            await poll_until(lambda: arms.peers.is_armed(good) and all(row.attempts for row in arms.peers.show()[:2]), "the first tries")
            assert await arms.peers.run(good, "echo fine") == "fine\n"
            assert "accepts TCP, but the SSH login was not over" in arms.error(0)
            assert "refused the connection" in arms.error(1)
            assert [row.is_armed for row in arms.peers.show()] == [False, False, True]
            with pytest.raises(PeerError, match="refused the connection"):
                await arms.peers.run(absent, "true")


# -- peers that come and go


async def test_a_peer_that_dies_and_comes_back(bench: ArmedBench) -> None:
    peer, other = bench.add_peer(0), bench.add_peer(1)
    async with open_arms(bench.settings()) as arms:
        await arms.arm(peer, other)
        bench.kill(0)
        await poll_until(lambda: not arms.peers.is_armed(peer), "TCP telling of it")
        with pytest.raises(PeerError) as caught:
            await arms.peers.run(peer, "true")
        assert caught.value.kind == "unreachable"
        await poll_until(lambda: arms.peers.show()[0].attempts >= 2, "two tries in vain")
        assert "no longer armed" in arms.said[0]
        assert "refused the connection" in arms.error()
        bench.start_again(0)
        await poll_until(lambda: arms.armed.count(peer) == 2, "on_armed again")
        assert await arms.peers.run(peer, "echo back") == "back\n"
        assert arms.said[-1] == f"{peer.host}: armed"
        assert arms.peers.show()[0].attempts == 0
        assert arms.armed.count(other) == 1
        assert not [line for line in arms.said if line.startswith(f"{other.host}: ")]


async def test_a_loop_that_is_killed_is_started_again_on_the_same_connection(bench: ArmedBench) -> None:
    peer = bench.add_peer()
    async with open_arms(bench.settings()) as arms:
        await arms.arm(peer)
        (loop,) = bench.loops()
        os.kill(loop, 9)
        await poll_until(lambda: len(arms.armed) == 2, "armed again")
        assert bench.loops() != [loop]
        assert await arms.peers.run(peer, "echo on") == "on\n"
    assert bench.log().count("Accepted publickey") == 1


async def test_a_command_whose_connection_is_cut_is_sent_again(bench: ArmedBench, tmp_path: Path) -> None:
    real, started = bench.add_peer(), tmp_path / "started"
    async with Server(forward=real) as relay:
        bench.know(relay.peer, bench.host_key())
        async with open_arms(bench.settings()) as arms:
            await arms.arm(relay.peer)
            command = (
                f"if [ -e {started} ]; then echo second; else : > {started}; while :; do [ -e {tmp_path} ] || exit; sleep 0.1; done; fi"
            )
            running = asyncio.create_task(arms.peers.run(relay.peer, command))
            await poll_until(started.exists, "the command running")
            relay.cut()
            assert await running == "second\n"
            await poll_until(lambda: arms.peers.is_armed(relay.peer), "armed again")
            assert relay.accepted == 2  # the one that the command needed is the one that is armed
            started.rename(tmp_path / "over")
            tmp_path.joinpath("over").unlink()
    for pid in bench.below():
        os.kill(pid, 9)


async def test_a_command_on_a_connection_that_went_silent_is_sent_again(bench: ArmedBench) -> None:
    real = bench.add_peer()
    async with Server(forward=real) as relay:
        bench.know(relay.peer, bench.host_key())
        async with open_arms(bench.settings(command_timeout_s=1.2, connect_timeout_s=60.0)) as arms:
            await arms.arm(relay.peer)
            relay.freeze()
            async with asyncio.timeout(DEADLINE_S):  # the dead connection is not tried first
                assert await arms.peers.run(relay.peer, "echo again") == "again\n"
            assert "no sign of life" in arms.said[0]
            await poll_until(lambda: arms.peers.is_armed(relay.peer), "armed again")


async def test_keepalive_finds_a_silent_connection(bench: ArmedBench) -> None:
    assert Pace().keepalive_s * (Pace().keepalive_misses + 1) <= 15
    real = bench.add_peer()
    async with Server(forward=real) as relay:
        bench.know(relay.peer, bench.host_key())
        async with open_arms(bench.settings(), replace(EAGER, keepalive_s=0.3)) as arms:
            await arms.arm(relay.peer)
            relay.freeze()
            await poll_until(lambda: len(arms.armed) == 2, "armed again, though nobody used it")
            assert "no longer armed" in arms.said[0]


async def test_removed_peers_are_let_go(bench: ArmedBench) -> None:
    stays, goes = bench.add_peer(0), bench.add_peer(1)
    async with open_arms(bench.settings()) as arms:
        await arms.arm(stays, goes)
        kept = bench.below(0)
        arms.peers.set_peers((replace(stays, number=5), stays))
        assert not arms.peers.is_armed(goes)
        assert [row.host for row in arms.peers.show()] == [stays.host]
        await poll_until(lambda: bench.below(1) == [], "its connection closed, as its sshd sees it")
        assert bench.below(0) == kept
        assert arms.peers.is_armed(stays)
        arms.peers.set_peers((goes, stays))
        await poll_until(lambda: arms.peers.is_armed(goes), "armed again")
        assert bench.below(0) == kept
        arms.peers.set_peers(())
        arms.peers.set_peers((replace(goes, number=9),))  # at once: the old connection is still closing
        await poll_until(lambda: arms.armed[-1].number == 9, "armed under its new number")
        assert arms.said == []


async def test_a_login_under_way_is_given_up_when_its_peer_is_removed(bench: ArmedBench) -> None:
    with mute_peer() as mute:
        before = sockets()
        async with open_arms(bench.settings(connect_timeout_s=60.0)) as arms:
            arms.peers.set_peers((mute,))
            await poll_until(lambda: len(sockets()) == len(before) + 1, "its login")
            waiting = asyncio.create_task(arms.peers.run(mute, "true"))
            await asyncio.sleep(0)
            arms.peers.set_peers(())
            await poll_until(lambda: sockets() == before, "its login being given up")
            with pytest.raises(PeerError, match="taken off the list"):
                await waiting


async def test_a_peer_that_nobody_asked_for_is_reached_and_let_go(bench: ArmedBench) -> None:
    peer = bench.add_peer()
    async with open_arms(bench.settings(), replace(EAGER, stray_s=0.05)) as arms:
        assert await arms.peers.run(peer, "echo fine") == "fine\n"
        assert arms.peers.show() == ()
        await poll_until(lambda: bench.below() == [], "its connection being closed")
    async with open_arms(bench.settings()) as arms:
        await arms.peers.run(peer, "echo fine")
        await arms.arm(peer)  # now somebody has: on the connection that is open
    assert bench.log().count("Accepted publickey") == 2


async def test_close_leaves_nothing(bench: ArmedBench) -> None:
    good, unknown = bench.add_peer(0), bench.add_peer(1, is_known=False)
    tasks, before = asyncio.all_tasks(), sockets()
    with mute_peer() as mute:
        inside = sockets()
        async with open_arms(bench.settings(connect_timeout_s=60.0)) as arms:
            arms.peers.set_peers((good, unknown, mute))
            await poll_until(lambda: arms.peers.is_armed(good) and len(sockets()) >= len(inside) + 2, "one armed, one under way")
            waiting = [asyncio.create_task(arms.peers.run(peer, "sleep 0.2; echo x")) for peer in (good, mute)]
            await asyncio.sleep(0)
        assert sockets() == inside
        rows = await asyncio.gather(*waiting, return_exceptions=True)
        assert [row.kind for row in rows if isinstance(row, PeerError)] == ["unreachable"] * 2
        with pytest.raises(PeerError, match="being closed"):
            await arms.peers.run(good, "true")
        arms.peers.set_peers((good,))
        assert arms.peers.show() == ()
    assert sockets() == before
    assert asyncio.all_tasks() == tasks
    await poll_until(lambda: bench.below() == [], "no session left")
