"""Peers through ClusterShell's gateways, on loopback: real ClusterShell, real sshd, the real forced command; and all that goes wrong."""

from __future__ import annotations

import asyncio
import base64
import os
import pickle
import sys
from typing import TYPE_CHECKING, Any

import pytest
from sshd_bench import SSHD, free_port, mute_peer, open_bench, poll_until, silent_peer
from tree_bench import GATEWAY, MARK, PUBLIC, RESERVED, Tree

from do_failover import refresh
from do_failover.errors import PeerError
from do_failover.model import Peer
from do_failover.tree.shell import TreeShell

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(SSHD is None, reason="needs OpenSSH's sshd")
pytest.importorskip("ClusterShell")
SLOW = "while echo; do sleep 0.1; done"  # ends with its connection, as do-failover-peer does


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tree]:
    monkeypatch.setenv(MARK, str(tmp_path))
    with open_bench(tmp_path) as bench:
        yield Tree(bench)


def pattern_of(number: int) -> str:
    return f"{number:02x}" * 16


async def refresh_peer(shell: TreeShell, peer: Peer, number: int = 0) -> refresh.Echoes:
    return await refresh.refresh_peer(shell, peer, PUBLIC, RESERVED, pattern=pattern_of(number), kind="marked")


async def fail(shell: TreeShell, peer: Peer) -> PeerError:
    with pytest.raises(PeerError) as caught:
        await refresh_peer(shell, peer)
    assert caught.value.message.startswith(f"{peer.host}: ")
    assert caught.value.message.isprintable()
    return caught.value


async def test_each_peer_gets_its_own_words_through_one_gateway_and_directly(tree: Tree) -> None:
    tree.add_gateway("gw1")
    peers = [tree.add_peer(f"app{number}", "gw1") for number in range(1, 6)] + [tree.add_peer("app6")]
    async with tree.open() as shell:
        assert await shell.open() == ("gw1",)
        views = await asyncio.gather(*(refresh.look_at_peer(shell, peer, PUBLIC, RESERVED) for peer in peers))
        assert {view.route_to_public.source for view in views if view.route_to_public} == {"10.110.0.21"}
        echoes = await asyncio.gather(*(refresh_peer(shell, peer, number) for number, peer in enumerate(peers)))
        assert set(echoes) == {refresh.Echoes(public_answered=True, reserved_answered=True, is_marked=True)}
        assert await refresh.read_neighbour(shell, peers[0], RESERVED) is None
    for number, peer in enumerate(peers):
        pings = [call for call in tree.stands[peer.host].calls() if call[0] == "ping" and "-p" in call]
        assert [call[call.index("-p") + 1] for call in pings] == [pattern_of(number)]
    await poll_until(lambda: not tree.list_left(), "everything's end")
    assert tree.bench.log(0).count("Accepted publickey") == 1  # the gateway's channel stays open from command to command


async def test_whatever_a_peer_does_is_its_own_row(tree: Tree) -> None:
    tree.add_gateway("gw1")
    good = tree.add_peer("app1", "gw1")
    tree.add_peer("flood", "gw1", command="yes \"$(printf '\\033[2J%04000d' 0)\"")
    tree.add_peer("escape", "gw1", command="printf 'do-failover-peer hello\\n\\033]0;x\\007 \\377\\n@do-failover refused\\n\\033[2J'")
    tree.add_peer("sleepy", "gw1", command=SLOW)
    tree.add_peer("shut", "gw1", command="exit 7")
    tree.add_peer("refuses", "gw1")
    (tree.directory / "sshd6/authorized_keys").write_text("")
    tree.add_name("closed", Peer(0, "127.0.0.7", None, free_port("127.0.0.7")), "gw1")
    with silent_peer() as silent, mute_peer() as mute:
        tree.add_name("silent", silent, "gw1")
        tree.add_name("mute", mute, "gw1")
        stranger = tree.add_peer("stranger", "gw1")
        tree.write()
        known = tree.directory / "gateway_known"
        port = tree.hosts["stranger"].port
        known.write_text("".join(line for line in known.read_text().splitlines(keepends=True) if f"]:{port} " not in line))
        async with tree.open() as shell:
            names = ["flood", "escape", "sleepy", "refuses", "closed", "silent", "mute", stranger.host]
            results = await asyncio.gather(refresh_peer(shell, good), *(fail(shell, Peer(0, name)) for name in names))
            assert await shell.run(Peer(0, "shut"), "x") == ""  # an exit code is a result
            assert (await refresh_peer(shell, good)).reserved_answered
    assert results[0] == refresh.Echoes(public_answered=True, reserved_answered=True, is_marked=True)
    rows: dict[str, Any] = dict(zip(names, results[1:], strict=True))
    assert {name: row.kind for name, row in rows.items()} == {
        "flood": "command",
        "escape": "command",
        "sleepy": "unreachable",
        "refuses": "refused",
        "closed": "unreachable",
        "silent": "unreachable",
        "mute": "unreachable",
        "stranger": "host_key",
    }
    parts = {
        "flood": "more than 64 KiB",
        "escape": "gave no answer",
        "sleepy": "by way of gateway gw1 it was not done within 5 s",
        "refuses": "refused every key offered from gateway gw1",
        "closed": "refused the connection from gateway gw1",
        "silent": "no way to it from gateway gw1",
        "mute": "gw1",
        "stranger": "gateway gw1 does not know this host key of it",
    }
    for name, part in parts.items():
        assert part in rows[name].message
    await poll_until(lambda: not tree.list_left(), "everything's end")


@pytest.mark.parametrize("known", ["unknown", "changed"])
async def test_host_keys_are_checked_from_here_whatever_ssh_config_says(tree: Tree, known: str) -> None:
    tree.add_gateway("gw1")
    behind, direct = tree.add_peer("app1", "gw1"), tree.add_peer("app2")
    tree.write()
    tree.bench.known_hosts.write_text("")
    if known == "changed":
        for name in ("gw1", "app2"):
            tree.bench.know(tree.hosts[name], tree.bench.identity.with_suffix(".pub"))
    shell = tree.open()
    config = tree.directory / "config"
    lax = f"StrictHostKeyChecking no\nUserKnownHostsFile /dev/null\nProxyCommand touch {tree.directory}/trace\n"
    config.write_text(f"{lax}{config.read_text()}")
    async with shell:
        through, straight = await asyncio.gather(fail(shell, behind), fail(shell, direct))
    assert straight.kind == "host_key"
    assert "this host does not know this host key of it" in straight.message
    assert "none of its gateways can be used (gw1: Host key verification failed" in through.message
    assert not (tree.directory / "trace").exists()
    assert "Accepted" not in tree.bench.log(0) + tree.bench.log(2)


@pytest.mark.parametrize(
    ("program", "part"),
    [
        ("echo hello; exec cat", "it wrote 'hello': something else than ClusterShell.Gateway runs there"),
        ("echo no such module >&2; exit 1", "none of its gateways can be used (gw2: no such module)"),
        ("exit 0", "its gateway gw2 was lost"),
        (f"exec timeout -s KILL 1 {GATEWAY.removeprefix('exec ')}", "its gateway gw2 was lost"),
    ],
)
async def test_a_gateway_that_fails_takes_nobody_with_it_but_its_own(tree: Tree, program: str, part: str) -> None:
    tree.add_gateway("gw1")
    tree.add_gateway("gw2", program)
    good, lost = tree.add_peer("app1", "gw1"), tree.add_peer("app2", "gw2", command=SLOW)
    async with tree.open() as shell:
        echoes, error = await asyncio.gather(refresh_peer(shell, good), fail(shell, lost))
        assert (await refresh_peer(shell, good)) == echoes
    assert echoes.reserved_answered
    assert part in error.message
    assert error.kind == "unreachable"


async def test_a_gateway_that_hangs_is_not_waited_for_for_ever(tree: Tree) -> None:
    tree.add_gateway("gw1", "exec cat >/dev/null")
    lost = tree.add_peer("app1", "gw1")
    async with tree.open(connect_timeout_s=1.0, command_timeout_s=0.5) as shell:
        error = await fail(shell, lost)
    assert error.kind == "unreachable"
    assert "no answer within 4.5 s: its gateway hangs" in error.message
    await poll_until(lambda: not tree.list_left(), "everything's end")


class Evil:
    """What a gateway could send: ClusterShell would run it."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.path}",))


async def test_a_gateway_cannot_run_code_here(tree: Tree) -> None:
    trace = tree.directory / "trace"
    payload = base64.b64encode(pickle.dumps(Evil(str(trace)), 4)).decode()
    message = f'<message type="SER" nodes="app2" srcid="0" msgid="1">{payload}</message>'
    answer = tree.directory / "answer"
    answer.write_text(
        f'<?xml version="1.0" encoding="utf-8"?>\n<channel version="1.10"><message type="ACK" msgid="0" ack="0"></message>\n{message}\n'
    )
    tree.add_gateway("gw1")
    tree.add_gateway("gw2", f"cat {answer}; exec sleep 60")
    good, victim = tree.add_peer("app1", "gw1"), tree.add_peer("app2", "gw2")
    async with tree.open() as shell:
        echoes, error = await asyncio.gather(refresh_peer(shell, good), fail(shell, victim))
        assert (await refresh_peer(shell, good)) == echoes
    assert not trace.exists()
    assert "a gateway sent posix.system where data belong" in error.message


async def test_where_one_of_two_gateways_is_down_the_other_is_taken_with_all_that_was_said(tree: Tree) -> None:
    tree.add_gateway("gw1", "exit 1")
    tree.add_gateway("gw2")
    peers = [tree.add_peer(f"app{number}") for number in (1, 2, 3)]
    tree.routes["gw[1-2]"] = [peer.host for peer in peers]
    async with tree.open() as shell:
        echoes = await asyncio.gather(*(refresh_peer(shell, peer, number) for number, peer in enumerate(peers)))
    assert {echo.reserved_answered for echo in echoes} == {True}
    assert tree.bench.log(0).count("Accepted publickey") == 1


async def test_what_nobody_waits_for_is_not_sent_again_by_another_gateway(tree: Tree) -> None:
    tree.add_gateway("gw1", f"echo here >{tree.directory}/here; while ! [ -e {tree.directory}/go ]; do sleep 0.1; done; exit 1")
    tree.add_gateway("gw2")
    given_up, peer = tree.add_peer("app1"), tree.add_peer("app2")
    tree.routes["gw[1-2]"] = [given_up.host, peer.host]
    async with tree.open() as shell:
        task = asyncio.create_task(refresh_peer(shell, given_up))
        await poll_until((tree.directory / "here").exists, "gw1's being asked")
        task.cancel()
        await asyncio.wait([task])
        (tree.directory / "go").touch()
        for _ in range(2):  # by way of gw2, once gw1 is lost
            assert (await refresh_peer(shell, peer)).reserved_answered
    assert "Accepted" not in tree.bench.log(2)


async def test_who_is_cancelled_leaves_at_once_and_nothing_is_left(tree: Tree) -> None:
    tree.add_gateway("gw1")
    behind, direct = tree.add_peer("app1", "gw1", command=SLOW), tree.add_peer("app2", command=SLOW)
    async with tree.open(command_timeout_s=60.0) as shell:
        tasks = [asyncio.create_task(refresh_peer(shell, peer)) for peer in (behind, direct)]
        await poll_until(lambda: all("Accepted publickey" in tree.bench.log(index) for index in (1, 2)), "both at work")
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=1)
        assert all(task.cancelled() for task in tasks)
        await poll_until(lambda: not [line for line in tree.list_left() if "-- app2" in line], "the end of the ssh that started here")
    assert not [line for line in tree.list_left() if "relay.py" in line or f"{tree.directory}/config" in line]
    await poll_until(lambda: not tree.list_left(), "the gateway's and the peers' end")
    assert "the run was over" in (await fail(shell, behind)).message


@pytest.mark.root
async def test_the_gateway_logs_in_to_peers_as_their_user(tree: Tree) -> None:
    tree.add_gateway("gw1")
    host = tree.bench.add_peer(1, options='restrict,command="id -un" ', user="dofailover")
    peer = tree.add_name("app1", host, "gw1")
    async with tree.open(user="dofailover", gateway_user="root") as shell:
        assert await shell.run(peer, "x") == "dofailover\n"


async def test_it_ends_with_whoever_started_it(tree: Tree) -> None:
    tree.add_gateway("gw1")
    tree.add_peer("app1", "gw1", command=SLOW)
    tree.write()
    program = f"""
import asyncio
from do_failover.model import Peer
from do_failover.tree.settings import TreeSettings
from do_failover.tree.shell import TreeShell
asyncio.run(TreeShell({tree.settings(command_timeout_s=60.0)!r}).run(Peer(0, "app1"), "x"))
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program)
    try:
        await poll_until(lambda: "Accepted publickey" in tree.bench.log(1), "its being at work")
    finally:
        process.kill()
        await process.wait()
    await poll_until(lambda: not tree.list_left(), "everything's end")


async def test_no_secret_reaches_it(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DIGITALOCEAN_ACCESS_TOKEN", "CREDENTIALS_DIRECTORY", "DO_FAILOVER_CONFIG"):
        monkeypatch.setenv(name, "hush-hush")
    tree.add_gateway("gw1")
    tree.add_peer("app1", "gw1")
    async with tree.open() as shell:
        await shell.open()
        process = await shell._start()
        environment = tree.directory.joinpath(f"/proc/{process.pid}/environ").read_bytes()
    assert b"PATH=" in environment
    assert b"hush-hush" not in environment
