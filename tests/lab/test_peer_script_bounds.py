"""share/do-failover-peer: its bounds, and what it does with real pings."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from forced_command import ALLOWED, GREETING, PATTERN, SCRIPT, SHELLS, Stand, answer, frame, have, make_stand
from two_hosts import open_link, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from two_hosts import Link

pytestmark = pytest.mark.skipif(not have("busybox", "ping", "ip"), reason="scripts/test installs them")


@pytest.fixture(params=list(SHELLS))
def shell(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return SHELLS[request.param]


@pytest.fixture
def stand(tmp_path: Path, shell: tuple[str, ...]) -> Stand:
    return make_stand(tmp_path / "stand", shell)


# -- its bounds


def test_refusals_are_logged_in_clean_text_and_after_32_it_ends(stand: Stand) -> None:
    done = stand.run("9 arm \x1b[2J\u00e9\x00$(id)'\"\n" * 200 + "1 :\n", SSH_CONNECTION="10.110.0.11 5 10.0.0.1 22")
    assert done.returncode == 1
    assert done.stdout.decode().count("@do-failover refused") == 32
    until(lambda: len(stand.calls()) == 9, "nine calls of logger")
    for call in stand.calls():
        assert call[:5] == ["logger", "-t", "do-failover-peer", "-p", "auth.warning"]
        assert call[5] == "--"
        assert re.fullmatch(r"refused from 10\.110\.0\.11: [ -~]{1,250}", call[6])
    assert sum("9 arm ?[2J??$(id)'\"" in call[6] for call in stand.calls()) == 8


def test_a_flood_of_lines_runs_sixteen_at_once_at_most(tmp_path: Path, shell: tuple[str, ...]) -> None:
    count = (
        '#!/bin/sh\n: >"$RECORD/run.$$"\nset -- "$RECORD"/run.*\necho $# >"$RECORD/count.$$"\n'
        '/bin/sleep 0.05\n/bin/rm -f "$RECORD/run.$$"\n'
    )
    stand = make_stand(tmp_path / "flood", shell, ip=count)
    found = stand.run("".join(f"{number} state 203.0.113.47\n" for number in range(1, 121)), timeout=120).stdout.decode()
    assert found.count("do-failover-peer.\n") == 120
    counts = [int(path.read_text()) for path in stand.record.glob("count.*")]
    assert len(counts) == 240
    assert 1 < max(counts) <= 16


def test_a_line_without_an_end_costs_no_more_than_its_bound(tmp_path: Path, shell: tuple[str, ...]) -> None:
    stand = make_stand(tmp_path / "bounded", shell, most_kib=8192)  # the shipped bound takes long to reach
    argv, block, most = [*stand.shell, str(stand.script), "--allow", ALLOWED], b"9" * 65536, 0
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            for _ in range(400):
                process.stdin.write(block)
                status = Path(f"/proc/{process.pid}/status").read_text()
                most = max(most, *map(int, re.findall(r"VmSize:\s+(\d+)", status)), 0)
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        assert process.stdout.read().startswith(GREETING.encode())
    assert 0 < most <= 8192 + 256
    assert process.returncode != 0, "it took all of it"


def test_it_ends_with_its_stdin_and_leaves_no_process(stand: Stand) -> None:
    argv = [*stand.shell, str(stand.script), "--allow", ALLOWED]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline().decode() == GREETING
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        assert children == "", "nothing but the loop itself waits for a line"
        process.stdin.close()
        assert process.wait(10) == 0
        assert process.stdout.read() == b""


def test_the_last_line_needs_no_end_and_several_are_under_way(tmp_path: Path, shell: tuple[str, ...]) -> None:
    wait = 'n=0; while ! [ -e "$RECORD/go" ] && [ $n -lt 500 ]; do n=$((n + 1)); /bin/sleep 0.01; done; [ -e "$RECORD/go" ] && echo both'
    slow = f'#!/bin/sh\ncase $* in *203.0.113.47*) {wait} ;; *) : >"$RECORD/go" ;; esac\n'
    stand = make_stand(tmp_path / "slow", shell, ip=slow)
    found = answer(stand, "1 state 203.0.113.47\n2 state 198.51.100.1")  # the first ends only after the second began
    assert found.count("do-failover-peer.\n") == 2
    assert "route 203.0.113.47\nboth\n" in found


def test_it_ends_only_after_its_last_answer(tmp_path: Path, shell: tuple[str, ...]) -> None:
    stand = make_stand(tmp_path / "late", shell, ip='#!/bin/sh\n/bin/sleep 0.2\n: >"$RECORD/done"\n')
    argv = [*stand.shell, str(stand.script), "--allow", ALLOWED]
    environment = {"RECORD": str(stand.record)}
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdin is not None
        process.stdin.write(b"1 state 203.0.113.47\n")
        process.stdin.close()
        assert process.wait(10) == 0
        assert (stand.record / "done").exists()


def test_arm_needs_an_address_where_the_list_has_prefixes_only(stand: Stand) -> None:
    assert "@do-failover refused\n" in answer(stand, "1 arm\n", "--allow", "198.51.100.0/24")
    assert "@do-failover refused\n" not in answer(stand, "1 arm 198.51.100.1\n", "--allow", "198.51.100.0/24")


# -- on real parts


@pytest.fixture(scope="module")
def link() -> Iterator[Link]:
    with open_link() as opened:
        yield opened


@pytest.mark.root
@pytest.mark.parametrize("name", list(SHELLS))
def test_real_pings_reach_the_owner_and_the_entry_is_shown(link: Link, name: str) -> None:
    ours, ours6, nobody = str(link.ours.address), str(link.ours.address6), "198.18.0.99"
    argv = ("timeout", "60", *SHELLS[name], str(SCRIPT), "--allow", f"{ours},{ours6},{nobody}")
    text = link.peer.run(*argv, stdin=f"1 refresh {nobody} {ours} {PATTERN}\n2 refresh {ours6} {PATTERN}\n3 silence {nobody} {ours}\n")
    for expected in (
        frame(1, ("kind", "marked"), (f"ping {nobody}", "1"), (f"ping {ours}", "0")),
        frame(2, ("kind", "marked"), (f"ping {ours6}", "0")),
        frame(3, ("owner", "1"), ("us", "0")),
    ):
        assert expected in text
    text = link.peer.run(*argv, stdin=f"4 arm\n5 state {ours} {ours6}\n")
    assert f'"prefsrc":"{link.peer.address}"' in text
    assert text.count(f'"lladdr":"{link.ours.lladdr.hex(":")}"') == 2


@pytest.mark.root
@pytest.mark.skipif(not have("setpriv"), reason="needs setpriv")
@pytest.mark.parametrize("name", list(SHELLS))
def test_a_user_who_may_not_ping_says_so(link: Link, tmp_path: Path, name: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        script = Path(shutil.copy(SCRIPT, directory))
        ours = str(link.ours.address)
        argv = ("setpriv", "--reuid=64999", "--regid=64999", "--clear-groups", "--no-new-privs", "--", "timeout", "60")
        argv = (*argv, *SHELLS[name], str(script), "--allow", ours)
        for groups, status in (("1 0", "forbidden"), ("0 2147483647", "0")):
            link.peer.run("sysctl", "-qw", f"net.ipv4.ping_group_range={groups}")
            text = link.peer.run(*argv, stdin=f"1 refresh {ours} {PATTERN}\n")
            assert frame(1, ("kind", "marked"), (f"ping {ours}", status)) in text
