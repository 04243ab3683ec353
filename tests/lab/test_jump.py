"""Peers behind jump hosts: one connection each, checked like any other, whatever an ssh_config says."""

from __future__ import annotations

import asyncio
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from sshd_bench import SSHD, Bench, Server, free_port, make_key, me, open_bench, open_pool, poll_until, silent_peer

from do_failover.errors import PeerError
from do_failover.model import Peer
from do_failover.ssh import ArmedPeers, Pace, PeerConnections
from do_failover.ssh.jump import Jump

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from do_failover.ssh import SshSettings

pytestmark = pytest.mark.skipif(SSHD is None, reason="needs OpenSSH's sshd")

STOCK = "MaxStartups 10:30:100\nLogLevel DEBUG1\n"
LAX = "StrictHostKeyChecking no\nUserKnownHostsFile none\nGlobalKnownHostsFile none\n"


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with open_bench(tmp_path) as opened:
        yield opened


def write_config(bench: Bench, text: str) -> SshSettings:
    config = bench.directory / "config"
    config.write_text(text)
    return bench.settings(ssh_config=str(config))


def describe(name: str, host: Peer, jump: str = "none") -> str:
    """A host as ssh_config has it."""
    return f"Host {name}\n HostName {host.host}\n Port {host.port}\n ProxyJump {jump}\n"


def channels(bench: Bench, index: int) -> int:
    """How many channels a jump host was asked for."""
    return bench.log(index).count("server_request_direct_tcpip: originator")


def run_keygen(*arguments: object) -> None:
    subprocess.run(["ssh-keygen", "-q", *map(str, arguments)], check=True, capture_output=True)


async def fail(pool: PeerConnections, peer: Peer) -> PeerError:
    with pytest.raises(PeerError) as caught:
        await pool.run(peer, "true")
    assert caught.value.message.startswith(f"{peer.host}: ")
    assert "\n" not in caught.value.message
    return caught.value


async def test_sixty_peers_through_a_stock_bastion_on_one_connection(bench: Bench) -> None:
    bastion = bench.add_peer(0, config=STOCK)
    peers: list[Peer] = []
    for index in range(1, 5):  # one sshd listens on 16 addresses at most
        addresses = [f"127.0.{index}.{number}" for number in range(1, 16)]
        port = free_port(addresses[0])
        bench.add_peer(index, config="".join(f"ListenAddress {address}:{port}\n" for address in addresses))
        peers += [Peer(len(peers) + number, address, None, port) for number, address in enumerate(addresses)]
        for peer in peers[-15:]:
            bench.know(peer, bench.host_key(index))
    settings = write_config(bench, f"{describe('bastion', bastion)}Host 127.0.*.*\n ProxyJump bastion\n")
    async with open_pool(settings) as pool:
        results = await asyncio.gather(*(pool.run(peer, "echo here") for peer in peers))
        assert {result.stdout for result in results} == {"here\n"}
        assert channels(bench, 0) == 60
        assert sum(bench.log(index).count("Accepted publickey") for index in range(1, 5)) == 60
        assert bench.log(0).count("Accepted publickey") == 1
        assert bench.log(0).count("Connection from") == 1


@pytest.mark.parametrize("way", ["each its own", "a list"])
async def test_jumps_over_two_hosts_in_order(bench: Bench, way: str) -> None:
    outer, inner, peer = (bench.add_peer(number, config="LogLevel DEBUG1\n") for number in range(3))
    hosts = describe("outer", outer) + describe("inner", inner, "outer" if way == "each its own" else "none")
    jump = "inner" if way == "each its own" else f"{me()}@outer,ssh://inner:{inner.port}"
    async with open_pool(write_config(bench, hosts + describe("app1", peer, jump))) as pool:
        assert (await pool.run(Peer(0, "app1"), "echo here")).stdout == "here\n"
    assert f"target {inner.host} port {inner.port}" in bench.log(0)
    assert f"target {peer.host} port {peer.port}" in bench.log(1)
    assert (channels(bench, 0), channels(bench, 1)) == (1, 1)


async def test_a_jump_set_in_match_final_counts(bench: Bench) -> None:
    bastion, peer = bench.add_peer(0, config=STOCK), bench.add_peer(1)
    settings = write_config(bench, f"Match final host {peer.host}\n ProxyJump {bastion.host}:{bastion.port}\n")
    async with open_pool(settings) as pool:
        await pool.connect(peer)
    assert channels(bench, 0) == 1


@pytest.mark.parametrize("known", ["unknown", "changed", "revoked"])
async def test_a_jump_hosts_key_is_checked_whatever_ssh_config_says(bench: Bench, known: str) -> None:
    bastion, peer = bench.add_peer(0, is_known=known == "revoked", config=STOCK), bench.add_peer(1)
    if known == "changed":
        bench.know(bastion, bench.identity.with_suffix(".pub"))
    if known == "revoked":
        with bench.known_hosts.open("a") as file:
            file.write(f"@revoked * {bench.host_key(0).read_text()}")
    settings = write_config(bench, LAX + describe("bastion", bastion) + f"Host {peer.host}\n ProxyJump bastion\n")
    async with open_pool(settings) as pool:
        error = await fail(pool, peer)
    assert error.kind == "host_key"
    assert f"jump host {bastion.host}: its host key" in error.message
    assert {"unknown": "is not in", "changed": "key changed", "revoked": "marked @revoked"}[known] in error.message
    assert "Accepted" not in bench.log(0) + bench.log(1)


@pytest.mark.parametrize("known", ["unknown", "changed", "only at the jump host's address"])
async def test_a_peers_key_is_checked_behind_a_jump_host_too(bench: Bench, known: str) -> None:
    bastion, peer = bench.add_peer(0, config=STOCK), bench.add_peer(1, is_known=False)
    if known == "changed":
        bench.know(peer, bench.identity.with_suffix(".pub"))
    if known == "only at the jump host's address":
        bench.know(Peer(0, bastion.host, None, peer.port), bench.host_key(1))
    settings = write_config(bench, LAX + describe("bastion", bastion) + f"Host {peer.host}\n ProxyJump bastion\n")
    async with open_pool(settings) as pool:
        error = await fail(pool, peer)
    assert error.kind == "host_key"
    assert ("changed" if known == "changed" else "on the jump host 127.0.0.1: ssh-keyscan") in error.message
    assert "Accepted" not in bench.log(1)


async def test_hashed_names_and_authorities_count_for_jump_hosts(bench: Bench) -> None:
    hashed, signed, peer = bench.add_peer(0, config=STOCK), bench.add_peer(1, is_known=False, config=STOCK), bench.add_peer(2)
    run_keygen("-H", "-f", bench.known_hosts)
    authority, key = make_key(bench.directory / "ca"), bench.host_key(1)
    run_keygen("-s", authority, "-I", "x", "-h", "-n", signed.host, key)
    with bench.known_hosts.open("a") as file:
        file.write(f"@cert-authority * {authority.with_suffix('.pub').read_text()}")
    bench.reconfigure(1, f"HostCertificate {key.with_name('host_key-cert.pub')}")
    jump = f"{hashed.host}:{hashed.port},{signed.host}:{signed.port}"
    async with open_pool(write_config(bench, f"Host {peer.host}\n ProxyJump {jump}\n")) as pool:
        await pool.connect(peer)
    assert (channels(bench, 0), channels(bench, 1)) == (1, 1)


async def test_a_users_certificate_opens_jump_host_and_peer(bench: Bench) -> None:
    authority = make_key(bench.directory / "user_ca")
    trust = f"TrustedUserCAKeys {authority.with_suffix('.pub')}\n"
    bastion, peer = bench.add_peer(0, config=STOCK + trust), bench.add_peer(1, config=trust)
    for index in (0, 1):
        (bench.directory / f"sshd{index}" / "authorized_keys").write_text("")
    settings = write_config(bench, describe("bastion", bastion) + f"Host {peer.host}\n ProxyJump bastion\n")
    async with open_pool(settings) as pool:
        assert (await fail(pool, peer)).kind == "refused"
        run_keygen("-s", authority, "-I", "x", "-n", me(), bench.identity.with_suffix(".pub"))
        await pool.connect(peer)  # found beside the key, without a restart
    assert "Accepted publickey" in bench.log(0)
    assert all("ID x" in bench.log(index) for index in (0, 1))


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ("Host *\n ProxyJump bastion\n", "in a circle by way of bastion"),
        ("Host bastion\n ProxyJump other\nHost other\n ProxyJump bastion\nHost *\n ProxyJump bastion\n", "in a circle by way of"),
        ("Host app1\n ProxyJump app1\n", "in a circle by way of app1"),
        ("Host app1\n ProxyJump " + ",".join(f"j{number}" for number in range(9)) + "\n", "more than 8 hosts"),
        ("".join(f"Host j{n}\n ProxyJump j{n + 1}\n" for n in range(300)) + "Host app1\n ProxyJump j0\n", "more than 8 hosts"),
        ("ProxyJump bastion:none\n", "not understood ('bastion:none')"),
        ("ProxyJump bastion:0\n", "not understood"),
        ("ProxyJump -oProxyCommand=x\n", "not understood"),
        ("ProxyJump a,,b\n", "not understood"),
        ("ProxyCommand touch {0}\n", "ProxyCommand, which is never run"),
    ],
)
async def test_ways_that_lead_nowhere_are_refused(bench: Bench, config: str, part: str) -> None:
    trace = bench.directory / "trace"
    async with open_pool(write_config(bench, config.format(trace))) as pool:
        error = await fail(pool, Peer(0, "app1"))
    assert error.kind == "unreachable"
    assert part in error.message
    assert not trace.exists()


async def test_a_jump_host_that_was_cut_is_connected_to_again(bench: Bench) -> None:
    bastion, first, second = bench.add_peer(0, config=STOCK), bench.add_peer(1), bench.add_peer(2)
    async with Server(forward=bastion) as relay:
        bench.know(relay.peer, bench.host_key(0))
        jump = f"ProxyJump {relay.peer.host}:{relay.peer.port}\n"
        async with open_pool(write_config(bench, f"Host {first.host} {second.host}\n {jump}")) as pool:
            await asyncio.gather(pool.connect(first), pool.connect(second))
            assert relay.accepted == 1
            relay.cut()
            results = await asyncio.gather(*(pool.run(peer, "echo again") for peer in (first, second)))
            assert [result.stdout for result in results] == ["again\n"] * 2
            assert relay.accepted == 2
            relay.cut()
            await poll_until(lambda: not pool.is_connected(first), "the cut being noticed")
            await pool.connect(first)
            assert relay.accepted == 3


async def test_a_jump_host_that_went_silent_is_connected_to_again(bench: Bench) -> None:
    bastion, first, second = bench.add_peer(0, config=STOCK), bench.add_peer(1), bench.add_peer(2)
    async with Server(forward=bastion) as relay:
        bench.know(relay.peer, bench.host_key(0))
        jump = f"ProxyJump {relay.peer.host}:{relay.peer.port}\n"
        async with open_pool(write_config(bench, f"Host {first.host} {second.host}\n {jump}")) as pool:
            await pool.connect(first)
            relay.freeze()
            assert (await pool.run(second, "echo again")).stdout == "again\n"  # its login waits until the silence is noticed
            assert relay.accepted == 2


async def test_a_mute_jump_host_is_waited_for_once_and_is_each_peers_row(bench: Bench) -> None:
    good = bench.add_peer(0)
    async with Server(says=b"SSH-2.0-Slow\r\n") as mute:
        config = f"Host app*\n ProxyJump {mute.peer.host}:{mute.peer.port}\n"
        settings = write_config(bench, config)
        peers = [Peer(number, f"app{number}") for number in range(1, 21)]
        async with open_pool(bench.settings(ssh_config=settings.ssh_config, concurrency=2, connect_timeout_s=0.7)) as pool:
            waiting = [asyncio.create_task(pool.connect(peer)) for peer in peers]
            await poll_until(lambda: mute.accepted == 1, "the jump host being connected to")
            assert (await pool.run(good, "echo fine")).stdout == "fine\n"  # nobody waits for a turn meanwhile
            rows = await asyncio.gather(*waiting, return_exceptions=True)
        assert mute.accepted == 1
    for peer, row in zip(peers, rows, strict=True):
        assert isinstance(row, PeerError)
        assert row.message.startswith(f"{peer.host}: not reached, for jump host 127.0.0.1: ")
        assert "accepts TCP, but the SSH login was not over within 0.7 s" in row.message


async def test_a_jump_host_that_permits_or_reaches_nothing_is_named(bench: Bench) -> None:
    shut, bastion, peer = bench.add_peer(0, config="AllowTcpForwarding no\n"), bench.add_peer(1, config=STOCK), bench.add_peer(2)
    away = Peer(9, "127.0.0.7", None, free_port("127.0.0.7"))
    hosts = describe("shut", shut) + describe("bastion", bastion)
    config = f"{hosts}Host {peer.host}\n ProxyJump shut\nHost {away.host}\n ProxyJump bastion\n"
    async with open_pool(write_config(bench, config)) as pool:
        forbidden, refused = await fail(pool, peer), await fail(pool, away)
    assert (forbidden.kind, refused.kind) == ("unreachable", "unreachable")
    assert f"the jump host {shut.host} does not permit a channel to {peer.host} port {peer.port}" in forbidden.message
    assert f"the jump host {bastion.host} cannot connect to {away.host} port {away.port}" in refused.message


async def test_a_peer_that_keeps_the_jump_host_waiting_takes_it_from_nobody(bench: Bench) -> None:
    bastion, good = bench.add_peer(0, config=STOCK), bench.add_peer(1)
    with silent_peer() as silent:
        config = describe("bastion", bastion) + f"Host {good.host} {silent.host}\n ProxyJump bastion\n"
        settings = write_config(bench, config)
        async with open_pool(bench.settings(ssh_config=settings.ssh_config, connect_timeout_s=0.7)) as pool:
            error = await fail(pool, silent)
            assert "the jump host 127.0.0.1 did not connect to 127.0.0.8" in error.message
            assert (await pool.run(good, "echo fine")).stdout == "fine\n"
            assert bench.log(0).count("Accepted publickey") == 1


async def test_armed_peers_share_it_and_are_armed_again_after_a_cut(bench: Bench) -> None:
    bastion, first, second = bench.add_peer(0, config=STOCK), bench.add_peer(1), bench.add_peer(2)
    async with Server(forward=bastion) as relay:
        bench.know(relay.peer, bench.host_key(0))
        jump = f"ProxyJump {relay.peer.host}:{relay.peer.port}\n"
        pace = Pace(draw=lambda: 0.0)
        arms = ArmedPeers(write_config(bench, f"Host {first.host} {second.host}\n {jump}"), pace=pace)
        try:
            arms.set_peers((first, second))
            await poll_until(lambda: arms.is_armed(first) and arms.is_armed(second), "both are armed")
            assert relay.accepted == 1
            relay.cut()
            assert await arms.run(first, "echo again") == "again\n"
            await poll_until(lambda: arms.is_armed(first) and arms.is_armed(second), "both are armed again")
            assert relay.accepted == 2
        finally:
            await arms.close()


class SlowLink:
    """A jump host's connection whose channels open when told."""

    def __init__(self) -> None:
        self.connection, self.told, self.aborted, self.opened = self, asyncio.Event(), 0, 0

    async def create_connection(self, factory: object, host: str, port: int) -> tuple[Any, None]:
        await self.told.wait()
        self.opened += 1
        return self, None

    def abort(self) -> None:
        self.aborted += 1


async def test_a_channel_that_opens_after_its_caller_has_left_is_closed() -> None:
    link: Any = SlowLink()
    jump = Jump("bastion", link, set())
    calls = [asyncio.create_task(jump.create_connection(Any, "app1", 22)) for _ in range(2)]
    await asyncio.sleep(0)
    calls[0].cancel()
    await asyncio.wait(calls[:1])
    link.told.set()
    await asyncio.gather(*jump.openings)
    await calls[1]
    assert (link.opened, link.aborted, jump.openings) == (2, 1, set())
