"""Runs one task in a fresh Python under what do-failover.service allows: `python -m tests.lab.under_unit UNIT TASK`.

systemd itself is not needed: the capabilities are set by setpriv, and the filters (SystemCallFilter,
MemoryDenyWriteExecute, RestrictAddressFamilies, RestrictNamespaces) by libseccomp, which systemd uses too. The
mounts of the unit are not rebuilt.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import mmap
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

ALLOW, EPERM, ENOSYS, EAFNOSUPPORT = 0x7FFF0000, 0x00050001, 0x00050026, 0x00050061
GREATER, EQUAL, MASKED = 6, 4, 7
PROT_WRITE, PROT_EXEC, SHM_EXEC = 2, 4, 0o100000
NAMESPACES = 0x7E020000  # CLONE_NEW*
LAST_FAMILY = 64


class Compare(ctypes.Structure):
    """libseccomp's scmp_arg_cmp."""

    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


def settings(unit: Path) -> dict[str, list[str]]:
    """Return the unit's settings, each with its values in order."""
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith(("#", "[")):
            found.setdefault(name, []).append(value)
    return found


def expand(group: str) -> set[str]:
    """Return the system calls of a group, as this systemd knows them."""
    shown = subprocess.run(["systemd-analyze", "syscall-filter", group], capture_output=True, text=True, check=True).stdout
    names = [line.strip() for line in shown.splitlines()[1:] if line.strip() and not line.strip().startswith("#")]
    return {call for name in names for call in (expand(name) if name.startswith("@") else {name})}


class Filter:
    """One seccomp filter."""

    def __init__(self, default: int) -> None:
        self._lib = ctypes.CDLL("libseccomp.so.2")
        self._lib.seccomp_init.restype = ctypes.c_void_p
        self._context = ctypes.c_void_p(self._lib.seccomp_init(ctypes.c_uint32(default)))

    def add(self, action: int, call: str, *compares: tuple[int, int, int, int]) -> None:
        number = self._lib.seccomp_syscall_resolve_name(call.encode())
        if number == -1:  # of another kernel
            return
        array = (Compare * len(compares))(*(Compare(*one) for one in compares))
        done = self._lib.seccomp_rule_add_array(self._context, ctypes.c_uint32(action), number, len(compares), array)
        assert done == 0 or number < -1, (call, done)  # negative: a call that this machine doesn't have

    def load(self) -> None:
        assert self._lib.seccomp_load(self._context) == 0


def make_filters(unit: Path) -> list[Filter]:
    """Build what the unit asks for."""
    known = settings(unit)
    allowed: set[str] = set()
    for words in (value.split() for value in known["SystemCallFilter"]):
        names = {call for word in words for call in expand(word.removeprefix("~"))}
        allowed = allowed - names if words[0].startswith("~") else allowed | names
    calls = Filter(EPERM)
    for name in sorted(allowed):
        calls.add(ALLOW, name)
    rest = Filter(ALLOW)
    if known["MemoryDenyWriteExecute"] == ["yes"]:
        rest.add(EPERM, "mmap", (2, MASKED, PROT_WRITE | PROT_EXEC, PROT_WRITE | PROT_EXEC))
        rest.add(EPERM, "mprotect", (2, MASKED, PROT_EXEC, PROT_EXEC))
        rest.add(EPERM, "pkey_mprotect", (2, MASKED, PROT_EXEC, PROT_EXEC))
        rest.add(EPERM, "shmat", (2, MASKED, SHM_EXEC, SHM_EXEC))
    if known["RestrictNamespaces"] == ["yes"]:
        rest.add(ENOSYS, "clone3")
        for bit in (1 << number for number in range(32) if NAMESPACES >> number & 1):
            rest.add(EPERM, "clone", (0, MASKED, bit, bit))
            rest.add(EPERM, "unshare", (0, MASKED, bit, bit))
        rest.add(EPERM, "setns")
    families = {getattr(socket, name).value for name in known["RestrictAddressFamilies"][0].split()}
    for family in set(range(LAST_FAMILY)) - families:
        rest.add(EAFNOSUPPORT, "socket", (0, EQUAL, family, 0))
    rest.add(EAFNOSUPPORT, "socket", (0, GREATER, LAST_FAMILY - 1, 0))
    return [rest, calls]


def import_all() -> None:
    import asyncssh
    import digitalocean  # noqa: F401 - is imported

    from do_failover.cli import COMMANDS, run

    key = asyncssh.generate_private_key("ssh-ed25519")
    assert key.convert_to_public().get_fingerprint()
    assert all(run([name, "--help"]) == 0 for name in COMMANDS if name != "lab")


def shake_hands() -> None:
    import trustme

    authority = trustme.CA()
    server, client = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("api.test").configure_cert(server)
    authority.configure_trust(client)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            accepted, _ = listener.accept()
            with server.wrap_socket(accepted, server_side=True) as own:
                own.sendall(b"hello")

        thread = threading.Thread(target=serve)
        thread.start()
        with socket.create_connection(listener.getsockname()) as plain, client.wrap_socket(plain, server_hostname="api.test") as secure:
            assert secure.recv(5) == b"hello"
        thread.join()


def open_packet_socket() -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806)) as packets:
        packets.bind(("lo", 0x0806))


def ask_ip() -> None:
    from do_failover.iproute import read_addresses, read_route

    assert "127.0.0.1" in asyncio.run(read_route(__import__("ipaddress").IPv4Address("127.0.0.1")))
    assert asyncio.run(read_addresses("lo"))


def keep_locks_and_files() -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        os.mkfifo(directory / "fifo")
        with (directory / "lock").open("w") as lock, socket.socket(socket.AF_UNIX) as listener:
            fcntl.flock(lock, fcntl.LOCK_EX)
            os.fsync(lock.fileno())
            listener.bind(str(directory / "socket"))
            (directory / "socket").chmod(0o660)
            listener.listen()
        (directory / "lock").rename(directory / "other")


def watch_keepalived() -> None:
    os.close(os.pidfd_open(os.getppid()))
    assert Path("/proc/sys/kernel/random/boot_id").read_text()
    assert Path(f"/proc/{os.getppid()}/stat").read_text()
    assert Path("/proc/uptime").read_text()


def write_and_execute() -> None:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)


def talk_bluetooth() -> None:
    socket.socket(31, socket.SOCK_RAW, 1)


def become_root() -> None:
    os.setuid(0)


def leave_the_network() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x40000000) != 0:
        raise OSError(ctypes.get_errno(), "unshare")


def bind_a_low_port() -> None:
    socket.create_server(("127.0.0.1", 1))


TASKS: tuple[Callable[[], None], ...] = (
    import_all,
    shake_hands,
    open_packet_socket,
    ask_ip,
    keep_locks_and_files,
    watch_keepalived,
)
FORBIDDEN: tuple[Callable[[], None], ...] = (write_and_execute, talk_bluetooth, become_root, leave_the_network, bind_a_low_port)


def restrict(unit: Path, task: str) -> None:
    """Become a fresh Python with the unit's limits."""
    capability = settings(unit)["CapabilityBoundingSet"][0].removeprefix("CAP_").lower()
    only = f"-all,+{capability}"
    caps = ["--bounding-set", only, "--inh-caps", only, "--ambient-caps", only, "--securebits", "+noroot", "--no-new-privs"]
    os.execvp("setpriv", ["setpriv", *caps, sys.executable, "-m", "tests.lab.under_unit", str(unit), task, "filter"])  # noqa: S606 - replaces this process


def main() -> None:
    """Restrict, filter, run: each step a fresh program."""
    unit, task, *step = sys.argv[1:]
    if not step:
        restrict(Path(unit), task)
    elif step == ["filter"]:
        for one in make_filters(Path(unit)):
            one.load()
        os.execv(sys.executable, [sys.executable, "-m", "tests.lab.under_unit", unit, task, "run"])  # noqa: S606 - likewise
    else:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - what the task prints is nobody's
        try:
            globals()[task]()
            said = "done"
        except OSError as error:
            said = f"refused{'' if task in {act.__name__ for act in FORBIDDEN} else f': {error}'}"
        sys.__stdout__.write(f"{said}\n")


if __name__ == "__main__":
    main()
