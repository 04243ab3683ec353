"""The forced command behind a real sshd: what the product does through it, and what a thief of the key can't do."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import socket
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from forced_command import ALLOWED, SHELLS, Stand, have, make_stand
from sshd_bench import SSHD, Bench, free_port, open_bench, open_pool, poll_until

from do_failover import refresh
from do_failover.errors import PeerError
from do_failover.ssh import ArmedPeers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from do_failover.model import Peer

pytestmark = [pytest.mark.root, pytest.mark.skipif(SSHD is None or not have("busybox", "sftp", "scp"), reason="scripts/test installs them")]
RESERVED, PUBLIC, OLD = "203.0.113.47", "198.51.100.12", "198.51.100.11"
PATTERN = "00112233445566778899aabbccddeeff"
ROUTE = '[{"dst":"%s","dev":"eth0","prefsrc":"10.110.0.21"}]'
ENTRY = f'[{{"dst":"{RESERVED}","lladdr":"02:00:00:00:00:0c","state":["STALE"]}}]'
IP = f"""#!/bin/sh
case "$*" in *route*) printf '{ROUTE}\n' "$4" ;; *) echo '{ENTRY}' ;; esac
"""
PING = '#!/bin/sh\ncase "$*" in *198.51.100.11*) exit 1 ;; *) exit "${PING_STATUS:-0}" ;; esac\n'


@dataclass
class Door:
    """An sshd with one unprivileged user whose key runs the script only."""

    bench: Bench
    peer: Peer
    stand: Stand

    def ssh(self, *arguments: str, program: str = "ssh", stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        """Run OpenSSH's client as the thief."""
        options = (
            "-F",
            "none",
            "-i",
            str(self.bench.identity),
            "-o",
            f"UserKnownHostsFile={self.bench.known_hosts}",
            "-o",
            "BatchMode=yes",
        )
        port = ("-p" if program == "ssh" else "-P", str(self.peer.port))
        where = {**os.environ, **environment}
        argv = (program, *options, *port, *arguments)
        return subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=30, env=where)

    @property
    def login(self) -> str:
        return f"{self.peer.user}@{self.peer.host}"


def open_door(directory: Path, shell: tuple[str, ...], bench: Bench, number: int = 0, **programs: str) -> Door:
    stand = make_stand(directory, shell, **{"ip": IP, "ping": PING, "logger": "", **programs})
    command = f"{' '.join(shell)} {stand.script} --allow {ALLOWED}"
    peer = bench.add_peer(number, options=f'restrict,from="127.0.0.1",command="{command}" ', user="dofailover")
    return Door(bench, peer, stand)


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:  # tmp_path is root's alone; the user has to read the script
        Path(directory).chmod(0o755)
        yield Path(directory)


@pytest.fixture(params=list(SHELLS))
def door(request: pytest.FixtureRequest, tmp_path: Path, place: Path) -> Iterator[Door]:
    with open_bench(tmp_path) as bench:
        yield open_door(place / "stand", SHELLS[request.param], bench)


class Shell:
    """As cli/wiring.py's LazyPeers: standard output of a pool's command."""

    def __init__(self, pool: object) -> None:
        self.pool = pool

    async def run(self, peer: Peer, command: str) -> str:
        return (await self.pool.run(peer, command)).stdout  # type: ignore[attr-defined,no-any-return]


async def check_story(shell: refresh.PeerShell, peer: Peer) -> None:
    view = await refresh.look_at_peer(shell, peer, PUBLIC, RESERVED)
    assert view.route_to_public is not None
    assert view.route_to_reserved is not None
    assert (view.route_to_public.source, view.route_to_reserved.is_on_link) == ("10.110.0.21", True)
    echoes = await refresh.refresh_peer(shell, peer, PUBLIC, RESERVED, pattern=PATTERN)
    assert echoes == refresh.Echoes(public_answered=True, reserved_answered=True, is_marked=True)
    assert (await refresh.refresh_peer(shell, peer, None, OLD, pattern=PATTERN)).reserved_answered is False
    entry = await refresh.read_neighbour(shell, peer, RESERVED)
    assert entry is not None
    assert (entry.lladdr, entry.nud) == ("02:00:00:00:00:0c", "STALE")
    assert await refresh.is_silent(shell, peer, OLD, PUBLIC) is True
    assert await refresh.is_silent(shell, peer, PUBLIC, RESERVED) is False


async def test_cold_the_story_goes_through_it(door: Door) -> None:
    async with open_pool(door.bench.settings()) as pool:
        await check_story(Shell(pool), door.peer)


async def test_armed_the_story_goes_through_it_and_it_is_known_to_be_restricted(door: Door) -> None:
    armed = ArmedPeers(door.bench.settings())
    try:
        armed.set_peers((door.peer,))
        assert armed.show()[0].is_restricted is None
        await poll_until(lambda: armed.is_armed(door.peer), "armed")
        await asyncio.gather(*(check_story(armed, door.peer) for _ in range(4)))
        assert armed.is_armed(door.peer), "all of it over one loop"
        assert armed.show()[0].is_restricted is True
    finally:
        await armed.close()


async def test_a_plain_shell_is_known_to_be_wider(tmp_path: Path) -> None:
    with open_bench(tmp_path) as bench:
        peer = bench.add_peer()
        armed = ArmedPeers(bench.settings())
        try:
            armed.set_peers((peer,))
            await poll_until(lambda: armed.is_armed(peer), "armed")
            assert armed.show()[0].is_restricted is False
            assert await refresh.is_silent(armed, peer, "127.0.0.1", "127.0.0.2") is False
        finally:
            await armed.close()


async def test_what_it_refuses_is_the_peers_row(door: Door) -> None:
    async with open_pool(door.bench.settings()) as pool:
        with pytest.raises(PeerError, match="do-failover-peer refused .not one to four addresses.*authorize") as caught:
            await refresh.read_neighbour(Shell(pool), door.peer, "192.0.2.1")
        assert caught.value.kind == "command"
        with pytest.raises(PeerError, match="its key runs do-failover-peer only") as caught:
            await pool.run(door.peer, "id")
        assert caught.value.kind == "command"


async def test_a_user_who_may_not_ping_is_said(tmp_path: Path, place: Path) -> None:
    ping = '#!/bin/sh\n[ "$1" != -V ] || exit 0\necho "ping: socket: Operation not permitted" >&2\nexit 2\n'
    with open_bench(tmp_path) as bench:
        door = open_door(place / "stand", SHELLS["dash"], bench, ping=ping)
        async with open_pool(bench.settings()) as pool:
            for ask in (
                refresh.refresh_peer(Shell(pool), door.peer, PUBLIC, RESERVED, pattern=PATTERN),
                refresh.is_silent(Shell(pool), door.peer, OLD, PUBLIC),
            ):
                with pytest.raises(PeerError, match="may not ping.*ping_group_range"):
                    await ask


async def test_a_script_without_its_list_says_so(tmp_path: Path, place: Path) -> None:
    with open_bench(tmp_path) as bench:
        stand = make_stand(place / "stand", SHELLS["dash"], logger="")
        peer = bench.add_peer(options=f'restrict,command="{stand.script}" ', user="dofailover")
        said: list[str] = []
        armed = ArmedPeers(bench.settings(), say=said.append)
        try:
            armed.set_peers((peer,))
            await poll_until(lambda: bool(said), "a sentence")
        finally:
            await armed.close()
        assert "needs --allow" in said[0]


# -- a thief


def test_a_thief_gets_the_script_whatever_is_asked_for(door: Door, place: Path) -> None:
    canary = place / "stand" / "record" / "canary"
    for arguments in (
        (door.login,),
        ("-tt", door.login),
        (door.login, f"touch {canary}"),
        (door.login, "sh", "-c", f"'touch {canary}'"),
        (door.login, f"1 state {RESERVED}; touch {canary}"),
        ("-s", door.login, "sftp"),
        ("-o", "SendEnv=*", "-o", f"SetEnv=ENV={canary}", door.login, "env"),
    ):
        done = door.ssh(*arguments)
        assert re.sub(r"\r", "", done.stdout) in {"do-failover-peer hello\n", ""}, arguments
    assert not canary.exists()
    done = door.ssh(door.login, stdin="1 :\n")
    assert done.stdout == "do-failover-peer hello\ndo-failover-peer 1 0\n\ndo-failover-peer.\n"


def test_a_thief_copies_nothing(door: Door, place: Path) -> None:
    (place / "loot").write_text("x")
    record = place / "stand" / "record"
    for program in ("scp", "sftp"):
        done = door.ssh(f"{door.login}:{place}/loot", str(record / "copy"), program=program)
        assert done.returncode != 0
    assert door.ssh("-O", str(place / "loot"), f"{door.login}:{record}/put", program="scp").returncode != 0
    assert not (record / "copy").exists()
    assert not (record / "put").exists()


def test_a_thief_forwards_nothing(door: Door, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as inside:
        inside.settimeout(0.5)
        port = inside.getsockname()[1]
        assert door.ssh("-W", f"127.0.0.1:{port}", door.login, stdin="hello").returncode != 0
        assert "administratively prohibited" in door.ssh("-W", f"127.0.0.1:{port}", door.login).stderr
        with pytest.raises(TimeoutError):
            inside.accept()
    remote = free_port("127.0.0.1")
    done = door.ssh("-o", "ExitOnForwardFailure=yes", "-R", f"127.0.0.1:{remote}:127.0.0.1:1", door.login)
    assert (done.returncode, "remote port forwarding failed" in done.stderr) == (255, True)
    done = door.ssh("-o", "ExitOnForwardFailure=yes", "-R", f"{tmp_path}/sock:127.0.0.1:1", door.login)
    assert (done.returncode, (tmp_path / "sock").exists()) == (255, False)


@pytest.mark.skipif(shutil.which("ssh-agent") is None, reason="needs ssh-agent")
def test_a_thief_gets_no_agent_no_display_no_tunnel_no_terminal(door: Door, tmp_path: Path) -> None:
    where = str(tmp_path / "agent")
    with subprocess.Popen(["ssh-agent", "-D", "-a", where], stdout=subprocess.DEVNULL) as agent:
        try:
            done = door.ssh("-A", "-v", door.login, SSH_AUTH_SOCK=where)
            assert done.stdout == "do-failover-peer hello\n"
        finally:
            agent.terminate()
    done = door.ssh("-tt", door.login)
    assert "PTY allocation request failed" in done.stderr
    done = door.ssh("-w", "any:any", "-o", "Tunnel=ethernet", "-o", "ExitOnForwardFailure=yes", door.login)
    assert done.returncode != 0
    done = door.ssh("-X", door.login, DISPLAY=":99")
    assert "DISPLAY" not in done.stdout


def test_the_key_counts_from_the_load_balancers_only(tmp_path: Path, place: Path) -> None:
    with open_bench(tmp_path) as bench:
        door = open_door(place / "stand", SHELLS["dash"], bench)
        assert door.ssh(door.login, stdin="1 :\n").returncode == 0
        assert door.ssh("-b", "127.0.0.77", door.login, stdin="1 :\n").returncode == 255
