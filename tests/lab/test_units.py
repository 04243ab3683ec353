"""The systemd files that are shipped, put to systemd's own programs; and a Python under the unit's own limits."""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

from tests.lab import under_unit

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is missing: apt-get install systemd"),
]

SHARE = Path(str(resources.files("do_failover").joinpath("share")))
UNIT = SHARE / "do-failover.service"
TOP = Path(__file__).parents[2]
PROGRAM = Path(sys.executable).with_name("do-failover")


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, cwd=TOP)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """What `init --systemd` writes, in a root of its own, with the users made by systemd."""
    done = run(str(PROGRAM), "init", "--systemd", "--directory", str(tmp_path))
    assert done.returncode == 0, done.stderr
    tmp_path.chmod(0o755)
    for name in ("run", "var"):
        (tmp_path / name).mkdir()
    made = run("systemd-sysusers", f"--root={tmp_path}", "do-failover.conf")
    assert made.returncode == 0, made.stderr
    return tmp_path


def test_systemd_understands_every_line_of_the_unit(root: Path) -> None:
    done = run("systemd-analyze", "verify", str(root / "etc/systemd/system/do-failover.service"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_unit_is_exposed_no_more_than_2(root: Path) -> None:
    unit = str(root / "etc/systemd/system/do-failover.service")
    done = run("systemd-analyze", "security", "--offline=true", "--threshold=20", unit)
    (score,) = re.findall(r"Overall exposure level for do-failover.service: ([0-9.]+)", done.stdout)
    assert (done.returncode, float(score) <= 2.0) == (0, True)


def test_the_user_has_no_shell_and_lives_where_the_state_is(root: Path) -> None:
    (line,) = [line for line in (root / "etc/passwd").read_text().splitlines() if line.startswith("do-failover:")]
    *_, home, shell = line.split(":")
    assert (home, shell) == ("/var/lib/do-failover", "/usr/sbin/nologin")
    assert "keepalived_script" not in (root / "etc/passwd").read_text()


def test_the_fifo_is_roots_and_stays_the_same_when_made_again(root: Path) -> None:
    (gid,) = [int(line.split(":")[2]) for line in (root / "etc/group").read_text().splitlines() if line.startswith("do-failover:")]
    inodes = set()
    for _ in range(2):
        done = run("systemd-tmpfiles", f"--root={root}", "--create", "do-failover.conf")
        assert (done.returncode, done.stderr) == (0, "")
        fifo, directory = (root / "run/do-failover/vrrp.fifo").stat(), (root / "run/do-failover").stat()
        assert stat.S_ISFIFO(fifo.st_mode)
        assert (stat.S_IMODE(fifo.st_mode), fifo.st_uid, fifo.st_gid) == (0o660, 0, gid)
        assert (stat.S_IMODE(directory.st_mode), directory.st_uid == 0, directory.st_gid) == (0o750, False, gid)
        inodes.add(fifo.st_ino)
    assert len(inodes) == 1


def test_no_directory_of_the_unit_takes_the_fifo_from_root() -> None:
    assert "RuntimeDirectory" not in under_unit.settings(UNIT)


@pytest.mark.parametrize("task", [task.__name__ for task in under_unit.TASKS])
def test_what_the_daemon_does_works_under_the_limits_of_the_unit(task: str) -> None:
    """Capabilities, address families, system calls and memory as in the unit, by the kernel's own seccomp; user nobody."""
    done = run(sys.executable, "-m", "tests.lab.under_unit", str(UNIT), task)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


@pytest.mark.parametrize("act", [act.__name__ for act in under_unit.FORBIDDEN])
def test_and_what_it_never_does_is_refused(act: str) -> None:
    done = run(sys.executable, "-m", "tests.lab.under_unit", str(UNIT), act)
    assert (done.returncode, done.stdout, done.stderr) == (0, "refused\n", "")


@pytest.mark.parametrize(
    ("line", "task", "said"),
    [
        ("MemoryDenyWriteExecute=yes", "write_and_execute", "done"),
        ("SystemCallFilter=~@privileged @resources", "become_root", "done"),
        (
            "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK AF_PACKET",
            "open_packet_socket",
            "Errno 97",
        ),
        ("CapabilityBoundingSet=CAP_NET_RAW", "open_packet_socket", "Errno 1]"),
    ],
)
def test_each_limit_is_the_units_own(tmp_path: Path, line: str, task: str, said: str) -> None:
    """A unit without that line behaves otherwise: so the tests above look at the unit, and not at this machine."""
    text = UNIT.read_text()
    without = line.removesuffix(" AF_PACKET")
    other = {"Mem": line.replace("yes", "no"), "Cap": "CapabilityBoundingSet=CAP_KILL", "Res": without}.get(line[:3], "")
    assert text.count(f"{line}\n") == 1
    (tmp_path / "x.service").write_text(text.replace(f"{line}\n", f"{other}\n"))
    done = run(sys.executable, "-m", "tests.lab.under_unit", str(tmp_path / "x.service"), task)
    assert said in done.stdout
