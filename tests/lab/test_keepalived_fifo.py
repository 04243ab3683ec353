"""Real keepalived with what `init --systemd` installs: its FIFO, and its notify script as root and as another user.

keepalived is the init of its own pid, network and mount namespaces, with its own /run and its own users; the
kernel removes all of it when that init dies.
"""

from __future__ import annotations

import fcntl
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("systemd-tmpfiles") is None, reason="systemd-tmpfiles is missing: apt-get install systemd"),
]

PROGRAM = Path(sys.executable).with_name("do-failover")
PATIENCE_S = 15.0
INSIDE = """
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/do-failover /run/root
mount --bind "$1/run/do-failover" /run/do-failover
mount --bind "$1" /run/root
mount --bind "$1/etc/passwd" /etc/passwd
mount --bind "$1/etc/group" /etc/group
ip link add eth1 type veth peer name eth2
ip address add 10.110.0.11/24 dev eth1
ip link set lo up
ip link set eth1 up
ip link set eth2 up
exec keepalived --vrrp -n -D -l -f /run/root/keepalived.conf
"""
CONFIGURATION = """
global_defs {{
    enable_script_security
    vrrp_version 3
    {more}
}}
vrrp_instance VI_1 {{
    state BACKUP
    interface eth1
    virtual_router_id 51
    priority 150
    advert_int 0.1
    unicast_src_ip 10.110.0.11
    unicast_peer {{
        10.110.0.12
    }}
    virtual_ipaddress {{
        169.254.51.1/32 dev lo
    }}
    {notify}
}}
"""
SHIM = "/run/root/usr/lib/do-failover/do-failover-notify"


class Installed:
    """A root as `init --systemd` and systemd's programs leave it, and a stand-in for the daemon."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for command in (
            [str(PROGRAM), "init", "--systemd", "--directory", str(root)],
            ["systemd-sysusers", f"--root={root}", "do-failover.conf"],
            ["systemd-tmpfiles", f"--root={root}", "--create", "do-failover.conf"],
        ):
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stderr
        self.gid = (root / "run/do-failover").stat().st_gid
        self.fifo = root / "run/do-failover/vrrp.fifo"
        self.inode = self.fifo.stat().st_ino
        self.reader = os.open(self.fifo, os.O_RDWR | os.O_NONBLOCK)
        self.lock = os.open(root / "run/do-failover/daemon.lock", os.O_RDWR | os.O_CREAT, 0o640)
        os.chown(self.lock, -1, self.gid)
        os.write(self.lock, b"%d\n" % os.getpid())
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        self.log = root / "keepalived.log"
        self._heard = b""

    def configure(self, more: str, notify: str = "") -> None:
        (self.root / "keepalived.conf").write_text(CONFIGURATION.format(more=more, notify=notify))

    def hear(self, *patterns: str) -> list[str]:
        """Read lines until one for each pattern came, in that order; return all that were heard."""
        end = time.monotonic() + PATIENCE_S
        while True:
            lines = self._heard.decode().splitlines()
            left = iter(lines)
            if all(any(re.fullmatch(pattern, line) for line in left) for pattern in patterns):
                self._heard = b""
                return lines
            assert time.monotonic() < end, f"heard {lines}; keepalived said:\n{self.log.read_text()}"
            if select.select([self.reader], [], [], 0.5)[0]:
                self._heard += os.read(self.reader, 65536)

    def said(self, what: str) -> None:
        """Wait until keepalived's log says something."""
        end = time.monotonic() + PATIENCE_S
        while what not in self.log.read_text():
            assert time.monotonic() < end, f"never said {what!r}:\n{self.log.read_text()}"
            select.select([], [], [], 0.02)

    @contextmanager
    def keepalived(self) -> Iterator[int]:
        """Run keepalived; its pid, out here."""
        command = ["unshare", "--fork", "--pid", "--kill-child=KILL", "--mount", "--net", "--mount-proc", "sh", "-euc", INSIDE, "sh"]
        with self.log.open("wb") as log:
            holder = subprocess.Popen([*command, str(self.root)], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/")
            try:
                self.said("Starting VRRP child process")
                yield int(Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()[0])
            finally:
                holder.kill()
                holder.wait()

    def close(self) -> None:
        os.close(self.reader)
        os.close(self.lock)


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[Installed]:
    tmp_path.chmod(0o755)
    for name in ("run", "var"):
        (tmp_path / name).mkdir()
    ready = Installed(tmp_path)
    yield ready
    ready.close()


@pytest.mark.parametrize("owner", ["", " root do-failover"])
def test_keepalived_takes_the_fifo_as_it_is_and_leaves_it_at_reload_and_stop(installed: Installed, owner: str) -> None:
    installed.configure(f"script_user root\n    vrrp_notify_fifo /run/do-failover/vrrp.fifo{owner}")
    with installed.keepalived() as pid:
        assert installed.hear('INSTANCE "VI_1" BACKUP 150', 'INSTANCE "VI_1" MASTER 150')
        os.kill(pid, signal.SIGHUP)
        installed.said("Reload complete")
        assert installed.fifo.stat().st_ino == installed.inode
        os.kill(pid, signal.SIGTERM)
        assert installed.hear('INSTANCE "VI_1" STOP 150')
    left = installed.fifo.stat()
    assert (left.st_ino, left.st_mode & 0o7777, left.st_uid, left.st_gid) == (installed.inode, 0o660, 0, installed.gid)


MASTER_LINE = r'SCRIPT [0-9]+ [0-9]+ INSTANCE "VI_1" MASTER 150'


def add_script_user(installed: Installed, *, is_member: bool) -> None:
    with (installed.root / "etc/passwd").open("a") as file:
        file.write("keepalived_script:x:61234:61234::/:/usr/sbin/nologin\n")
    group = installed.root / "etc/group"
    text = group.read_text()
    if is_member:
        text = re.sub(r"^(do-failover:.*)$", r"\1keepalived_script", text, flags=re.MULTILINE)
    group.write_text(f"{text}keepalived_script:x:61234:\n")


def test_the_script_as_root_writes_marked_lines(installed: Installed) -> None:
    installed.configure("script_user root", f'notify "{SHIM}"')
    (installed.root / "usr/lib").chmod(0o755)
    with installed.keepalived():
        assert installed.hear(r'SCRIPT [0-9]+ [0-9]+ INSTANCE "VI_1" BACKUP 150', MASTER_LINE)
    assert "nsafe" not in installed.log.read_text()


def test_the_script_as_another_user_reaches_the_fifo_with_the_group_as_its_own(installed: Installed) -> None:
    add_script_user(installed, is_member=False)
    installed.configure("script_user keepalived_script do-failover", f'notify "{SHIM}"')
    with installed.keepalived():
        assert installed.hear(MASTER_LINE)


def test_a_mere_member_of_the_group_does_not_because_keepalived_drops_it(installed: Installed) -> None:
    """Then the one-shot runs, as that user; docs/systemd.md says what to write instead."""
    add_script_user(installed, is_member=True)
    ran = installed.root / "ran"
    ran.write_text("")
    ran.chmod(0o666)
    stand_in = installed.root / "do-failover"
    stand_in.write_text('#!/bin/sh\necho "$(id -u) $(id -G) $*" >> /run/root/ran\n')
    stand_in.chmod(0o755)
    shim = installed.root / SHIM.removeprefix("/run/root/")
    shim.write_text(re.sub("^program=.*$", "program=/run/root/do-failover", shim.read_text(), flags=re.MULTILINE))
    installed.configure("script_user keepalived_script", f'notify "{SHIM}"')
    with installed.keepalived():
        end = time.monotonic() + PATIENCE_S
        while "61234 61234 notify INSTANCE VI_1 MASTER 150\n" not in ran.read_text():
            assert time.monotonic() < end, installed.log.read_text()
            select.select([], [], [], 0.02)
    with pytest.raises(BlockingIOError):
        os.read(installed.reader, 4096)
