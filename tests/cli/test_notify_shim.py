"""share/do-failover-notify under dash and under BusyBox (its own tools too): one line for a living daemon, else the one-shot."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from do_failover.claims import ProcessOrder, read_order
from do_failover.event import parse_line

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

SHIM = str(resources.files("do_failover").joinpath("share/do-failover-notify"))
MASTER = ("INSTANCE", "VI_1", "MASTER", "150")
TOOLS = ("dd", "flock", "logger", "printf", "sh", "timeout")
ONE_SHOT = """#!/bin/sh
for word in "$$" "$@"; do printf '%s\\0' "$word"; done > "$RECORD"
"""


class Daemon:
    """A stand-in: holds the lock, reads the FIFO."""

    def __init__(self, run_dir: Path, *, pid: int | None = None) -> None:
        self.run_dir = run_dir
        self.fifo = run_dir / "vrrp.fifo"
        os.mkfifo(self.fifo)
        self.reader = os.open(self.fifo, os.O_RDWR | os.O_NONBLOCK)
        (run_dir / "daemon.lock").write_text(f"{pid or os.getpid()}\n")
        self.lock = os.open(run_dir / "daemon.lock", os.O_RDWR)
        fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def read(self) -> bytes:
        try:
            return os.read(self.reader, 1 << 20)
        except BlockingIOError:
            return b""

    def die(self) -> None:
        fcntl.flock(self.lock, fcntl.LOCK_UN)

    def fill(self) -> None:
        block = b"x" * 4096
        try:
            while True:
                os.write(self.reader, block)
        except BlockingIOError:
            pass

    def close(self) -> None:
        os.close(self.reader)
        os.close(self.lock)


@dataclass
class Shim:
    """The shim, its shell, its PATH, and what the one-shot in that PATH recorded."""

    shell: tuple[str, ...]
    tools: Path
    run_dir: Path
    record: Path

    def start(self, *arguments: str, fds: tuple[int, ...] = (), **more: str) -> subprocess.Popen[str]:
        environment = {"PATH": str(self.tools), "DO_FAILOVER_RUN_DIR": str(self.run_dir), "RECORD": str(self.record), **more}
        null, pipe = subprocess.DEVNULL, subprocess.PIPE
        argv = (*self.shell, SHIM, *arguments)
        return subprocess.Popen(argv, env=environment, stdin=null, stdout=pipe, stderr=pipe, text=True, pass_fds=fds, umask=0o177)

    def run(self, *arguments: str, fds: tuple[int, ...] = (), **more: str) -> tuple[int, str]:
        """Return its pid and what it said; its exit code is 0 and it prints nothing."""
        process = self.start(*arguments, fds=fds, **more)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, ""), err
        return process.pid, err

    def stand_in(self, name: str, script: str) -> None:
        """Put another program in the place of a tool; the tool stays as real/NAME (BusyBox goes by its name)."""
        tool = self.tools / name
        (self.tools / "real").mkdir(exist_ok=True)
        tool.rename(self.tools / "real" / name)
        tool.write_text(f"#!/bin/sh\nreal={self.tools}/real\n{script}\n")
        tool.chmod(0o755)

    def one_shot(self) -> list[str] | None:
        """Return the pid and arguments that the one-shot was started with."""
        return self.record.read_text().split("\0")[:-1] if self.record.exists() else None


@pytest.fixture(params=["dash", "busybox"])
def shim(request: pytest.FixtureRequest, tmp_path: Path) -> Shim:
    own = shutil.which(request.param)
    if own is None:
        pytest.skip(f"no {request.param} here")
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in TOOLS:
        is_own = request.param == "busybox" and name != "flock"  # Debian's BusyBox has no flock
        (tools / name).symlink_to(own if is_own else shutil.which(name) or pytest.fail(f"no {name}"))
    (tools / "do-failover").write_text(ONE_SHOT)
    (tools / "do-failover").chmod(0o755)
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    return Shim((own, "sh") if request.param == "busybox" else (own,), tools, run_dir, tmp_path / "record")


@pytest.fixture
def daemon(shim: Shim) -> Iterator[Daemon]:
    stand_in = Daemon(shim.run_dir)
    yield stand_in
    stand_in.close()


def test_a_living_daemon_gets_exactly_one_marked_line(shim: Shim, daemon: Daemon) -> None:
    before = read_order(os.getpid())
    pid, said = shim.run(*MASTER)
    line = daemon.read().decode()
    mark, ticks, own_pid, rest = line.split(" ", 3)
    assert (mark, own_pid, rest, said) == ("SCRIPT", str(pid), 'INSTANCE "VI_1" MASTER 150\n', "")
    assert before is not None
    assert before.start_ticks <= int(ticks) < before.start_ticks + 10**9
    assert shim.one_shot() is None


def test_the_start_time_is_the_kernels_and_a_name_with_parentheses_does_not_shift_it(shim: Shim, daemon: Daemon) -> None:
    odd = shim.tools / "a) 7 (b c"
    odd.write_text(Path(SHIM).read_text())
    # The stand-in holds the shim where it is, so that its entry in /proc can be read here.
    shim.stand_in("flock", 'read -r go < "$GATE"; exec $real/flock "$@"')
    odd.chmod(0o755)
    gate = shim.run_dir / "gate"
    os.mkfifo(gate)
    environment = {"PATH": str(shim.tools), "DO_FAILOVER_RUN_DIR": str(shim.run_dir), "GATE": str(gate)}
    process = subprocess.Popen([str(odd), *MASTER], env=environment)
    with gate.open("w") as opened:  # waits for the stand-in
        order = read_order(process.pid)
        comm = Path(f"/proc/{process.pid}/comm").read_text()
        opened.write("go\n")
    assert process.wait(60) == 0
    assert comm == "a) 7 (b c\n"
    _, ticks, pid, _ = daemon.read().decode().split(" ", 3)
    assert ProcessOrder(int(ticks), int(pid)) == order


@pytest.mark.parametrize("name", ["VI 1", 'a "quoted" one', "x.y", "ü", "$(id)`id`", "back\\n", "%s%d", "-n", "*", "  ", "'", "n" * 900])
def test_odd_names_arrive_as_they_are(shim: Shim, daemon: Daemon, name: str) -> None:
    shim.run("GROUP", name, "BACKUP", "0")
    line = daemon.read().decode()
    assert line.endswith(f' GROUP "{name}" BACKUP 0\n')
    event = parse_line(line.split(" ", 3)[3])
    assert (event.name, event.state, event.priority) == (name, "BACKUP", 0)
    assert shim.one_shot() is None


def test_without_a_priority_the_line_has_none(shim: Shim, daemon: Daemon) -> None:
    shim.run("INSTANCE", "VI_1", "FAULT")
    assert daemon.read().endswith(b' INSTANCE "VI_1" FAULT\n')


@pytest.mark.parametrize(
    "arguments",
    [
        ("INSTANCE", "two\nlines", "MASTER", "150"),
        ("INSTANCE", "", "MASTER", "150"),
        ("INSTANCE", "n" * 901, "MASTER", "150"),
        ("SCRIPT 1 2 INSTANCE", "VI_1", "MASTER", "150"),
        ("INSTANCE", "VI_1", "MASTER 150\nINSTANCE", "150"),
        ("INSTANCE", "VI_1", "MASTER", "15x"),
        ("INSTANCE", "VI_1", "MASTER", ""),
        ("INSTANCE", "VI_1", "MASTER", "150", "more"),
        ("INSTANCE", "VI_1"),
        (),
    ],
)
def test_what_is_no_line_goes_to_the_one_shot_which_explains_it(shim: Shim, daemon: Daemon, arguments: tuple[str, ...]) -> None:
    pid, _ = shim.run(*arguments)
    assert shim.one_shot() == [str(pid), "notify", *arguments]
    assert daemon.read() == b""


def test_a_dead_daemon_means_the_one_shot_as_the_same_process(shim: Shim, daemon: Daemon) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    (shim.run_dir / "daemon.lock").write_text(f"{ended.pid}\n")
    daemon.die()
    daemon.fill()  # and it does not wait for a FIFO that nobody reads
    shim.stand_in("timeout", "exit 99")
    pid, said = shim.run(*MASTER)
    assert (shim.one_shot(), said) == ([str(pid), "notify", *MASTER], "")


@pytest.mark.parametrize("content", ["", "\n", "no pid\n", "-1\n", "../self\n"])
@pytest.mark.parametrize("lives", [True, False])
def test_the_lock_counts_and_not_what_is_in_its_file(shim: Shim, daemon: Daemon, content: str, lives: bool) -> None:
    (shim.run_dir / "daemon.lock").write_text(content)
    if not lives:
        daemon.die()
    pid, _ = shim.run(*MASTER)
    assert (daemon.read() != b"") == lives
    assert shim.one_shot() == (None if lives else [str(pid), "notify", *MASTER])


def test_a_pid_that_was_used_again_swallows_no_event(shim: Shim, daemon: Daemon) -> None:
    daemon.die()  # and its pid, in the file, is a process that lives
    pid, _ = shim.run(*MASTER)
    assert shim.one_shot() == [str(pid), "notify", *MASTER]


def test_a_daemon_that_ends_after_the_line_was_written_swallows_no_event(shim: Shim, daemon: Daemon) -> None:
    for writer in ("dd", "timeout"):
        shim.stand_in(writer, f'$real/{writer} "$@" || exit; flock -u {daemon.lock}')
    pid, _ = shim.run(*MASTER, fds=(daemon.lock,))
    assert shim.one_shot() == [str(pid), "notify", *MASTER]


@pytest.mark.parametrize("missing", ["daemon.lock", "vrrp.fifo"])
@pytest.mark.parametrize("is_other", [True, False])
def test_without_lock_or_fifo_the_one_shot_runs_and_nothing_is_made(shim: Shim, daemon: Daemon, missing: str, is_other: bool) -> None:
    (shim.run_dir / missing).unlink()
    if is_other:
        (shim.run_dir / missing).mkdir()
    pid, _ = shim.run(*MASTER)
    assert shim.one_shot() == [str(pid), "notify", *MASTER]
    assert (shim.run_dir / missing).exists() == is_other


def test_a_fifo_that_is_a_file_is_not_written(shim: Shim, daemon: Daemon) -> None:
    daemon.fifo.unlink()
    daemon.fifo.write_text("mine")
    pid, said = shim.run(*MASTER)
    assert shim.one_shot() == [str(pid), "notify", *MASTER]
    assert daemon.fifo.read_text() == "mine"
    assert "no FIFO" in said


def test_the_fifo_may_be_elsewhere(shim: Shim, daemon: Daemon) -> None:
    daemon.fifo.rename(shim.run_dir / "other place")
    shim.run(*MASTER, DO_FAILOVER_FIFO=str(shim.run_dir / "other place"))
    assert daemon.read().endswith(b' INSTANCE "VI_1" MASTER 150\n')


def test_a_full_fifo_means_the_one_shot_and_a_sentence(shim: Shim, daemon: Daemon) -> None:
    daemon.fill()
    pid, said = shim.run(*MASTER)
    assert shim.one_shot() == [str(pid), "notify", *MASTER]
    assert "full" in said
    assert b"SCRIPT" not in daemon.read()


def test_a_reader_that_is_only_late_still_gets_the_line(shim: Shim, daemon: Daemon) -> None:
    daemon.fill()
    gate = shim.run_dir / "gate"
    os.mkfifo(gate)
    shim.stand_in("timeout", 'shift; : > "$GATE"; exec $real/timeout 60 "$@"')  # no clock in this test
    process = shim.start(*MASTER, GATE=str(gate))
    gate.read_bytes()
    while not (got := daemon.read()).endswith(b"MASTER 150\n"):
        assert process.poll() is None or got, "it ended without a line"
    assert process.communicate(timeout=60) == ("", "")
    assert shim.one_shot() is None


def test_a_fifo_that_nobody_has_open_blocks_nothing(shim: Shim, daemon: Daemon) -> None:
    os.close(daemon.reader)
    shim.run(*MASTER)
    daemon.reader = os.open(daemon.fifo, os.O_RDWR | os.O_NONBLOCK)
    assert shim.one_shot() is None


def test_thirty_at_once_write_thirty_whole_lines(shim: Shim, daemon: Daemon) -> None:
    names = [f"{number:02} " + "n" * 800 for number in range(30)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: shim.run("INSTANCE", name, "MASTER", "150"), names))
    lines = daemon.read().decode().splitlines()
    assert sorted(line.split(" ", 3)[3] for line in lines) == [f'INSTANCE "{name}" MASTER 150' for name in names]


def test_probing_scripts_do_not_take_each_other_for_a_daemon(shim: Shim, daemon: Daemon) -> None:
    fcntl.flock(daemon.lock, fcntl.LOCK_SH)  # another script, at this moment
    pid, _ = shim.run(*MASTER)
    assert shim.one_shot() == [str(pid), "notify", *MASTER]


def test_without_flock_the_one_shot_runs(shim: Shim, daemon: Daemon) -> None:
    (shim.tools / "flock").unlink()
    pid, _ = shim.run(*MASTER)
    assert shim.one_shot() == [str(pid), "notify", *MASTER]


def test_what_it_costs_is_two_programs(shim: Shim, daemon: Daemon) -> None:
    calls = shim.run_dir / "calls"
    calls.touch()
    for name in TOOLS:  # sh and printf are run by the stand-ins themselves
        shim.stand_in(name, ("" if name in {"sh", "printf"} else f'echo {name} >> "$CALLS"; ') + f'exec $real/{name} "$@"')
    shim.run(*MASTER, CALLS=str(calls))
    extra = ["timeout"] if "busybox" in shim.shell[0] else []  # its dd knows no nonblock
    assert calls.read_text().split() == ["dd", *extra, "flock"]


def test_without_the_program_it_says_so_and_ends_with_5(shim: Shim) -> None:
    (shim.tools / "do-failover").unlink()
    process = shim.start(*MASTER)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 5
    assert "no program do-failover" in said
    assert "INSTANCE VI_1 MASTER" in said


def test_a_syslog_that_hangs_delays_nobody(shim: Shim, daemon: Daemon) -> None:
    gate = shim.run_dir / "gate"
    os.mkfifo(gate)
    shim.stand_in("logger", 'echo "$*" > "$GATE"')  # which waits for a reader
    daemon.fifo.unlink()
    pid, _ = shim.run(*MASTER, GATE=str(gate))
    assert shim.one_shot() == [str(pid), "notify", *MASTER]
    assert "no FIFO" in gate.read_text()
