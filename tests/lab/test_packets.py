"""Raw sockets on a real link: what the witness sees, what the kernel's filter keeps away, and what it takes."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.l2 import Ether
from two_hosts import PATIENCE_S, Host, Link, open_link, until

import do_failover
from do_failover import echo
from do_failover.errors import ConfigError, TemporaryError
from do_failover.packets import LinkSender, Packet, PacketListener, attach_filter, read_interface

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

RUN = bytes(range(8))
PATTERN = echo.build_pattern(RUN, 7)
EVERYTHING = ((0x06, 0, 0, 0xFFFF),)


@pytest.fixture(scope="module")
def link() -> Iterator[Link]:
    with open_link() as made:
        yield made


@pytest.fixture
def own_link() -> Iterator[Link]:
    """Make a link for a test that breaks it."""
    with open_link() as made:
        yield made


def listen(host: Host, family: echo.Family = 4, program: echo.Program | None = None, **options: Any) -> PacketListener:
    """Open a listener in a namespace."""
    with host.inside():
        return PacketListener(echo.ECHO_ETHERTYPE[family], program or echo.build_echo_filter(family), **options)


def ping(link: Link, family: echo.Family = 4, *options: str, peer_number: int = 7) -> None:
    """Let the peer send one echo request with our pattern; whether it is answered doesn't matter."""
    target = link.ours.address if family == 4 else link.ours.address6
    pattern = echo.format_pattern(echo.build_pattern(RUN, peer_number))
    command = ["ip", "netns", "exec", link.peer.netns, "ping", "-nqc1", "-W0.1", "-p", pattern, *options, str(target)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert "1 packets transmitted" in done.stdout, done.stderr


async def take(listener: PacketListener) -> Packet:
    """Return the next packet."""
    async with asyncio.timeout(PATIENCE_S):
        return await anext(listener)


def build_request(link: Link, lladdr: bytes, peer_number: int = 7) -> bytes:
    """Return a frame with an echo request of ours, addressed to any lladdr."""
    head = Ether(dst=lladdr.hex(":"), src=link.peer.lladdr.hex(":"))
    packet = IP(src=str(link.peer.address), dst=str(link.ours.address)) / ICMP(type=8)
    return bytes(head / packet / (bytes(16) + echo.build_pattern(RUN, peer_number)))


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("size", ["56", "32", "64", "1400"])
async def test_the_witness_reads_iputils_ping(link: Link, family: echo.Family, size: str) -> None:
    with listen(link.ours, family) as listener:
        ping(link, family, "-s", size)
        packet = await take(listener)
    four = echo.EchoRequest(link.peer.address, link.ours.address, RUN, 7)
    six = echo.EchoRequest(link.peer.address6, link.ours.address6, RUN, 7)
    assert echo.read_echo_request(packet.data) == (four if family == 4 else six)
    assert (packet.interface, packet.source_lladdr) == ("eth0", link.peer.lladdr)


@pytest.mark.parametrize("size", ["31", "24", "16", "15", "0"])
async def test_a_pattern_that_ping_cuts_off_is_not_read(link: Link, size: str) -> None:
    with listen(link.ours) as listener:
        ping(link, 4, "-s", size)
        ping(link, peer_number=8)
        found = echo.read_echo_request((packet := await take(listener)).data)
        if found is None:  # the magic is there, the rest is not
            assert int.from_bytes(packet.data[2:4]) == 28 + int(size)
            found = echo.read_echo_request((await take(listener)).data)
    assert found is not None
    assert found.peer_number == 8


async def test_a_firewall_does_not_blind_the_witness(own_link: Link) -> None:
    rules = """table inet shut { chain input { type filter hook input priority 0; policy accept;
        icmp type echo-request counter drop; icmpv6 type echo-request counter drop
        }
    }"""
    own_link.ours.run("nft", "-f", "-", stdin=rules)
    for family in (4, 6):
        with listen(own_link.ours, 4 if family == 4 else 6) as listener:
            ping(own_link, 4 if family == 4 else 6)
            assert echo.read_echo_request((await take(listener)).data) is not None
    dropped = own_link.ours.run("nft", "list", "ruleset")
    assert dropped.count("counter packets 1 bytes 84 drop") == 1
    assert dropped.count("counter packets 1 bytes 104 drop") == 1


async def test_the_kernel_keeps_everything_else_away(link: Link) -> None:
    """Counted by the kernel itself, beside a listener that takes everything."""
    with listen(link.ours, interface="eth0") as listener, listen(link.ours, program=EVERYTHING) as control:
        link.peer.run("ping", "-nqc20", "-i0.002", "-p", "ff", str(link.ours.address))
        link.peer.run("ping", "-nqc20", "-i0.002", "-p", "646f666e", str(link.ours.address))
        ping(link)
        assert echo.read_echo_request((await take(listener)).data) is not None
        assert listener.read_statistics().received == 1
        assert control.read_statistics().received == 41
    assert listener.read_statistics().received == 1


async def test_a_frame_that_a_bridge_floods_to_us_is_no_arrival(link: Link) -> None:
    """A veth takes frames for any lladdr: the request for the old owner's passes by, and must not count."""
    with listen(link.ours) as listener, link.peer.inside(), LinkSender("eth0") as sender:
        sender.send(build_request(link, bytes.fromhex("020000000099"), peer_number=1))
        sender.send(build_request(link, b"\xff" * 6, peer_number=2))
        sender.send(build_request(link, link.ours.lladdr, peer_number=3))
        found = echo.read_echo_request((await take(listener)).data)
        assert found is not None
        assert found.peer_number == 3
        assert listener.read_statistics().received == 1


async def test_what_we_send_ourselves_is_no_arrival(link: Link) -> None:
    with listen(link.ours) as listener, link.ours.inside(), LinkSender("eth0") as own:
        own.send(build_request(link, link.peer.lladdr, peer_number=1))
        ping(link, peer_number=2)
        found = echo.read_echo_request((await take(listener)).data)
    assert found is not None
    assert found.peer_number == 2


def test_nothing_unfiltered_slips_in(link: Link) -> None:
    """Under a flood: sockets opened in the usual order hold a stray packet now and then, listeners never do."""
    flood = ["ip", "netns", "exec", link.peer.netns, "ping", "-fq", "-w60", str(link.ours.address)]
    with subprocess.Popen(flood, stdout=subprocess.DEVNULL) as flooding:
        try:
            until(lambda: count_strays(link) > 0, "a stray packet")
            for _ in range(50):
                with listen(link.ours) as listener:
                    assert listener.read_statistics().received == 0
        finally:
            flooding.terminate()


def count_strays(link: Link) -> int:
    """Open a socket that receives at once and is filtered only then; return how many packets it holds."""
    with link.ours.inside(), socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800)) as hasty:
        attach_filter(hasty, ((0x06, 0, 0, 0),))
        return int.from_bytes(hasty.getsockopt(263, 6, 8)[:4], sys.byteorder)


async def test_nobody_becomes_promiscuous(link: Link) -> None:
    with listen(link.ours, interface="eth0"), link.ours.inside(), LinkSender("eth0"):
        assert "promiscuity 0 " in link.ours.ip("-d", "link", "show", "eth0")


def list_open_files() -> set[str]:
    """Name what is open, each socket by its inode: another test's leftovers may be closed meanwhile, and don't count."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the directory's own descriptor
            found.add(str(entry.readlink()))
    return found


async def test_a_callback_gets_every_packet_and_none_after_close(link: Link) -> None:
    got: list[Packet] = []
    enough = asyncio.Event()

    def note(packet: Packet) -> None:
        got.append(packet)
        if len(got) == 100:
            listener.close()
            enough.set()

    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    before = list_open_files()
    listener = listen(link.ours)
    listener.start(note)
    with pytest.raises(RuntimeError, match="one callback or one iteration"):
        listener.start(note)
    with link.peer.inside(), LinkSender("eth0") as sender:
        for _ in range(150):
            sender.send(build_request(link, link.ours.lladdr))
    async with asyncio.timeout(PATIENCE_S):
        await enough.wait()
    listener.close()
    await asyncio.sleep(0)
    assert len(got) == 100
    assert listener.read_statistics().received == 150
    assert list_open_files() <= before
    assert complaints == []


async def test_an_iteration_ends_with_close_also_while_it_waits(link: Link) -> None:
    listener = listen(link.ours)
    waiting = asyncio.create_task(anext(listener, None))
    await asyncio.sleep(0)
    listener.close()
    async with asyncio.timeout(PATIENCE_S):
        assert await waiting is None
    assert [packet async for packet in listener] == []


async def test_a_cancelled_wait_leaves_the_listener_usable(link: Link) -> None:
    with listen(link.ours) as listener:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await anext(listener)
        for _ in range(2):
            waiting = asyncio.create_task(take(listener))
            await asyncio.to_thread(ping, link)
            assert echo.read_echo_request((await waiting).data) is not None


def test_what_finds_the_buffer_full_is_counted(link: Link) -> None:
    with listen(link.ours, receive_buffer=0) as listener, link.peer.inside(), LinkSender("eth0") as sender:
        for _ in range(200):
            sender.send(build_request(link, link.ours.lladdr))
        first = listener.read_statistics()
        assert first.dropped > 0
        assert first.received + first.dropped == 200
        assert listener.read_statistics() == first  # the kernel's counter starts anew at each reading, ours doesn't


async def test_a_listener_survives_its_interface_going_down(own_link: Link) -> None:
    with listen(own_link.ours, interface="eth0") as listener:
        own_link.ours.ip("link", "set", "eth0", "down")
        with own_link.ours.inside(), LinkSender("eth0") as sender:
            with pytest.raises(TemporaryError, match="eth0 is down") as refusal:
                sender.send(build_request(own_link, own_link.peer.lladdr))
            assert refusal.value.kind == "link_down"
        own_link.ours.ip("link", "set", "eth0", "up")
        until(lambda: own_link.peer.reaches(own_link.ours.address), "the link is up again")
        ping(own_link)
        assert echo.read_echo_request((await take(listener)).data) is not None
        assert listener.link_downs == 1


def test_an_interface_that_went_away_is_named(own_link: Link) -> None:
    with own_link.ours.inside(), LinkSender("eth0") as sender:
        own_link.ours.ip("link", "del", "eth0")
        with pytest.raises(TemporaryError, match="eth0 went away"):
            sender.send(bytes(60))


def test_an_interface_is_read_where_we_are(link: Link) -> None:
    with link.ours.inside():
        found = read_interface("eth0")
        assert found.index == socket.if_nametoindex("eth0")
    assert (found.name, found.lladdr) == ("eth0", link.ours.lladdr)


@pytest.mark.parametrize("name", ["eth7", "", "a_name_longer_than_fifteen", "nul\0", "\x1b[31m"])
def test_no_such_interface_names_those_that_exist(link: Link, name: str) -> None:
    with link.ours.inside():
        for attempt in (read_interface, LinkSender, lambda name: PacketListener(0x0800, EVERYTHING, name)):
            with pytest.raises(ConfigError, match=r"there are: lo, eth0") as refusal:
                attempt(name)
            assert str(refusal.value).isprintable()


def test_loopback_is_no_place_to_announce(link: Link) -> None:
    with link.ours.inside(), pytest.raises(ConfigError, match="not Ethernet"):
        read_interface("lo")


AS_NOBODY = """
import sys; sys.path.insert(0, sys.argv[1])
from do_failover import packets
from do_failover.errors import RefusedError
print([line.split()[1] for line in open("/proc/self/status") if line.startswith(("CapEff", "Uid"))])
print(packets.read_interface("eth0").lladdr.hex(":"))
try:
    with packets.LinkSender("eth0") as sender, packets.PacketListener(0x0800, ((6, 0, 0, 65535),)) as listener:
        sender.send(bytes.fromhex(sys.argv[2]))
        print("sent", listener.read_statistics())
except RefusedError as error:
    print("refused", error.kind, error.exit_code, error)
"""


def run_as_nobody(link: Link, capabilities: str) -> str:
    """Run the code as user 65534 with these capabilities and no other, from a copy that this user can read."""
    package = Path(do_failover.__file__).parent
    with tempfile.TemporaryDirectory(prefix="do-failover-test-") as place:
        copy = Path(place) / "do_failover"
        copy.mkdir()
        for name in ("packets.py", "errors.py"):
            shutil.copy(package / name, copy)
        (copy / "__init__.py").touch()
        for path in (Path(place), *Path(place).rglob("*")):
            path.chmod(0o755)
        frame = build_request(link, link.peer.lladdr).hex()
        drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"]
        drop += [f"--inh-caps={capabilities}", f"--ambient-caps={capabilities}", f"--bounding-set={capabilities}"]
        python = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"
        return link.ours.run(*drop, str(python), "-IB", "-c", AS_NOBODY, place, frame)


async def test_cap_net_raw_alone_is_enough(link: Link) -> None:
    with listen(link.peer) as listener:
        said = run_as_nobody(link, "-all,+net_raw")
        found = echo.read_echo_request((await take(listener)).data)
    assert found is not None
    assert f"['65534', '{1 << 13:016x}']" in said
    assert link.ours.lladdr.hex(":") in said
    assert "sent PacketStatistics(received=0, dropped=0)" in said


def test_without_cap_net_raw_the_message_says_what_to_do(link: Link) -> None:
    said = run_as_nobody(link, "-all")
    assert f"['65534', '{0:016x}']" in said
    assert "refused capability 4 the kernel refuses a raw socket" in said
    assert "CAP_NET_RAW" in said


def test_the_structs_are_the_kernels() -> None:
    """sock_fprog holds a pointer: 16 octets on 64 bits, 8 on 32."""
    assert struct.calcsize("HP") == 2 * struct.calcsize("P")
