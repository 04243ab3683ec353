"""PeerConnections on real sshd's: what works, and that one bad peer harms nobody."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sshd_bench import (
    SSHD,
    Bench,
    Server,
    make_key,
    me,
    mute_peer,
    open_bench,
    open_pool,
    poll_until,
    silent_peer,
    sockets,
    wait_until,
)

from do_failover.errors import PeerError
from do_failover.model import Peer
from do_failover.ssh import CommandResult, PeerConnections

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(SSHD is None, reason="needs OpenSSH's sshd")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with open_bench(tmp_path) as opened:
        yield opened


async def test_runs_commands_on_one_connection(bench: Bench) -> None:
    peer = bench.add_peer()
    async with open_pool(bench.settings()) as pool:
        assert not pool.is_connected(peer)
        await asyncio.gather(*(pool.connect(peer) for _ in range(8)))
        assert pool.is_connected(peer)
        assert await pool.run(peer, "echo out; echo err >&2; exit 3") == CommandResult("out\n", 3, "err\n")
        assert await pool.run(peer, "cat", stdin="hällo") == CommandResult("hällo", 0)
        assert await pool.run(peer, "cat") == CommandResult("", 0)
        assert (await pool.run(peer, "printf 'a\\377b'")).stdout == "a\ufffdb"
        assert await pool.run(peer, "kill -KILL $$") == CommandResult("", None, signal="KILL")
        assert await pool.run(peer, "true", stdin="x" * 3_000_000) == CommandResult("", 0)  # nobody reads it
        results = await asyncio.gather(*(pool.run(peer, f"echo {number}") for number in range(8)))
        assert [int(result.stdout) for result in results] == list(range(8))
    assert bench.log().count("Accepted publickey") == 1
    assert not pool.is_connected(peer)


async def test_stderr_is_kept_from_its_end_and_stdout_whole(bench: Bench) -> None:
    peer = bench.add_peer()
    async with open_pool(bench.settings()) as pool:
        stdout, stderr = "head -c 65536 /dev/zero | tr '\\0' a", "head -c 90000 /dev/zero | tr '\\0' b >&2; echo E >&2"
        result = await pool.run(peer, f"{stdout}; {stderr}")
    assert result.stdout == "a" * 65536
    assert result.stderr == "b" * 2046 + "E\n"


@pytest.fixture
def agent(bench: Bench) -> Iterator[str]:
    """A real ssh-agent that holds the bench's key; yields its socket."""
    where = str(bench.directory / "agent")
    process = subprocess.Popen(["ssh-agent", "-D", "-a", where], stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: Path(where).exists(), "ssh-agent")
        subprocess.run(["ssh-add", "-q", str(bench.identity)], check=True, env={**os.environ, "SSH_AUTH_SOCK": where})
        yield where
    finally:
        process.terminate()
        process.wait()


def sign_host_key(bench: Bench, index: int) -> None:
    """Let a new authority vouch for that sshd, and known_hosts for the authority; sshd reads its configuration again."""
    authority, key = make_key(bench.directory / "ca"), bench.host_key(index)
    sign = ["ssh-keygen", "-q", "-s", str(authority), "-I", "x", "-h", "-n", f"127.0.0.{index + 1}", str(key)]
    subprocess.run(sign, check=True)
    with bench.known_hosts.open("a") as file:
        file.write(f"@cert-authority * {authority.with_suffix('.pub').read_text()}")
    bench.reconfigure(index, f"HostCertificate {key.with_name('host_key-cert.pub')}")


def hash_names(bench: Bench) -> None:
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(bench.known_hosts)], check=True, capture_output=True)
    assert "127.0.0.1" not in bench.known_hosts.read_text()


async def test_hashed_known_hosts_and_authorities(bench: Bench) -> None:
    hashed, signed = bench.add_peer(0), bench.add_peer(1, is_known=False)
    hash_names(bench)
    sign_host_key(bench, 1)
    async with open_pool(bench.settings()) as pool:
        await pool.connect(hashed)
        await pool.connect(signed)


async def test_a_key_added_to_known_hosts_counts_at_once(bench: Bench) -> None:
    peer = bench.add_peer(is_known=False)
    async with open_pool(bench.settings()) as pool:
        with pytest.raises(PeerError):
            await pool.connect(peer)
        bench.know(peer, bench.host_key())
        await pool.connect(peer)


async def test_ssh_config_is_honoured(bench: Bench) -> None:
    peer = bench.add_peer()
    other = make_key(bench.directory / "other")
    config = bench.directory / "config"
    config.write_text(f"Host app1\n HostName {peer.host}\n Port {peer.port}\n User {me()}\n IdentityFile {bench.identity}\n")
    named = Peer(0, "app1")
    async with open_pool(bench.settings(ssh_config=str(config), identity_file=None)) as pool:
        assert (await pool.run(named, "id -un")).stdout == f"{me()}\n"
    async with open_pool(bench.settings(ssh_config=str(config), identity_file=str(other))) as pool:
        with pytest.raises(PeerError) as caught:
            await pool.connect(named)
    assert caught.value.kind == "refused"


async def test_the_user_is_the_peers_then_the_settings_then_ssh_configs_then_mine(bench: Bench) -> None:
    peer = bench.add_peer()
    config = bench.directory / "config"
    config.write_text("User from-config\n")
    wanted = [
        (
            "from-list",
            Peer(0, peer.host, "from-list", peer.port),
            bench.settings(user="from-settings", ssh_config=str(config)),
        ),
        ("from-settings", peer, bench.settings(user="from-settings", ssh_config=str(config))),
        ("from-config", peer, bench.settings(ssh_config=str(config))),
    ]
    for user, target, settings in wanted:
        async with open_pool(settings) as pool:
            with pytest.raises(PeerError, match=f"for user '{user}'"):
                await pool.connect(target)
    async with open_pool(bench.settings()) as pool:
        assert (await pool.run(peer, "id -un")).stdout == f"{me()}\n"


async def test_agent(bench: Bench, agent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = bench.add_peer()
    monkeypatch.setenv("HOME", str(bench.directory))  # no default keys
    async with open_pool(bench.settings(identity_file=None)) as pool:
        monkeypatch.setenv("SSH_AUTH_SOCK", str(bench.directory / "nobody-there"))
        with pytest.raises(PeerError, match="refused every key"):
            await pool.connect(peer)
    monkeypatch.setenv("SSH_AUTH_SOCK", agent)
    before = sockets()
    async with open_pool(bench.settings(identity_file=None)) as pool:
        await pool.connect(peer)
        assert (await pool.run(peer, "echo ${SSH_AUTH_SOCK:-none}")).stdout == "none\n"
    assert sockets() == before
    other = make_key(bench.directory / "other")
    async with open_pool(bench.settings(identity_file=str(other))) as pool:
        with pytest.raises(PeerError, match="refused every key"):  # the agent is not asked beside an identity file
            await pool.connect(peer)


async def test_nothing_of_ours_goes_over(bench: Bench, agent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = bench.add_peer()
    monkeypatch.setenv("SSH_AUTH_SOCK", agent)
    monkeypatch.setenv("HOME", str(bench.directory))
    monkeypatch.setenv("LC_SECRET", "token")
    config = bench.directory / "config"
    wishes = (
        "SendEnv *",
        "SetEnv LC_OTHER=1",
        "ForwardAgent yes",
        "ForwardX11Trusted yes",
        "RequestTTY force",
        "RemoteCommand false",
    )
    config.write_text("\n".join(wishes))
    bench.reconfigure(0, "AcceptEnv *")
    async with open_pool(bench.settings(ssh_config=str(config), identity_file=None)) as pool:
        result = await pool.run(peer, "env | grep -E 'LC_|DISPLAY|AUTH_SOCK|SSH_TTY'; tty")
    assert (result.stdout, result.stderr) == ("not a tty\n", "")


async def test_one_bad_peer_beside_three_good_ones(bench: Bench) -> None:
    good = [bench.add_peer(number) for number in range(3)]
    with mute_peer() as mute, silent_peer() as silent:
        async with open_pool(bench.settings(connect_timeout_s=1.0)) as pool:
            bad = [asyncio.create_task(pool.run(peer, "echo never")) for peer in (mute, silent)]
            results = await asyncio.gather(*(pool.run(peer, "echo fine") for peer in good))
            assert not any(task.done() for task in bad)  # the good ones did not wait for them
            rows = await asyncio.gather(*bad, return_exceptions=True)
            assert all(pool.is_connected(peer) for peer in good)
            assert not any(pool.is_connected(peer) for peer in (mute, silent))
    assert [result.stdout for result in results] == ["fine\n"] * 3
    assert [row.kind for row in rows if isinstance(row, PeerError)] == ["unreachable"] * 2


async def test_logins_are_bounded_by_concurrency(bench: Bench) -> None:
    async with Server(says=b"SSH-2.0-Slow\r\n") as server:
        peers = [Peer(number, server.peer.host, f"u{number}", server.peer.port) for number in range(16)]
        async with open_pool(bench.settings(concurrency=2, connect_timeout_s=0.2)) as pool:
            rows = await asyncio.gather(*(pool.connect(peer) for peer in peers), return_exceptions=True)
        assert all(isinstance(row, PeerError) for row in rows)
        assert server.accepted == 16
        assert server.most_open <= 6  # after half of its time each gives its turn to the next: two pairs, and a third by chance


async def test_a_cancelled_caller_does_not_take_the_login_from_the_others(bench: Bench) -> None:
    peer = bench.add_peer()
    async with open_pool(bench.settings()) as pool:
        first = asyncio.create_task(pool.connect(peer))
        second = asyncio.create_task(pool.connect(peer))
        await asyncio.sleep(0)
        first.cancel()
        await second
        assert pool.is_connected(peer)
    assert first.cancelled()
    assert bench.log().count("Accepted publickey") == 1


async def test_no_task_and_no_socket_is_left(bench: Bench) -> None:
    good, unknown = bench.add_peer(0), bench.add_peer(1, is_known=False)
    tasks, before = asyncio.all_tasks(), sockets()
    with mute_peer() as mute, silent_peer() as silent:
        pool = PeerConnections(bench.settings(connect_timeout_s=60.0))
        inside = sockets()
        await pool.run(good, "true")
        with pytest.raises(PeerError):
            await pool.connect(unknown)
        with pytest.raises(PeerError, match=r"does not speak SSH"):  # ends between TCP and SSH
            await pool.connect(Peer(8, good.host, "bell\a", good.port))
        assert len(sockets()) == len(inside) + 1
        waiting = [asyncio.create_task(pool.run(peer, "true")) for peer in (mute, silent)]
        waiting.append(asyncio.create_task(pool.run(good, "while echo on; do sleep 0.1; done")))
        await poll_until(lambda: len(sockets()) >= len(inside) + 3, "one open connection and two logins")
        await pool.close()
        assert sockets() == inside
        rows = await asyncio.gather(*waiting, return_exceptions=True)
        assert [row.kind for row in rows if isinstance(row, PeerError)] == ["unreachable"] * 3
        with pytest.raises(PeerError, match="being closed"):
            await pool.connect(good)
    assert sockets() == before
    assert asyncio.all_tasks() == tasks
    await pool.close()


async def test_a_connection_found_dead_is_reopened_once(bench: Bench) -> None:
    real = bench.add_peer()
    async with Server(forward=real) as relay:
        bench.know(relay.peer, bench.host_key())
        async with open_pool(bench.settings()) as pool:
            await pool.connect(relay.peer)
            relay.cut()
            assert (await pool.run(relay.peer, "echo again")).stdout == "again\n"
            assert relay.accepted == 2
            relay.cut()
            await poll_until(lambda: not pool.is_connected(relay.peer), "the cut being noticed")
            await pool.connect(relay.peer)
            assert relay.accepted == 3


async def test_a_connection_that_went_silent_is_reopened_once(bench: Bench) -> None:
    real = bench.add_peer()
    async with Server(forward=real) as relay:
        bench.know(relay.peer, bench.host_key())
        async with open_pool(bench.settings(connect_timeout_s=0.7)) as pool:
            await pool.connect(relay.peer)
            relay.freeze()
            assert (await pool.run(relay.peer, "echo again")).stdout == "again\n"
            assert relay.accepted == 2


async def test_asyncssh_does_not_log_to_the_terminal(bench: Bench, capfd: pytest.CaptureFixture[str]) -> None:
    handler = logging.StreamHandler()
    logging.getLogger().addHandler(handler)
    try:
        async with open_pool(bench.settings()) as pool:
            logging.getLogger("asyncssh").setLevel(logging.DEBUG)
            await pool.run(bench.add_peer(), "true")
    finally:
        logging.getLogger("asyncssh").setLevel(logging.NOTSET)
        logging.getLogger().removeHandler(handler)
    assert capfd.readouterr() == ("", "")
