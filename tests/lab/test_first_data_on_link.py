"""The first data of a TCP connection, seen on a real link and in the lab: what it proves, and what it must not."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import sys
from typing import TYPE_CHECKING, Any

import pytest
from two_hosts import PATIENCE_S, Link, open_link

from do_failover import echo
from do_failover.lab.handle import LabHandle, standing_lab
from do_failover.lab.options import LabOptions
from do_failover.packets import PacketListener

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

RUN = bytes(range(8))
PORT = 443
CONNECT = "import socket, sys; s = socket.create_connection(sys.argv[1:3]); s.sendall(bytes.fromhex(sys.argv[3]))"


@pytest.fixture(scope="module")
def link() -> Iterator[Link]:
    with open_link() as made:
        yield made


@contextlib.contextmanager
def serving(link: Link, family: echo.Family, port: int = PORT) -> Iterator[None]:
    """Somebody who accepts and hangs up; the kernel answers the handshake before that."""
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    with link.ours.inside():
        server = socket.create_server(("", port), family=kind)
    with server:
        yield


def connect(link: Link, family: echo.Family, data: bytes, port: int = PORT) -> None:
    """Let the peer connect and send, as an ordinary program; it waits for no answer longer than the far end's close."""
    target = link.ours.address if family == 4 else link.ours.address6

    link.peer.run(sys.executable, "-c", CONNECT, str(target), str(port), data.hex())


@pytest.mark.parametrize("family", [4, 6])
async def test_the_witness_reads_the_first_data_and_no_other_connection(link: Link, family: echo.Family) -> None:
    """The peer is a client of that port all the time: its other connections, SYNs and all, don't count."""
    with link.ours.inside():
        listener = PacketListener(echo.ECHO_ETHERTYPE[family], echo.build_first_data_filter(family, PORT), "eth0")
    with listener, serving(link, family), serving(link, family, PORT + 1):
        for data in (b"", b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\r\n\r\n", b"x" + echo.build_pattern(RUN, 1)):
            connect(link, family, data)
        connect(link, family, echo.build_pattern(RUN, 2), PORT + 1)
        connect(link, family, echo.build_pattern(RUN, 3))
        async with asyncio.timeout(PATIENCE_S):
            packet = await anext(listener)
        found = echo.read_first_data(packet.data, PORT)
        assert found is not None
        source, destination = (link.peer.address, link.ours.address) if family == 4 else (link.peer.address6, link.ours.address6)
        assert found == echo.EchoRequest(source, destination, RUN, 3)
        assert listener.read_statistics().received == 1  # the kernel kept all else away


@pytest.mark.skipif(shutil.which("busybox") is None, reason="needs BusyBox")
async def test_the_one_byte_of_busybox_is_seen_and_other_pings_are_not(link: Link) -> None:
    with link.ours.inside():
        listener = PacketListener(echo.ECHO_ETHERTYPE[4], echo.build_constant_echo_filter(4), "eth0")
    with listener:
        target = str(link.ours.address)
        link.peer.run("ping", "-nqc1", "-W1", target)
        link.peer.run("ping", "-nqc1", "-W1", "-p", echo.build_pattern(RUN, 1).hex(), target)
        link.peer.run("busybox", "ping", "-c", "1", "-W", "1", target)
        link.peer.run("busybox", "ping", "-c", "1", "-W", "1", "-p", "5a", target)
        async with asyncio.timeout(PATIENCE_S):
            packet = await anext(listener)
        assert echo.read_constant_echo(packet.data) == echo.ConstantEcho(link.peer.address, link.ours.address, 0x5A)
        assert listener.read_statistics().received == 1


COMMAND = (sys.executable, "-m", "do_failover", "-c", "/run/lab/config.toml")


async def do(lab: LabHandle, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Run `do-failover ... -o json` on lb2."""
    argv = await lab.enter("lb2", *COMMAND, *arguments, "-o", "json")
    process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    out, err = await process.communicate()
    assert out, err.decode()
    assert process.returncode is not None
    return process.returncode, {row["host"]: row for row in json.loads(out)["peers"]}


async def filter_icmp(lab: LabHandle, peer: str, *, to: str) -> None:
    """Drop the peer's echo requests to an address."""
    rules = f"table ip t {{ chain c {{ type filter hook output priority 0; ip daddr {to} icmp type echo-request drop; }}; }}"
    await lab.run(peer, "nft", "-f", "-", stdin=rules)


def set_probe(lab: LabHandle, probe: str) -> None:
    path = lab.files("lb2") / "lab/config.toml"
    path.write_text(path.read_text().replace("[peers]\n", f'[peers]\nprobe = "{probe}"\n', 1))


async def test_where_icmp_is_filtered_tcp_proves_and_nothing_else_does() -> None:
    async with standing_lab(LabOptions(peers=4, action_time_s=0.2)) as lab:
        reserved_ip = (await lab.state()).reserved_ip
        for peer in ("app1", "app2"):
            await filter_icmp(lab, peer, to=reserved_ip)
        key = lab.files("app2") / "lab/authorized_keys"
        key.write_text("".join(f"restrict {line}\n" for line in key.read_text().splitlines()))  # it may not connect for us

        set_probe(lab, "tcp:80")
        code, rows = await do(lab, "assign")
        assert code == 10
        assert {host: (row["outcome"], row["proof"]) for host, row in rows.items() if host != "app2"} == {
            "app1": ("healed", "tcp:80"),
            "app3": ("healed", rows["app3"]["proof"]),
            "app4": ("healed", rows["app4"]["proof"]),
        }
        assert (rows["app2"]["outcome"], rows["app2"]["proof"]) == ("stale", None)
        assert "port-forwarding,permitopen=" in rows["app2"]["error"]

        await lab.kill("lb2", "haproxy")  # now nobody accepts: a SYN alone is no proof
        code, rows = await do(lab, "refresh")
        assert (code, rows["app1"]["outcome"], rows["app3"]["outcome"]) == (10, "stale", "healed")


async def test_a_connection_that_the_old_owner_accepts_proves_nothing() -> None:
    async with standing_lab(LabOptions(peers=2, action_time_s=0.2)) as lab:
        set_probe(lab, "tcp:80")
        reserved_ip = (await lab.state()).reserved_ip
        await filter_icmp(lab, "app1", to=reserved_ip)
        moved, _ = await do(lab, "assign", "--no-refresh")
        assert moved == 0
        code, rows = await do(lab, "verify")  # it looks, and teaches the network nothing: lb1 is alive and serves
        assert (code, rows["app1"]["outcome"], rows["app2"]["outcome"]) == (10, "stale", "stale")
        assert f"{reserved_ip} port 80 accepts its connection" in rows["app1"]["error"]
        code, rows = await do(lab, "refresh")
        assert (code, rows["app1"]["outcome"], rows["app1"]["proof"]) == (0, "healed", "tcp:80")
