"""A peer whose sshd itself is hostile: what it does to the connection harms no other peer, and fills no memory."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import asyncssh
import pytest
from asyncssh.packet import Boolean, String
from sshd_bench import SSHD, Bench, open_bench, open_pool, poll_until

from do_failover.model import Peer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(SSHD is None, reason="needs OpenSSH's sshd")
GLOBAL_REQUEST = 80


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with open_bench(tmp_path) as opened:
        yield opened


class AsksWithoutEnd(asyncssh.SSHServer):
    """Lets everybody in, asks for an answer again and again, and reads none."""

    def __init__(self, begin: asyncio.Event) -> None:
        self.flood: asyncio.Task[None] | None = None
        self.begin = begin

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self.connection = conn

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return True

    def auth_completed(self) -> None:
        self.flood = asyncio.create_task(self._ask())

    def connection_lost(self, exc: Exception | None) -> None:
        if self.flood is not None:
            self.flood.cancel()

    async def _ask(self) -> None:
        transport = self.connection._transport
        assert transport is not None
        transport.pause_reading()
        await self.begin.wait()
        while not transport.is_closing():
            if transport.get_write_buffer_size() == 0:
                self.connection.send_packet(GLOBAL_REQUEST, String("keepalive@openssh.com"), Boolean(value=True))
            await asyncio.sleep(0)


async def test_a_peer_that_asks_without_end_and_reads_nothing_is_cut_off_before_it_fills_the_memory(bench: Bench) -> None:
    good = bench.add_peer(0)
    listener = socket.create_server(("127.0.0.9", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # what the kernels keep unread is not ours to bound
    begin, asking = asyncio.Event(), []

    def let_in() -> AsksWithoutEnd:
        asking.append(AsksWithoutEnd(begin))
        return asking[-1]

    server = await asyncssh.create_server(let_in, sock=listener, server_host_keys=[str(bench.host_key(0).with_suffix(""))])
    hostile = Peer(9, "127.0.0.9", None, server.get_port())
    bench.know(hostile, bench.host_key(0))
    try:
        async with open_pool(bench.settings()) as pool:
            await asyncio.gather(pool.connect(good), pool.connect(hostile))
            ours = (await pool.obtain(hostile)).connection.get_extra_info("socket")
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            begin.set()
            await poll_until(lambda: not pool.is_connected(hostile), "the hostile peer being cut off")
            assert (await pool.run(good, "echo fine")).stdout == "fine\n"
    finally:
        server.close()
        floods = [each.flood for each in asking if each.flood is not None]
        for flood in floods:
            flood.cancel()
        await asyncio.wait(floods)
        await server.wait_closed()
