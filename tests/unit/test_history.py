"""The history: a record is complete or absent, whatever happens to its writer."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_report import BASE, make_report

from do_failover import history
from do_failover.errors import FailoverError, PermanentError, TemporaryError
from do_failover.model import Outcome


def ids(directory: Path, limit: int = 100) -> list[str]:
    return [record.id for record in history.read_records(directory, limit).records]


# -- ids

MOMENTS = st.datetimes(
    min_value=datetime(1970, 1, 2),  # noqa: DTZ001 - hypothesis wants them naive
    max_value=datetime(9990, 1, 1),  # noqa: DTZ001
    timezones=st.integers(-14, 14).map(lambda hours: timezone(timedelta(hours=hours))),
)


@given(MOMENTS, MOMENTS, st.binary(min_size=1, max_size=8))
def test_ids_sort_by_time_and_are_file_names(one: datetime, other: datetime, random: bytes) -> None:
    first, second = history.make_id(one, random), history.make_id(other, random)
    assert (first < second) == (one < other)
    assert Path(first).name == first
    assert set(first) <= set("0123456789abcdefTZ-")


def test_ids_need_a_zone_and_randomness() -> None:
    with pytest.raises(ValueError, match="zone"):
        history.make_id(datetime(2026, 1, 1), b"1234")  # noqa: DTZ001
    with pytest.raises(ValueError, match="random"):
        history.make_id(BASE, b"")


# -- append and read


def test_append_and_read(tmp_path: Path) -> None:
    directory = tmp_path / "deep" / "history"
    assert history.read_records(directory, 5) == history.Records((), 0)
    for number in (2, 0, 1):
        history.append_record(directory, make_report(number))
    assert history.read_records(directory, 2).records == (make_report(2), make_report(1))
    assert sorted(path.name for path in directory.iterdir()) == sorted(f"{make_report(n).id}.json" for n in range(3))
    modes = {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    assert modes == {0o640}


async def test_append_in_a_thread(tmp_path: Path) -> None:
    await history.append_record_in_thread(tmp_path, make_report())
    assert ids(tmp_path) == [make_report().id]


def test_mode_is_0640_under_any_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        history.append_record(tmp_path, make_report())
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / f"{make_report().id}.json").stat().st_mode) == 0o640


def test_read_by_prefix(tmp_path: Path) -> None:
    for number in (0, 1, 70):
        history.append_record(tmp_path, make_report(number))
    one = make_report(70)
    assert history.read_record(tmp_path, one.id) == one
    assert history.read_record(tmp_path, "20260301T0301") == one
    for prefix, sentence in (("2026", "3 records begin with '2026'"), ("1999", "has no record"), ("", "has no record")):
        with pytest.raises(PermanentError, match=sentence) as caught:
            history.read_record(tmp_path, prefix)
        assert caught.value.kind == "history"
    with pytest.raises(PermanentError, match="has no record"):
        history.read_record(tmp_path, "../../etc/passwd")


def test_prunes_the_oldest_records_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "00-notes.json").write_text("{}")
    for number in range(6):
        history.append_record(tmp_path, make_report(number), keep=3)
    assert ids(tmp_path) == [make_report(number).id for number in (5, 4, 3)]
    assert (tmp_path / "00-notes.json").exists()


def test_a_night_of_failed_rounds_pushes_nothing_else_out(tmp_path: Path) -> None:
    history.append_record(tmp_path, make_report(0), keep=20)
    for number in range(1, 40):
        for offset, ip in enumerate(("45.55.96.47", "45.55.96.48")):
            failed = make_report(number * 2 + offset, round=number, outcome=Outcome.FAILED, reserved_ip=ip)
            history.append_record(tmp_path, failed, keep=30)
    found = history.read_records(tmp_path, 100).records
    assert found[-1].id == make_report(0).id
    rounds = [each.round for each in found if each.reserved_ip == "45.55.96.47" and each.outcome is Outcome.FAILED]
    assert rounds == [39, *range(10, 0, -1)]


def test_foreign_and_garbage_files_are_skipped_and_counted(tmp_path: Path) -> None:
    history.append_record(tmp_path, make_report(0))
    good = (tmp_path / f"{make_report(0).id}.json").read_bytes()
    (tmp_path / f"{make_report(1).id}.json").write_bytes(good[:-20])  # cut off
    (tmp_path / f"{make_report(2).id}.json").write_bytes(good)  # another's content
    (tmp_path / f"{make_report(3).id}.json").write_bytes(os.urandom(512))
    (tmp_path / f"{make_report(4).id}.json").mkdir()
    os.mkfifo(tmp_path / f"{make_report(5).id}.json")  # would block a plain open
    (tmp_path / f"{make_report(6).id}.json").symlink_to("/nowhere")
    (tmp_path / "README").write_text("not json, not counted")
    found = history.read_records(tmp_path, 10)
    assert found.records == (make_report(0),)
    assert found.skipped == 6
    with pytest.raises(PermanentError, match="cannot be read as a record"):
        history.read_record(tmp_path, make_report(1).id)


def test_leftovers_of_a_crash_are_removed_by_the_next_append(tmp_path: Path) -> None:
    leftover = tmp_path / f".{make_report(0).id}.json.1.2.tmp"
    foreign = tmp_path / ".something.tmp"
    for path in (leftover, foreign):
        path.write_text("half")
    assert ids(tmp_path) == []
    history.append_record(tmp_path, make_report(1))
    assert not leftover.exists()
    assert foreign.exists()


def test_leftovers_stay_while_another_writer_is_at_work(tmp_path: Path) -> None:
    its_file = tmp_path / f".{make_report(0).id}.json.1.2.tmp"
    its_file.write_text("half")
    place = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(place, fcntl.LOCK_SH)
        history.append_record(tmp_path, make_report(1))
    finally:
        os.close(place)
    assert its_file.exists()
    assert ids(tmp_path) == [make_report(1).id]


def test_a_stopped_cleaner_does_not_hold_up_the_failover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "_LOCK_WAIT_S", 0.0)
    place = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(place, fcntl.LOCK_EX)
        with pytest.raises(TemporaryError, match="another process holds it locked"):
            history.append_record(tmp_path, make_report(1))
    finally:
        os.close(place)


def test_an_id_that_is_no_file_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match="not kept"):
        history.append_record(tmp_path / "sub", make_report(0, id="../evil"))
    assert list(tmp_path.iterdir()) == []


def test_unusable_directories_are_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for directory in (file, file / "below"):
        with pytest.raises(TemporaryError, match="not in the history") as caught:
            history.append_record(directory, make_report())
        assert caught.value.kind == "history"
        assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(FailoverError, match="cannot be read"):
        history.read_records(file, 1)


# -- crashes, real ones

APPENDER = """
import sys, itertools
sys.path[:0] = [sys.argv[3], sys.argv[4]]
from pathlib import Path
from do_failover import history
from sample_report import make_report
start, step, stop = (int(part) for part in sys.argv[2].split(","))
for number in range(start, stop, step):
    history.append_record(Path(sys.argv[1]), make_report(number), keep=10**6)
    print(number, flush=True)
"""


def start_appender(directory: Path, start: int, step: int, stop: int) -> subprocess.Popen[str]:
    here = Path(__file__).parent
    arguments = [str(directory), f"{start},{step},{stop}", str(here), str(here.parent.parent)]
    return subprocess.Popen([sys.executable, "-c", APPENDER, *arguments], stdout=subprocess.PIPE, text=True)


def test_kill_9_leaves_complete_records_only(tmp_path: Path) -> None:
    acknowledged: list[int] = []
    for run in range(6):
        with start_appender(tmp_path, run * 100_000, 1, (run + 1) * 100_000) as process:
            assert process.stdout is not None
            acknowledged += [int(process.stdout.readline()) for _ in range(5 + 7 * run)]
            process.send_signal(signal.SIGKILL)
            acknowledged += [int(line) for line in process.stdout if line.endswith("\n")]
        found = history.read_records(tmp_path, 10**6)
        assert found.skipped == 0
        assert {make_report(number).id for number in acknowledged} <= {record.id for record in found.records}
    history.append_record(tmp_path, make_report(10**6), keep=10**6)
    assert not list(tmp_path.glob(".*"))


CUT_OFF = """
import resource, signal, sys
sys.path[:0] = [sys.argv[3], sys.argv[4]]
from pathlib import Path
from do_failover import history
from sample_report import make_report
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # which Python ignores
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
history.append_record(Path(sys.argv[1]), make_report(1))
"""


@pytest.mark.parametrize("size", [0, 1, 100, 700])
def test_a_writer_killed_in_the_middle_of_its_write_leaves_no_record(tmp_path: Path, size: int) -> None:
    here = Path(__file__).parent
    history.append_record(tmp_path, make_report(0))
    command = [sys.executable, "-c", CUT_OFF, str(tmp_path), str(size), str(here), str(here.parent.parent)]
    assert subprocess.run(command, check=False, timeout=60).returncode == -signal.SIGXFSZ
    assert len(list(tmp_path.glob(".*.tmp"))) == 1  # it did die in the middle
    assert history.read_records(tmp_path, 10) == history.Records((make_report(0),), 0)
    history.append_record(tmp_path, make_report(1))
    assert sorted(tmp_path.iterdir()) == [tmp_path / f"{make_report(number).id}.json" for number in (0, 1)]


def test_several_processes_append_at_once(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(start_appender(tmp_path, first, 4, 200)) for first in range(4)]
        for process in processes:
            process.communicate(timeout=60)
            assert process.returncode == 0
    found = history.read_records(tmp_path, 1000)
    assert (len(found.records), found.skipped) == (200, 0)
    assert not list(tmp_path.glob(".*"))


# -- a full disk and a read-only one, real ones

FILLER = """
import os, sys
sys.path[:0] = [sys.argv[2], sys.argv[3]]
from pathlib import Path
from do_failover import history
from do_failover.errors import TemporaryError
from sample_report import make_report
directory = Path(sys.argv[1])
kept = 0
try:
    while True:
        history.append_record(directory, make_report(kept), keep=10**6)
        kept += 1
except TemporaryError as error:
    found = history.read_records(directory, 10**6)
    print(kept, len(found.records), found.skipped, len(list(directory.glob(".*"))), error.kind, error.message, sep="|")
"""


def run_on_small_disk(directory: Path, options: str, before: str = "") -> list[str]:
    """Run FILLER in a mount namespace of its own, where a small tmpfs covers the directory."""
    here = Path(__file__).parent
    script = f'mount -t tmpfs -o size=64k,{options} tmpfs "$1" && {before} exec "$2" -c "$3" "$1" "$4" "$5"'
    command = ["unshare", "-m", "sh", "-c", script, "sh", str(directory), sys.executable, FILLER, str(here)]
    done = subprocess.run([*command, str(here.parent.parent)], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.strip().split("|")


@pytest.mark.root
def test_full_disk(tmp_path: Path) -> None:
    kept, found, skipped, leftovers, kind, message = run_on_small_disk(tmp_path, "rw")
    assert int(kept) > 3
    assert (found, skipped, leftovers) == (kept, "0", "0")
    assert kind == "history"
    assert "No space left on device" in message
    assert "make room" in message


@pytest.mark.root
def test_full_of_inodes(tmp_path: Path) -> None:
    kept, found, skipped, leftovers, kind, _ = run_on_small_disk(tmp_path, "rw,nr_inodes=6")
    assert (kept, found, skipped, leftovers, kind) == ("5", "5", "0", "0", "history")


@pytest.mark.root
def test_read_only_disk(tmp_path: Path) -> None:
    kept, _, _, _, kind, message = run_on_small_disk(tmp_path, "ro")
    assert (kept, kind) == ("0", "history")
    assert os.strerror(errno.EROFS) in message
    assert "mount it writable" in message
