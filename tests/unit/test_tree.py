"""The way through ClusterShell's tree as far as no sshd is needed: names, options, sentences, and what is missing."""

from __future__ import annotations

import asyncio
import re
import socket
import sys
from pathlib import Path

import pytest

from do_failover.config import load_config
from do_failover.errors import PeerError
from do_failover.model import Peer
from do_failover.tree.sentences import read_answer
from do_failover.tree.settings import TreeSettings
from do_failover.tree.shell import RELAY, TreeShell

ROOT = socket.gethostname().partition(".")[0]
GOOD = f"[routes]\n{ROOT}: gw[1-2]\ngw1: app[1-30]\ngw2: app[31-60]\n"


def make_settings(topology: Path | None, **changes: object) -> TreeSettings:
    values: dict[str, object] = {
        "topology": str(topology) if topology else None,
        "user": "do-failover",
        "gateway_user": "gate",
        "identity_file": "/etc/do-failover/id",
        "known_hosts": "/etc/do-failover/known hosts%",
        "ssh_config": None,
        "connect_timeout_s": 1.5,
        "command_timeout_s": 2.0,
        "fanout": 64,
    }
    return TreeSettings(**{**values, **changes})  # type: ignore[arg-type]


async def fail(shell: TreeShell, peer: Peer) -> PeerError:
    with pytest.raises(PeerError) as caught:
        await shell.run(peer, "true")
    assert caught.value.message.startswith(f"{peer.host}: ")
    assert caught.value.message.isprintable()
    return caught.value


@pytest.mark.parametrize("host", ["-oProxyCommand=x", "app[1-2]", "@all", "app1,app2", "app1!app2", "fe80::1%eth0", "*", "a b", "", "x\n"])
async def test_a_name_is_one_host_and_no_option(tmp_path: Path, host: str) -> None:
    async with TreeShell(make_settings(tmp_path), ("/nonexistent",)) as shell:  # nothing is started
        with pytest.raises(PeerError, match="can't take this name"):
            await shell.run(Peer(0, host), "true")


@pytest.mark.parametrize("peer", [Peer(0, "app1", "somebody"), Peer(0, "app1", None, 2222)])
async def test_a_user_or_a_port_of_its_own_is_refused_by_name(tmp_path: Path, peer: Peer) -> None:
    async with TreeShell(make_settings(tmp_path), ("/nonexistent",)) as shell:
        assert "a user or a port of its own" in (await fail(shell, peer)).message


@pytest.mark.parametrize(
    ("topology", "part"),
    [
        ("[routes]\nsomebody-else: gw1\ngw1: app1\n", "is not a valid root node"),
        ("[routes]\ngw1: gw2\ngw2: gw1\n", "Loop detected"),
        ("[routes]\n", "No route found"),
        (None, "Invalid configuration file"),
        ("[routes]\nlb[1-: gw1\n", "can't be used"),
    ],
)
async def test_a_topology_that_cannot_be_used_is_said_for_each_peer(tmp_path: Path, topology: str | None, part: str) -> None:
    pytest.importorskip("ClusterShell")
    path = tmp_path / "topology.conf"
    if topology is not None:
        path.write_text(topology)
    async with TreeShell(make_settings(path)) as shell:
        with pytest.raises(PeerError, match="so no way to any peer is known"):
            await shell.open()
        error = await fail(shell, Peer(0, "app1"))
    assert part in error.message
    assert str(path) in error.message


async def test_the_gateways_are_told_before_anybody_is_logged_in_to(tmp_path: Path) -> None:
    pytest.importorskip("ClusterShell")
    path = tmp_path / "topology.conf"
    path.write_text(GOOD)
    async with TreeShell(make_settings(path)) as shell:
        assert await shell.open() == ("gw1", "gw2")


async def test_without_a_topology_or_without_clustershell_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peer, path = Peer(0, "app1"), tmp_path / "topology.conf"
    monkeypatch.setenv("HOME", str(tmp_path))
    async with TreeShell(make_settings(path), (RELAY[0], "-I", "-S", RELAY[-1])) as shell:
        error = await fail(shell, peer)
    assert "ClusterShell is not installed" in error.message
    assert "pip install 'do-failover[clustershell]'" in error.message
    async with TreeShell(make_settings(path), ("/nonexistent/python",)) as shell:
        assert "ClusterShell's process can't be started (No such file" in (await fail(shell, peer)).message
    pytest.importorskip("ClusterShell")
    async with TreeShell(make_settings(None)) as shell:
        assert "there is no topology.conf" in (await fail(shell, peer)).message


@pytest.mark.parametrize(
    ("program", "part"),
    [
        ("import sys; sys.exit('Traceback\\nOSError: it broke')", "ended by itself (OSError: it broke)"),
        ('print(\'{"gateways": [], "root": "x"}\', flush=True); input(); print(\'no json\')', "ended by itself"),
    ],
)
async def test_an_end_of_its_own_is_said_and_holds_up_nobody(tmp_path: Path, program: str, part: str) -> None:
    async with TreeShell(make_settings(tmp_path), (sys.executable, "-c", program)) as shell:
        first = await fail(shell, Peer(0, "app1"))
        second = await fail(shell, Peer(0, "app2"))
    assert part in first.message
    assert part in second.message


SERVER = """
import json, sys
print('{"gateways": [], "root": "x"}', flush=True)
sys.stdin.readline()
orders = [json.loads(sys.stdin.readline()) for _ in range(%d)]
for order in reversed(orders[%d:]):
    print(json.dumps({"id": order["id"], "out": order["host"], "err": "", "gateway": None}), flush=True)
sys.stdin.read()
"""


async def test_answers_come_in_any_order_and_a_late_one_is_given_up(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, connect_timeout_s=0.01, command_timeout_s=0.3, fanout=2)
    async with TreeShell(settings, (sys.executable, "-c", SERVER % (5, 1))) as shell:
        late = asyncio.create_task(fail(shell, Peer(0, "app0")))
        answers = await asyncio.gather(*(shell.run(Peer(0, f"app{number}"), "x") for number in range(1, 5)))
        assert answers == [f"app{number}" for number in range(1, 5)]
        error = await late
    assert "no answer within 2.94 s: its gateway hangs" in error.message  # three turns: five came, two at a time


async def test_what_does_not_end_by_itself_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    program = f"""
import os, subprocess, time
child = subprocess.Popen(["sleep", "300"])
open({str(pids)!r}, "w").write(f"{{os.getpid()}} {{child.pid}}")
print('{{"gateways": [], "root": "x"}}', flush=True)
time.sleep(300)
"""
    async with TreeShell(make_settings(tmp_path), (sys.executable, "-c", program)) as shell:
        await shell.open()
    for pid in pids.read_text().split():
        while is_running(pid):  # the child is init's to bury
            await asyncio.sleep(0.01)


def is_running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def test_what_starts_here_checks_keys_first_and_a_gateway_gets_no_path_of_ours(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    told = settings.to_relay()
    own, theirs = told["ssh"], told["gateway_ssh"]
    assert isinstance(own, list)
    assert isinstance(theirs, list)
    assert own[:2] == ["-F", "none"]
    for options in (own, theirs):
        assert "-oStrictHostKeyChecking=yes" in options
        assert "-oBatchMode=yes" in options
        assert "-oForwardAgent=no" in options
    assert '-oUserKnownHostsFile="/etc/do-failover/known hosts%%"' in own
    assert "-oProxyCommand=none" in own
    assert not [option for option in theirs if "/" in option]
    assert (told["timeout_s"], told["connect_timeout_s"]) == (3.5, 2)


@pytest.mark.parametrize(
    ("told", "kind", "part"),
    [
        ({"out": "", "err": "Host key verification failed.\r\n"}, "host_key", "gateway gw1 does not know this host key of it"),
        ({"out": "", "err": "x@app1: Permission denied (publickey).\n"}, "refused", "refused every key offered from gateway gw1"),
        ({"out": "", "err": "ssh: Could not resolve hostname app1: x\n"}, "unreachable", "gateway gw1 does not resolve its name"),
        (
            {"out": "", "err": "ssh: connect to host app1 port 22: Connection refused\n"},
            "unreachable",
            "refused the connection from gateway gw1",
        ),
        ({"out": "", "err": "ssh: connect to host app1 port 22: No route to host\n"}, "unreachable", "no way to it from gateway gw1"),
        ({"out": "", "err": "\x1b[2J\x00odd\n"}, "unreachable", "ssh from gateway gw1 failed ([2J odd)"),
        ({"out": "do-failover-peer hello\ndo-failover-peer 2 0\nx\ndo-failover-peer.\n"}, "command", "gave no answer"),
        ({"problem": "time"}, "unreachable", "by way of gateway gw1 it was not done within 7 s"),
        (
            {"problem": "lost", "said": "Connection reset"},
            "unreachable",
            "gateway gw1 was lost (Connection reset): whether this peer was told",
        ),
        (
            {"problem": "no way", "said": "gw1: No route"},
            "unreachable",
            "none of its gateways can be used (gw1: No route), so it was not told",
        ),
        ({"problem": "much"}, "command", "more than 64 KiB"),
        ({"problem": "\x1b]0;new\x07"}, "unreachable", "no name yet"),
    ],
)
def test_each_way_to_fail_has_one_kind_and_one_sentence(told: dict[str, object], kind: str, part: str) -> None:
    with pytest.raises(PeerError) as caught:
        read_answer("app1", {"gateway": "gw1", **told}, 7.0)
    assert caught.value.kind == kind
    assert part in caught.value.message
    assert caught.value.message.startswith("app1: ")
    assert caught.value.message.isprintable()


def test_an_answer_is_unwrapped_and_a_shells_output_is_left_alone() -> None:
    words = "do-failover-peer hello\ndo-failover-peer 1 0\n@do-failover kind\nmarked\ndo-failover-peer.\n"
    assert read_answer("app1", {"out": words, "gateway": None}, 7.0) == "@do-failover kind\nmarked"
    assert read_answer("app1", {"out": "plain\n", "err": "a warning\n", "gateway": None}, 7.0) == "plain\n"
    assert read_answer("app1", {"out": "", "err": "", "gateway": None}, 7.0) == ""


CONFIG = '[[failover]]\nreserved_ip = "203.0.113.47"\ninstance = "VI_1"\n[peers]\n'


def test_the_configuration_names_what_nobody_reads_and_what_does_not_go_together(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(f'{CONFIG}topology = "/x"\ngateway_user = "g"\n')
    nits = load_config(path).nits
    assert [nit.partition(": ")[2].partition(":")[0] for nit in nits] == ["peers.topology", "peers.gateway_user"]
    path.write_text(f'{CONFIG}fanout = "clustershell"\nprobe = "tcp:443"\n')
    loaded = load_config(path)
    assert loaded.peers.is_tree
    assert ["peers.probe: 'tcp:443' needs fanout = \"ssh\"" in nit for nit in loaded.nits] == [True]
    path.write_text(f'{CONFIG}fanout = "tree"\nprobe = "udp"\n')
    with pytest.raises(Exception, match='neither "ssh" nor "clustershell"') as caught:
        load_config(path)
    assert "peers.probe" in str(caught.value)


async def test_each_hop_logs_in_as_its_own_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ClusterShell")
    log, path = tmp_path / "log", tmp_path / "topology.conf"
    (tmp_path / "ssh").write_text(f'#!/bin/sh\necho "$*" >>{log}\necho "ssh: no" >&2\nexit 255\n')
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    path.write_text(GOOD)
    async with TreeShell(make_settings(path)) as shell:
        for host in ("app1", "db1"):
            await fail(shell, Peer(0, host))
    gateway, direct = log.read_text().splitlines()
    assert " -l gate -- gw1 " in gateway
    assert direct.endswith(" -l do-failover -- db1 true")


def test_the_gateways_line_in_the_docs_is_the_one_that_the_lab_runs() -> None:
    top = Path(__file__).parents[2]
    lab = re.search(r'^GATEWAY_PROGRAM = \(?\s*"(.*?)"', (top / "tests/lab/tree_lab.py").read_text(), re.MULTILINE)
    assert lab is not None
    docs = (top / "docs/peers.md").read_text()
    assert f'restrict,from="10.110.0.11,10.110.0.12",command="{lab[1].format(python="python3")}" ssh-ed25519' in docs
