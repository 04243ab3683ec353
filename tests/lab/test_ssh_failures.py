"""Every way in which a peer fails: its kind, and the operator's sentence."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sshd_bench import SSHD, Bench, Server, free_port, make_key, mute_peer, open_bench, open_pool, poll_until, silent_peer

from do_failover.errors import PeerError
from do_failover.model import Peer
from do_failover.ssh.sentences import Target, describe_failure
from do_failover.ssh.trust import Trust

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from do_failover.ssh import SshSettings

pytestmark = pytest.mark.skipif(SSHD is None, reason="needs OpenSSH's sshd")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with open_bench(tmp_path) as opened:
        yield opened


async def fail(settings: SshSettings, peer: Peer, command: str = "true", timeout_s: float | None = None) -> PeerError:
    """Return the one PeerError that this run ends with; its message names the peer."""
    async with open_pool(settings) as pool:
        with pytest.raises(PeerError) as caught:
            await pool.run(peer, command, timeout_s=timeout_s)
    assert caught.value.message.startswith(f"{peer.host}: ")
    assert "\n" not in caught.value.message
    return caught.value


def expect(error: PeerError, kind: str, *parts: str) -> None:
    assert error.kind == kind, error.message
    for part in parts:
        assert part in error.message


# -- the network


async def test_refused_by_tcp(bench: Bench) -> None:
    error = await fail(bench.settings(), Peer(0, "127.0.0.7", None, free_port("127.0.0.7")))
    expect(error, "unreachable", "refused the connection", "sshd is not running")


async def test_no_answer_to_tcp(bench: Bench) -> None:
    with silent_peer() as peer:
        error = await fail(bench.settings(connect_timeout_s=0.3), peer)
    expect(error, "unreachable", "no answer from 127.0.0.8", "within 0.3 s", "firewall")


@pytest.mark.parametrize(("number", "part"), [(errno.EHOSTUNREACH, "there is no way to"), (errno.ENETUNREACH, "no route")])
def test_no_way_there(bench: Bench, number: int, part: str) -> None:
    target = Target("app1", "10.0.0.1", 22, "me", 5.0, phase="tcp")
    error = describe_failure(OSError(number, os.strerror(number)), target, Trust(bench.settings()).load())
    expect(error, "unreachable", "app1: ", part)


async def test_name_that_does_not_resolve(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    error = await fail(bench.settings(), Peer(0, "app1.internal"))
    expect(error, "unreachable", "'app1.internal' does not resolve", "check the fan-out list")


async def test_name_that_is_none(bench: Bench) -> None:
    expect(await fail(bench.settings(), Peer(0, "a" * 70 + ".internal")), "unreachable", "cannot be used", "fan-out list")


async def test_resolver_that_hangs_delays_nobody(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    good, released, asked = bench.add_peer(), threading.Event(), []
    real = socket.getaddrinfo

    def look_up(host: str, *rest: object, **options: object) -> object:
        if host.endswith(".internal"):
            asked.append(host)
            released.wait()
            raise socket.gaierror(socket.EAI_AGAIN, "later")
        return real(host, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    try:
        async with open_pool(bench.settings(connect_timeout_s=1.0, concurrency=64)) as pool:
            slow = [asyncio.create_task(pool.connect(Peer(number, f"app{number}.internal"))) for number in range(40)]
            await poll_until(lambda: len(asked) == 40, "all names being looked up")
            assert (await pool.run(good, "echo fine")).stdout == "fine\n"
            rows = await asyncio.gather(*slow, return_exceptions=True)
    finally:
        released.set()
    assert {str(row).partition(": ")[2].partition("'")[0] for row in rows} == {"the name "}
    assert all("was not resolved within 1 s" in str(row) for row in rows)


# -- what listens there


async def test_accepts_and_never_speaks(bench: Bench) -> None:
    with mute_peer() as peer:
        error = await fail(bench.settings(connect_timeout_s=0.3), peer)
    expect(error, "unreachable", "accepts TCP, but the SSH login was not over within 0.3 s")


async def test_says_its_version_and_nothing_more(bench: Bench) -> None:
    async with Server(says=b"SSH-2.0-OpenSSH_9.2\r\n") as server:
        error = await fail(bench.settings(connect_timeout_s=0.3), server.peer)
    expect(error, "unreachable", "accepts TCP, but the SSH login was not over")


@pytest.mark.parametrize("says", [b"", b"Not allowed at this time\r\n"])
async def test_disconnects_at_once(bench: Bench, says: bytes) -> None:
    async with Server(says=says) as server:
        error = await fail(bench.settings(), server.peer)
    expect(error, "unreachable", "closed the connection during the SSH login", "MaxStartups")


@pytest.mark.parametrize(
    "says",
    [
        b"SSH-2.0-x\r\n" + b"\xff" * 4096,
        b"SSH-2.0-x\r\n\x00\x00\x00\x0c\x0a" + b"\x14" + b"\x00" * 40,
        b"SSH-2.0-\x1b[31m\xff\xfe\r\n" + b"\x00\x00\x00\x1c\x04\x14" + b"\xee" * 60,
        b"SSH-1.5-old\r\n",
        # an unencrypted SSH_MSG_DISCONNECT whose reason would colour the operator's terminal
        b"SSH-2.0-x\r\n\x00\x00\x00\x1c\x05\x01\x00\x00\x00\x0b\x00\x00\x00\x09\x1b[31mred\n\x00\x00\x00\x00" + b"\x00" * 5,
        b"SSH-2.0-" + b"x" * 70000,
        b"HTTP/1.1 400 Bad Request\r\n" * 5000,
    ],
)
async def test_garbage(bench: Bench, says: bytes) -> None:
    async with Server(says=says) as server:
        error = await fail(bench.settings(connect_timeout_s=2.0), server.peer)
    assert error.kind == "unreachable"
    assert error.message.isprintable()
    assert any(part in error.message for part in ("does not speak SSH", "closed the connection", "no name yet"))


# -- keys


async def test_key_not_accepted(bench: Bench) -> None:
    peer, other = bench.add_peer(), make_key(bench.directory / "other")
    error = await fail(bench.settings(identity_file=str(other), user="root"), peer)
    expect(error, "refused", "refused every key offered for user 'root'", "authorized_keys")


async def test_host_key_unknown(bench: Bench) -> None:
    peer = bench.add_peer(is_known=False)
    error = await fail(bench.settings(), peer)
    expect(error, "host_key", "is not in", "SHA256:", f"ssh-keyscan -p {peer.port} {peer.host} >> {bench.known_hosts}")
    assert "Accepted" not in bench.log()


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa"])
async def test_host_key_changed(bench: Bench, kind: str) -> None:
    peer = bench.add_peer(is_known=False)
    bench.know(peer, make_key(bench.directory / "former", kind=kind).with_suffix(".pub"))
    before = bench.known_hosts.read_text()
    error = await fail(bench.settings(), peer)
    expect(
        error,
        "host_key",
        "its host key changed",
        "an attack, or a rebuilt Droplet",
        f"ssh-keygen -R '[{peer.host}]:{peer.port}'",
    )
    assert "Accepted" not in bench.log()
    assert bench.known_hosts.read_text() == before


async def test_host_key_revoked(bench: Bench) -> None:
    peer = bench.add_peer()
    with bench.known_hosts.open("a") as file:
        file.write(f"@revoked * {bench.host_key().read_text()}")
    expect(await fail(bench.settings(), peer), "host_key", "marked @revoked")


LAX = "StrictHostKeyChecking no\nUserKnownHostsFile none\nGlobalKnownHostsFile none\nVerifyHostKeyDNS yes\n"


@pytest.mark.parametrize("known", ["empty", "wrong"])
async def test_ssh_config_cannot_switch_checks_off(bench: Bench, known: str) -> None:
    peer = bench.add_peer(is_known=False)
    if known == "wrong":
        bench.know(peer, bench.identity.with_suffix(".pub"))
    config = bench.directory / "config"
    config.write_text(LAX + f"Host app1\n HostName {peer.host}\n Port {peer.port}\n")
    for target in (peer, Peer(1, "app1")):
        error = await fail(bench.settings(ssh_config=str(config)), target)
        expect(error, "host_key", "changed" if known == "wrong" else "is not in")
    assert "Accepted" not in bench.log()


# -- files that concern all peers


def break_identity(bench: Bench, how: str) -> dict[str, object]:
    path = bench.directory / "broken"
    if how == "directory":
        path.mkdir()
    elif how == "malformed":
        path.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nnonsense\n-----END OPENSSH PRIVATE KEY-----\n")
    elif how == "garbage":
        path.write_bytes(os.urandom(300))
    elif how == "encrypted":
        make_key(path, passphrase="secret")
    return {"identity_file": str(path)}


@pytest.mark.parametrize(
    ("how", "part"),
    [
        ("missing", "cannot be read (No such file"),
        ("directory", "cannot be read (Is a directory"),
        ("malformed", "is not a private key"),
        ("garbage", "is not a private key"),
        ("encrypted", "has a passphrase, which is never asked for"),
    ],
)
async def test_identity_file(bench: Bench, how: str, part: str) -> None:
    peers = [bench.add_peer(number) for number in range(2)]
    settings = bench.settings(**break_identity(bench, how))
    for peer in peers:
        expect(await fail(settings, peer), "refused", "identity file", part)


async def test_known_hosts_missing_or_unreadable(bench: Bench) -> None:
    peer = bench.add_peer()
    for path, part in ((bench.directory / "absent", "No such file"), (bench.directory, "Is a directory")):
        expect(await fail(bench.settings(known_hosts=str(path)), peer), "host_key", f"known_hosts {path} cannot be read ({part}")


async def test_known_hosts_malformed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    known, unknown = bench.add_peer(0), bench.add_peer(1, is_known=False)
    monkeypatch.setenv("HOME", str(bench.directory))  # a default file must not step in for an empty one
    (bench.directory / ".ssh").mkdir()
    (bench.directory / ".ssh" / "known_hosts").write_text(f"[{unknown.host}]:{unknown.port} {bench.host_key(1).read_text()}")
    key = bench.host_key().read_bytes()
    bench.known_hosts.write_bytes(b"oneword\n@odd a b\n|1|x|y " + key + b"\xff\xfe\n" + bench.known_hosts.read_bytes())
    expect(await fail(bench.settings(), unknown), "host_key", f"line 1 of {bench.known_hosts} cannot be read, nor can 3 more")
    async with open_pool(bench.settings()) as pool:
        await pool.connect(known)  # the other lines count (I9)
    bench.known_hosts.write_text("")
    expect(await fail(bench.settings(), unknown), "host_key", "is not in")


@pytest.mark.parametrize(("text", "part"), [(None, "No such file"), ("Port many\n", "line 1"), ("Host 'a\n", "line 1")])
async def test_ssh_config_unusable(bench: Bench, text: str | None, part: str) -> None:
    config = bench.directory / "config"
    if text is not None:
        config.write_text(text)
    expect(await fail(bench.settings(ssh_config=str(config)), bench.add_peer()), "unreachable", "ssh_config", part)


# -- commands


def find_process(marker: str) -> int | None:
    """Return the process that has the marker, which no other test uses, for one of its arguments."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if marker.encode() in entry.read_bytes().split(b"\0"):
                return int(entry.parent.name)
    return None


def is_running(marker: str) -> Callable[[], bool]:
    return lambda: find_process(marker) is not None


@pytest.mark.root
async def test_command_that_takes_too_long_is_ended_there(bench: Bench) -> None:
    peer, marker = bench.add_peer(user="tester"), f"3600.{os.getpid()}1"
    async with open_pool(bench.settings()) as pool:
        with pytest.raises(PeerError) as caught:
            await pool.run(peer, f"echo begun; exec sleep {marker}", timeout_s=0.3)
        expect(caught.value, "command", "was not done within 0.3 s", "told to end", f"sleep {marker}")
        await poll_until(lambda: not is_running(marker)(), "the remote command's end")
        assert (await pool.run(peer, "echo next")).stdout == "next\n"
    assert bench.log().count("Accepted publickey") == 1


@pytest.mark.root
async def test_cancelled_command_is_ended_there(bench: Bench) -> None:
    peer, marker = bench.add_peer(user="tester"), f"3600.{os.getpid()}2"
    async with open_pool(bench.settings()) as pool:
        running = asyncio.create_task(pool.run(peer, f"sleep {marker}", timeout_s=60))
        await poll_until(is_running(marker), "the remote command")
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await poll_until(lambda: not is_running(marker)(), "the remote command's end")
        assert pool.is_connected(peer)


async def test_flood(bench: Bench) -> None:
    peer = bench.add_peer()
    async with open_pool(bench.settings()) as pool:
        with pytest.raises(PeerError) as caught:
            await pool.run(peer, f"exec yes 'a flood of {os.getpid()}'")
        expect(caught.value, "command", "wrote more than 64 KiB")
        await poll_until(lambda: not is_running(f"a flood of {os.getpid()}")(), "the flood's end")
        assert (await pool.run(peer, "echo next")).stdout == "next\n"


async def test_cut_in_the_middle_of_a_command(bench: Bench) -> None:
    real, marker = bench.add_peer(), f"3600.{os.getpid()}3"
    async with Server(forward=real) as relay:
        bench.know(relay.peer, bench.host_key())
        async with open_pool(bench.settings()) as pool:
            running = asyncio.create_task(pool.run(relay.peer, f"exec sleep {marker}", timeout_s=60))
            await poll_until(is_running(marker), "the remote command")
            relay.cut()
            with pytest.raises(PeerError) as caught:
                await running
            expect(caught.value, "unreachable", "the connection was cut", "while 'exec sleep", "unknown")
            assert relay.accepted == 1  # it was not sent a second time
            assert (await pool.run(relay.peer, f"echo next; kill {find_process(marker)}")).stdout == "next\n"
            assert relay.accepted == 2


async def test_sshd_that_starts_no_command(bench: Bench) -> None:
    peer = bench.add_peer()
    bench.reconfigure(0, "MaxSessions 0")
    expect(await fail(bench.settings(), peer), "command", "does not start 'true'", "MaxSessions")
