"""Real sshd's on loopback, and servers that behave worse than sshd: what test_ssh*.py try PeerConnections on."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from do_failover.model import Peer
from do_failover.ssh import PeerConnections, SshSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

SSHD = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
DEADLINE_S = 10.0


def wait_until(is_true: Callable[[], bool], what: str) -> None:
    """Poll, for threads and processes; fails loudly."""
    end = time.monotonic() + DEADLINE_S
    while not is_true():
        assert time.monotonic() < end, f"waited {DEADLINE_S} s for: {what}"
        time.sleep(0.01)


async def poll_until(is_true: Callable[[], bool], what: str) -> None:
    """Poll with the event loop running."""
    end = time.monotonic() + DEADLINE_S
    while not is_true():
        assert time.monotonic() < end, f"waited {DEADLINE_S} s for: {what}"
        await asyncio.sleep(0.01)


def make_key(path: Path, passphrase: str = "", kind: str = "ed25519") -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-f", str(path)], check=True)
    return path


class Bench:
    """A directory with a user's key, a known_hosts file and any number of sshd's."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.identity = make_key(directory / "id")
        self.known_hosts = directory / "known_hosts"
        self.known_hosts.touch()
        self._processes: list[subprocess.Popen[bytes]] = []

    def settings(self, **changes: object) -> SshSettings:
        base = SshSettings(None, str(self.identity), str(self.known_hosts), None, 5.0, 5.0, 16)
        return replace(base, **changes)  # type: ignore[arg-type]

    def add_peer(self, number: int = 0, *, options: str = "", is_known: bool = True, user: str | None = None, config: str = "") -> Peer:
        """Start an sshd on 127.0.0.<number + 1> and return it as a peer.

        With `user` it sees, in a mount namespace of its own, a machine that has that unprivileged user. Lines of `config`
        come first in its sshd_config, and so win.
        """
        address = f"127.0.0.{number + 1}"
        port = free_port(address)
        home = self.directory / f"sshd{len(self._processes)}"
        home.mkdir()
        key = make_key(home / "host_key")
        authorized = home / "authorized_keys"
        authorized.write_text(options + (self.identity.with_suffix(".pub")).read_text())
        (home / "sshd_config").write_text(
            f"{config}ListenAddress {address}:{port}\nHostKey {key}\nAuthorizedKeysFile {authorized}\nUsePAM no\n"
            f"StrictModes no\nPidFile none\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
            f"PermitRootLogin yes\nMaxStartups 100\n"
        )
        command = [str(SSHD), "-D", "-e", "-f", str(home / "sshd_config")]
        if os.geteuid() == 0:
            command = self._in_own_machine(home, user, command)
        with (home / "log").open("wb") as log:
            self._processes.append(subprocess.Popen(command, stderr=log, stdin=subprocess.DEVNULL))
        wait_until(lambda: "Server listening" in (home / "log").read_text(), f"sshd at {address}")
        peer = Peer(number, address, user, port)
        if is_known:
            self.know(peer, key.with_suffix(".pub"))
        return peer

    def _in_own_machine(self, home: Path, user: str | None, command: list[str]) -> list[str]:
        """Return the command in a mount namespace with accounts whose shell reads no dotfiles, and a /run/sshd."""
        accounts = Path("/etc/passwd").read_text().splitlines()
        passwd = ["root:x:0:0::/:/bin/sh", *(line for line in accounts if not line.startswith("root:"))]
        shadow = Path("/etc/shadow").read_text().splitlines()
        if user is not None:
            passwd.append(f"{user}:x:64999:64999::/:/bin/sh")
            shadow.append(f"{user}:*:19000:0:99999:7:::")
            with (home / "sshd_config").open("a") as file:  # the user can't read our directory; root's cat can
                file.write(f"AuthorizedKeysCommand /bin/cat {home / 'authorized_keys'}\nAuthorizedKeysCommandUser root\n")
        for name, lines in (("passwd", passwd), ("shadow", shadow)):
            (home / name).write_text("\n".join(lines) + "\n")
        prepare = (
            'mount -t tmpfs tmpfs /run && mkdir /run/sshd && mount --bind "$0/passwd" /etc/passwd && '
            'mount --bind "$0/shadow" /etc/shadow && exec "$@"'
        )
        return ["unshare", "-m", "sh", "-c", prepare, str(home), *command]

    def host_key(self, index: int = 0) -> Path:
        return self.directory / f"sshd{index}" / "host_key.pub"

    def log(self, index: int = 0) -> str:
        return (self.directory / f"sshd{index}" / "log").read_text()

    def know(self, peer: Peer, key: Path) -> None:
        with self.known_hosts.open("a") as file:
            file.write(f"[{peer.host}]:{peer.port} {key.read_text()}")

    def reconfigure(self, index: int, line: str) -> None:
        """Add a line to that sshd's configuration and wait until it is in effect."""
        with (self.directory / f"sshd{index}" / "sshd_config").open("a") as file:
            file.write(f"{line}\n")
        before = self.log(index).count("Server listening")
        self._processes[index].send_signal(signal.SIGHUP)
        wait_until(lambda: self.log(index).count("Server listening") > before, "sshd's reload")

    def stop(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait(DEADLINE_S)


@contextlib.contextmanager
def open_bench(directory: Path) -> Iterator[Bench]:
    """A bench whose sshd's are gone afterwards."""
    bench = Bench(directory)
    try:
        yield bench
    finally:
        bench.stop()


@contextlib.asynccontextmanager
async def open_pool(settings: SshSettings) -> AsyncIterator[PeerConnections]:
    """A pool of which no task is left: checked for each test."""
    before = asyncio.all_tasks()
    async with PeerConnections(settings) as pool:
        yield pool
    left = asyncio.all_tasks() - before
    assert {task for task in left if "Server._" not in repr(task.get_coro())} == set()


def free_port(address: str) -> int:
    with socket.create_server((address, 0)) as probe:
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def mute_peer(address: str = "127.0.0.9") -> Iterator[Peer]:
    """Accepts TCP (the kernel does) and never speaks."""
    with socket.create_server((address, 0), backlog=64) as server:
        yield Peer(90, address, None, int(server.getsockname()[1]))


@contextlib.contextmanager
def silent_peer(address: str = "127.0.0.8") -> Iterator[Peer]:
    """Drops every SYN: its accept queue is full."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server((address, 0), backlog=0))
        where = server.getsockname()
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(where)
        yield Peer(91, address, None, int(where[1]))


class Server:
    """An asyncio server that says some bytes and hangs up, or forwards to a real sshd and can be cut or frozen."""

    def __init__(self, says: bytes = b"", forward: Peer | None = None) -> None:
        self.says = says
        self.forward = forward
        self.accepted = 0
        self.open_now = 0
        self.most_open = 0
        self.frozen: set[asyncio.StreamWriter] = set()
        self._transports: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    @property
    def peer(self) -> Peer:
        return Peer(80, "127.0.0.1", None, int(self._server.sockets[0].getsockname()[1]))

    async def __aexit__(self, *_: object) -> None:
        self.cut()
        self._server.close()
        await self._server.wait_closed()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Reset every connection, as a peer does that lost its memory of them."""
        for writer in self._transports:
            writer.transport.abort()
        self._transports.clear()

    def freeze(self) -> None:
        """Pass nothing more on what is open now, as a firewall does that lost its memory of it."""
        self.frozen |= set(self._transports)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.accepted += 1
        self.open_now += 1
        self.most_open = max(self.most_open, self.open_now)
        self._transports.append(writer)
        try:
            if self.forward is None:
                writer.write(self.says)
                if not self.says.startswith(b"SSH-"):
                    writer.close()
                await reader.read()
            else:
                await self._pass_on(reader, writer, self.forward)
        except ConnectionError:
            pass
        finally:
            self.open_now -= 1
            writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: Peer) -> None:
        far_reader, far_writer = await asyncio.open_connection(peer.host, peer.port)
        self._transports.append(far_writer)
        await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if writer not in self.frozen:
                writer.write(data)
        writer.close()


def me() -> str:
    return getpass.getuser()


def sockets() -> set[str]:
    """What this process has open, but for the files that any import may open."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(str(entry.readlink()))
    return {name for name in found if not name.startswith("/proc/")}
