"""The host's network limits: raised while a large lab stands, put back by the last guard, whatever ended the labs."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from do_failover.lab import guard

pytestmark = pytest.mark.root


def limits() -> dict[str, str]:
    return {name: (guard.SETTINGS / name).read_text(encoding="ascii").strip() for name in guard.LIMITS}


def start_guard() -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-m", "do_failover.lab.guard"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == guard.RAISED
    return process


@pytest.mark.skipif(not guard.can_raise(), reason="only the first network namespace has these limits")
def test_the_last_guard_puts_the_limits_back() -> None:
    before, raised = limits(), {name: str(value) for name, value in guard.LIMITS.items()}
    first, second = start_guard(), start_guard()
    assert limits() == raised
    first.communicate(timeout=10)
    assert limits() == raised
    second.communicate(timeout=10)
    assert limits() == before
    assert not guard.FOUND.exists()


@pytest.mark.skipif(not guard.can_raise(), reason="only the first network namespace has these limits")
def test_a_large_lab_killed_with_its_command_puts_them_back_too() -> None:
    before = limits()
    command = [sys.executable, "-m", "do_failover", "lab", "run", "--without-tool", "--peers", str(guard.ENOUGH_PEERS + 1)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert b"nodes built" in process.stdout.readline()
        assert limits() != before
        process.kill()
    end = time.monotonic() + 10
    while limits() != before:
        assert time.monotonic() < end
