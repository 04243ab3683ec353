"""Who may act: real processes, real locks, real signals."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from do_failover.claims import Claims, Latest, ManualMove, ProcessOrder, Turn, describe_newer, read_age_s, read_order
from do_failover.errors import TemporaryError
from do_failover.model import NotifyEvent, NotifyType, VrrpState

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

IP = "203.0.113.47"
MASTER = NotifyEvent(NotifyType.INSTANCE, 'VI "1"/x', VrrpState.MASTER, 150)
BACKUP = NotifyEvent(NotifyType.INSTANCE, 'VI "1"/x', VrrpState.BACKUP, 150)


def claims(tmp_path: Path, ticks: int, pid: int = 0) -> Claims:
    return Claims(tmp_path, ProcessOrder(ticks, pid or os.getpid()))


def hold_turn(run_dir: str, is_manual: bool) -> subprocess.Popen[bytes]:
    """Start a process that has the turn and says when SIGTERM comes."""
    code = f"""
import signal, sys
from pathlib import Path
from do_failover.claims import Claims
from do_failover.model import NotifyEvent, NotifyType, VrrpState
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR1])
event = NotifyEvent(NotifyType.INSTANCE, 'VI "1"/x', VrrpState.MASTER, 150)
turn = Claims(Path({run_dir!r})).try_start({IP!r}, event, is_manual={is_manual})
print("turn" if turn is not None else "none", flush=True)
signal.sigwait([signal.SIGUSR1])
print("told" if signal.SIGTERM in signal.sigpending() else "untold", flush=True)
sys.stdin.read()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"turn\n"
    return process


@pytest.fixture(params=[False, True], ids=["event", "manual"])
def holder(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[bytes]]:
    process = hold_turn(str(tmp_path), request.param)
    yield process
    process.kill()
    process.communicate()


def is_told(process: subprocess.Popen[bytes]) -> bool:
    """Ask it whether SIGTERM is pending there."""
    process.send_signal(signal.SIGUSR1)
    assert process.stdout is not None
    return process.stdout.readline() == b"told\n"


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_the_later_process_wins_in_whatever_order_they_come(tmp_path: Path, order: tuple[int, int]) -> None:
    events = {1: MASTER, 2: BACKUP}
    answers = {ticks: claims(tmp_path, ticks).enter(events[ticks], (IP,)) for ticks in order}
    assert answers[order[0]] is None
    if order == (2, 1):
        newer = answers[1]
        assert isinstance(newer, Latest)
        assert newer.event == BACKUP
    latest = claims(tmp_path, 9).read_latest(MASTER)
    assert latest is not None
    assert latest.event == BACKUP


def test_at_the_same_tick_the_pid_decides(tmp_path: Path) -> None:
    assert claims(tmp_path, 5, pid=11).enter(BACKUP, ()) is None
    assert claims(tmp_path, 5, pid=10).enter(MASTER, ()) is not None
    assert claims(tmp_path, 5, pid=12).enter(MASTER, ()) is None


def test_an_event_of_a_former_boot_counts_for_nothing(tmp_path: Path) -> None:
    claims(tmp_path, 10**9).enter(BACKUP, ())
    (file,) = tmp_path.glob("*.event")
    file.write_bytes(file.read_bytes().replace(b'"boot_id":"', b'"boot_id":"former-'))
    assert claims(tmp_path, 1).enter(MASTER, ()) is None


@pytest.mark.parametrize("garbage", [b"", b"{", b"[]", b"\xff\x00", b'{"boot_id":1}'])
def test_a_damaged_file_counts_for_nothing(tmp_path: Path, garbage: bytes) -> None:
    claims(tmp_path, 3).enter(BACKUP, ())
    (file,) = tmp_path.glob("*.event")
    file.write_bytes(garbage)
    assert claims(tmp_path, 1).enter(MASTER, (IP,)) is None


def test_names_are_kept_apart(tmp_path: Path) -> None:
    other = NotifyEvent(NotifyType.GROUP, MASTER.name, VrrpState.BACKUP)
    claims(tmp_path, 5).enter(other, ())
    assert claims(tmp_path, 1).enter(MASTER, ()) is None
    assert claims(tmp_path, 9).read_claim("GROUP", MASTER.name) is VrrpState.BACKUP
    assert claims(tmp_path, 9).read_claim("INSTANCE", "other") is None


def test_one_turn_at_a_time(tmp_path: Path, holder: subprocess.Popen[bytes]) -> None:
    mine = Claims(tmp_path)
    assert mine.try_start(IP, MASTER) is None
    other = mine.try_start("203.0.113.48", MASTER)
    assert other is not None
    assert not isinstance(other, Latest)
    other.end()
    running = mine.read_running(IP)
    assert running is not None
    assert running.pid == holder.pid
    holder.kill()
    holder.wait()
    assert mine.read_running(IP) is None
    turn = mine.try_start(IP, MASTER)
    assert turn is not None
    assert not isinstance(turn, Latest)
    turn.end()


def test_a_newer_event_tells_the_running_failover(tmp_path: Path, holder: subprocess.Popen[bytes]) -> None:
    assert Claims(tmp_path).enter(MASTER, (IP,)) is None
    assert is_told(holder)


def test_backup_ends_a_failover_but_not_a_persons(tmp_path: Path, holder: subprocess.Popen[bytes]) -> None:
    running = Claims(tmp_path).read_running(IP)
    assert running is not None
    assert Claims(tmp_path).enter(BACKUP, (IP,)) is None
    assert is_told(holder) is not running.is_manual


def test_an_event_of_another_ip_tells_nobody(tmp_path: Path, holder: subprocess.Popen[bytes]) -> None:
    Claims(tmp_path).enter(MASTER, ("203.0.113.48",))
    assert not is_told(holder)


def test_a_turn_that_could_not_be_signed_is_not_kept(tmp_path: Path) -> None:
    first = claims(tmp_path, 100)
    assert first.enter(MASTER, (IP,)) is None
    with next(tmp_path.glob("*.lock")).open("rb+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(TemporaryError, match="does not let go"):
            first.try_start(IP, MASTER)
    before = len(os.listdir("/proc/self/fd"))
    turn = claims(tmp_path, 100, pid=os.getpid() + 1).try_start(IP, MASTER)
    assert isinstance(turn, Turn)
    assert claims(tmp_path, 100).try_start(IP, MASTER) is None
    turn.end()
    turn.end()
    assert len(os.listdir("/proc/self/fd")) == before


def test_who_was_superseded_before_its_turn_finds_out(tmp_path: Path) -> None:
    older = claims(tmp_path, 1)
    assert older.enter(MASTER, (IP,)) is None
    claims(tmp_path, 2).enter(BACKUP, (IP,))
    answer = older.try_start(IP, MASTER)
    assert isinstance(answer, Latest)
    assert answer.event == BACKUP
    turn = Claims(tmp_path).try_start(IP, BACKUP)  # the turn was not kept
    assert turn is not None
    assert not isinstance(turn, Latest)
    turn.end()


def _enter(tmp_path: Path, barrier: object, answers: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    mine = Claims(tmp_path)
    newer = mine.enter(MASTER, (IP,))
    answers.put((read_order(os.getpid()), newer is None))  # type: ignore[attr-defined]


def test_many_at_once_end_with_the_last_started(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(8), context.Queue()
    processes = [context.Process(target=_enter, args=(tmp_path, barrier, answers)) for _ in range(8)]
    for process in processes:
        process.start()
    orders = [answers.get(timeout=20) for _ in processes]
    for process in processes:
        process.join()
    latest = Claims(tmp_path).read_latest(MASTER)
    assert latest is not None
    assert latest.order == max(order for order, _ in orders)
    assert dict(orders)[latest.order]


def test_an_unusable_run_dir_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TemporaryError, match="check paths.run_dir"):
        Claims(tmp_path / "file" / "run")


def test_ages_and_orders() -> None:
    assert read_order(2**22 + 5) is None
    mine = read_order(os.getpid())
    assert mine is not None
    assert mine.pid == os.getpid()
    assert 0 < read_age_s(os.getpid()) < time.monotonic() + 1


def test_a_person_who_moved_the_ip_elsewhere_is_not_overruled_by_an_older_event(tmp_path: Path) -> None:
    claims(tmp_path, 5).note_manual_move(IP)
    answer = claims(tmp_path, 4).try_start(IP, MASTER)
    assert isinstance(answer, ManualMove)
    assert "a person" in describe_newer(answer)
    for mine, is_manual in ((claims(tmp_path, 6), False), (claims(tmp_path, 4), True)):
        turn = mine.try_start(IP, MASTER, is_manual=is_manual)
        assert isinstance(turn, Turn)
        turn.end()


def test_a_file_that_is_no_text_counts_for_nothing(tmp_path: Path) -> None:
    mine = claims(tmp_path, 5)
    assert mine.enter(MASTER, (IP,)) is None
    for path in (*tmp_path.glob("*.event"), tmp_path / f"{IP}.running", tmp_path / f"{IP}.moved"):
        path.write_bytes(b'{"boot_id":"\xff\xfe"}')
    assert mine.find_newer(MASTER) is None
    assert mine.read_running(IP) is None
    turn = mine.try_start(IP, MASTER)
    assert isinstance(turn, Turn)
    turn.end()
