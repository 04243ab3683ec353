"""A TCP connection from a peer through its real sshd, and its first data seen on a real link."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import asyncssh
import pytest
from sshd_bench import SSHD, Bench, free_port, open_bench, open_pool, poll_until, silent_peer

from do_failover.cli.peers_authorize import PROGRAM, Authorization
from do_failover.errors import PeerError
from do_failover.refresh import TcpProber
from do_failover.ssh import ArmedPeers, PeerConnections

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from do_failover.model import Peer

pytestmark = pytest.mark.skipif(SSHD is None, reason="needs OpenSSH's sshd")

ADDRESS = "127.0.0.5"
DATA = bytes(range(16))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with open_bench(tmp_path) as opened:
        yield opened


class Service:
    """What listens at the reserved IP: notes what it gets, and may answer more than anybody wants."""

    def __init__(self, answers: bytes = b"", *, hangs_up: bool = True) -> None:
        self.got: list[bytes] = []
        self.answers, self.hangs_up, self.open_now = answers, hangs_up, 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open_now += 1
        with contextlib.suppress(ConnectionError):
            writer.write(self.answers)
            data = await reader.read()
            self.got.append(data)
            if not self.hangs_up:
                await writer.drain()
                await reader.read()
                while not reader.at_eof() or not writer.transport.is_closing():
                    writer.write(b"x" * 100_000)
                    await writer.drain()
        self.open_now -= 1
        writer.close()


@contextlib.asynccontextmanager
async def listening(service: Service) -> AsyncIterator[int]:
    server = await asyncio.start_server(service.serve, ADDRESS, 0)
    try:
        yield int(server.sockets[0].getsockname()[1])
        await poll_until(lambda: service.open_now == 0, "nobody is connected any more")
    finally:
        server.close()
        await server.wait_closed()


async def refuse(pool: PeerConnections, peer: Peer, port: int) -> PeerError:
    with pytest.raises(PeerError) as caught:
        await pool.probe_tcp(peer, ADDRESS, port, DATA)
    return caught.value


async def test_data_goes_from_the_peer_to_whoever_accepts(bench: Bench) -> None:
    peer, service = bench.add_peer(), Service()
    async with listening(service) as port, open_pool(bench.settings()) as pool:
        assert isinstance(pool, TcpProber)
        assert await pool.probe_tcp(peer, ADDRESS, port, DATA) is True
        assert await pool.probe_tcp(peer, ADDRESS, port, b"") is True
        assert (await pool.run(peer, "echo fine")).stdout == "fine\n"
        assert bench.log().count("Accepted publickey") == 1
    assert service.got == [DATA, b""]


async def test_nobody_accepts(bench: Bench) -> None:
    peer = bench.add_peer()
    async with open_pool(bench.settings()) as pool:
        assert await pool.probe_tcp(peer, ADDRESS, free_port(ADDRESS), DATA) is False
        with silent_peer() as silent:
            assert await pool.probe_tcp(peer, silent.host, silent.port, DATA) is False
            assert (await pool.run(peer, "echo fine")).stdout == "fine\n"


async def test_the_key_opens_one_port_and_nothing_else(bench: Bench) -> None:
    service = Service()
    async with listening(service) as port:
        options = f'restrict,port-forwarding,permitopen="{ADDRESS}:{port}",command="echo no shell" '
        peer, shut = bench.add_peer(0, options=options), bench.add_peer(1, options="restrict ")
        async with open_pool(bench.settings()) as pool:
            assert await pool.probe_tcp(peer, ADDRESS, port, DATA) is True
            assert (await pool.run(peer, "id")).stdout == "no shell\n"
            for who, where in ((peer, port + 1), (shut, port)):
                error = await refuse(pool, who, where)
                assert error.kind == "command"
                assert f'add port-forwarding,permitopen="{ADDRESS}:{where}"' in error.message
    assert service.got == [DATA]


async def test_what_authorize_prints_lets_it_connect_and_opens_no_port_there(bench: Bench) -> None:
    service = Service()
    async with listening(service) as port:
        given = Authorization("", "", ("127.0.0.0/8",), (ADDRESS,), port)
        peer = bench.add_peer(options=given.line.replace(PROGRAM, "echo"), user=None)
        async with open_pool(bench.settings()) as pool:
            assert await pool.probe_tcp(peer, ADDRESS, port, DATA) is True
            assert (await refuse(pool, peer, port + 1)).kind == "command"
            connection = (await pool.obtain(peer)).connection
            with pytest.raises(asyncssh.ChannelListenError):
                await connection.forward_remote_port("127.0.0.1", 0, "127.0.0.1", 9)
    assert service.got == [DATA]


async def test_a_service_that_floods_or_holds_on_costs_a_second(bench: Bench) -> None:
    peer, flood = bench.add_peer(), Service(b"x" * 5_000_000, hangs_up=False)
    async with listening(flood) as port, open_pool(bench.settings()) as pool:
        assert await pool.probe_tcp(peer, ADDRESS, port, DATA) is True
        assert (await pool.run(peer, "echo fine")).stdout == "fine\n"
    assert flood.got in ([], [DATA])


async def test_a_caller_that_leaves_takes_the_channel_along(bench: Bench) -> None:
    peer, service = bench.add_peer(), Service(hangs_up=False)
    async with listening(service) as port, open_pool(bench.settings()) as pool:
        probing = asyncio.create_task(pool.probe_tcp(peer, ADDRESS, port, DATA))
        await poll_until(lambda: service.open_now == 1, "the connection from the peer")
        probing.cancel()
        await asyncio.wait([probing])
        await poll_until(lambda: service.open_now == 0, "its end")
        assert pool.is_connected(peer)


async def test_armed_peers_can_do_it_too(bench: Bench) -> None:
    peer, service = bench.add_peer(), Service()
    arms = ArmedPeers(bench.settings())
    try:
        arms.set_peers((peer,))
        async with listening(service) as port:
            await poll_until(lambda: arms.is_armed(peer), "it is armed")
            assert isinstance(arms, TcpProber)
            assert await arms.probe_tcp(peer, ADDRESS, port, DATA) is True
            assert arms.is_armed(peer)
        assert bench.log().count("Accepted publickey") == 1
    finally:
        await arms.close()
    assert service.got == [DATA]
