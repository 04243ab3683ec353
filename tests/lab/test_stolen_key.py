"""A stolen peer key, on a peer whose sshd allows whatever it can: only the line that `peers authorize` prints stands between.

Each ask is tried with a plain key too, which gets it: so a refusal is the key line's doing, and not this machine's.
"""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import asyncssh
import pytest
from forced_command import SHELLS, have, make_stand
from sshd_bench import SSHD, free_port, open_bench, open_pool
from test_peer_key import IP, PING

from do_failover.cli.peers_authorize import PROGRAM, Authorization

pytestmark = [pytest.mark.root, pytest.mark.skipif(SSHD is None or not have("tty"), reason="scripts/test installs it")]
OPEN = """LogLevel DEBUG1
AllowAgentForwarding yes
AllowStreamLocalForwarding yes
AllowTcpForwarding yes
PermitTTY yes
PermitUserRC yes
X11Forwarding yes
Subsystem sftp internal-sftp
"""
SHUT = "Match User dofailover\n AllowStreamLocalForwarding no\nMatch all\n"
ALLOWED = ("203.0.113.47", "198.51.100.12")


@dataclass
class Thief:
    """A connection by the stolen key, and what there is to steal: two servers, and a directory that anybody may write."""

    connection: asyncssh.SSHClientConnection
    place: Path
    port: int
    heard: list[str] = field(default_factory=list)

    async def run(self, command: str, **options: object) -> str:
        return str((await self.connection.run(command, stdin=asyncssh.DEVNULL, timeout=5, **options)).stdout)

    async def command(self) -> bool:
        return "canary2" in await self.run("echo canary$((1+1))")

    async def terminal(self) -> bool:
        return "/dev/pts" in await self.run("tty", term_type="vt100")

    async def files(self) -> bool:
        """Greet an SFTP server as version 3; one that is there greets back."""
        process = await self.connection.create_process(subsystem="sftp", encoding=None)
        process.stdin.write(b"\0\0\0\5\1\0\0\0\3")
        return bytes(await asyncio.wait_for(process.stdout.readexactly(5), 5))[4:] == b"\2"

    async def tcp(self) -> bool:
        return await self._talks(await self.connection.open_connection("127.0.0.1", self.port))

    async def socket(self) -> bool:
        return await self._talks(await self.connection.open_unix_connection(str(self.place / "socket")))

    async def port_there(self) -> bool:
        await self.connection.forward_remote_port("127.0.0.1", free_port("127.0.0.1"), "127.0.0.1", 9)
        return True

    async def socket_there(self) -> bool:
        await self.connection.forward_remote_path(str(self.place / "made"), "/nowhere")
        return (self.place / "made").is_socket()

    async def _talks(self, streams: tuple[asyncssh.SSHReader[str], asyncssh.SSHWriter[str]]) -> bool:
        reader, writer = streams
        writer.write_eof()
        return "loot" in str(await asyncio.wait_for(reader.read(), 5))


ASKS: dict[str, Callable[[Thief], Awaitable[bool]]] = {
    name: getattr(Thief, name) for name in ("command", "terminal", "files", "tcp", "socket", "port_there", "socket_there")
}


async def steal(thief: Thief) -> set[str]:
    """Ask for everything; return what was got."""
    got = set()
    for name, ask in ASKS.items():
        try:
            if await ask(thief):
                got.add(name)
        except (OSError, asyncssh.Error, asyncssh.ChannelListenError):  # includes TimeoutError
            pass
    return got


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:  # the peer's user has to get into it
        Path(directory).chmod(0o777)
        (Path(directory) / "loot").touch()
        yield Path(directory)


async def give_loot(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"loot")
    writer.close()


async def attack(tmp_path: Path, place: Path, line: str | None, config: str = "") -> tuple[set[str], str]:
    """Return what the thief got, and how sshd itself sums up what the line leaves; None: a plain key."""
    stand = make_stand(place / "stand", SHELLS["dash"], ip=IP, ping=PING, logger="")
    tcp = await asyncio.start_server(give_loot, "127.0.0.1", 0)
    unix = await asyncio.start_unix_server(give_loot, place / "socket")
    (place / "socket").chmod(0o666)
    try:
        with open_bench(tmp_path) as bench:
            options = line.replace(PROGRAM, str(stand.script)) if line is not None else ""
            peer = bench.add_peer(options=options, user="dofailover", config=OPEN + config)
            async with open_pool(bench.settings()) as pool:
                connection = (await pool.obtain(peer)).connection
                got = await steal(Thief(connection, place, tcp.sockets[0].getsockname()[1]))
            (left,) = set(re.findall(r"active: key options: (.*)", bench.log())) or {"none"}
            return got, left.strip()
    finally:
        for server in (tcp, unix):
            server.close()
            await server.wait_closed()


def authorize(probe_port: int | None = None) -> str:
    return Authorization("", "", ("127.0.0.1",), ALLOWED, probe_port).line


async def test_a_plain_key_gets_all_of_it(tmp_path: Path, place: Path) -> None:
    got, left = await attack(tmp_path, place, None)
    assert got == set(ASKS)
    assert left == "agent-forwarding port-forwarding pty user-rc x11-forwarding"


async def test_a_stolen_key_can_do_nothing_but_make_that_peer_ping(tmp_path: Path, place: Path) -> None:
    got, left = await attack(tmp_path, place, authorize())
    assert got == set()
    assert left == "command", "no agent, no X11, no rc file"


async def test_with_a_probe_it_may_also_make_a_socket_there_which_sshds_configuration_forbids(tmp_path: Path, place: Path) -> None:
    for config, wanted in (("", {"socket_there"}), (SHUT, set())):
        directory = tmp_path / str(bool(config))
        directory.mkdir()
        (place / "made").unlink(missing_ok=True)
        got, left = await attack(directory, place, authorize(443), config)
        assert (got, left) == (wanted, "command permitopen permitlisten port-forwarding")
