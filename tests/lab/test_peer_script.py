"""share/do-failover-peer: what it does for its words, and that it can't be talked into anything else."""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from forced_command import ALLOWED, GREETING, PATTERN, SHELLS, STAND_INS, Stand, answer, frame, have, make_stand
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.skipif(not have("busybox", "ping", "ip"), reason="scripts/test installs them")
NETWORKS = [ipaddress.ip_network(each) for each in ALLOWED.split(",")]


@pytest.fixture(params=list(SHELLS))
def shell(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return SHELLS[request.param]


@pytest.fixture
def stand(tmp_path: Path, shell: tuple[str, ...]) -> Stand:
    return make_stand(tmp_path / "stand", shell)


# -- its words


def test_refresh_pings_in_order_and_the_last_carries_the_pattern(stand: Stand) -> None:
    found = answer(stand, f"7 refresh 198.51.100.11 203.0.113.47 {PATTERN}\n")
    assert found == frame(7, ("kind", "marked"), ("ping 198.51.100.11", "0"), ("ping 203.0.113.47", "0"))
    assert sorted(stand.calls()) == sorted(
        [
            ["ping", "-V"],
            ["ping", "-n", "-q", "-c", "1", "-W", "1", "198.51.100.11"],
            ["ping", "-n", "-q", "-i", "0.2", "-p", PATTERN, "-c", "3", "-W", "1", "203.0.113.47"],
        ]
    )


def test_busyboxs_ping_gets_no_pattern_and_is_said_to_be_plain(tmp_path: Path, shell: tuple[str, ...]) -> None:
    ping = STAND_INS["ping"].replace("exit", '[ "$1" != -V ] || exit 1\nexit')
    stand = make_stand(tmp_path / "plain", shell, ping=ping)
    assert answer(stand, f"1 refresh 203.0.113.47 {PATTERN}") == frame(1, ("kind", "plain"), ("ping 203.0.113.47", "0"))
    assert ["ping", "-q", "-c", "3", "-W", "1", "203.0.113.47"] in stand.calls()


def test_a_ping_that_carries_one_byte_sends_the_patterns_last_one_beside_the_plain_ones(tmp_path: Path, shell: tuple[str, ...]) -> None:
    helps = 'case $1 in -V) exit 1 ;; --help) echo "  -p HEXBYTE  Payload pattern" >&2; exit 1 ;; esac'
    stand = make_stand(tmp_path / "byte", shell, ping=STAND_INS["ping"].replace("exit", f"{helps}\nexit"))
    found = answer(stand, f"1 refresh 198.51.100.11 203.0.113.47 {PATTERN}")
    assert found == frame(1, ("kind", "byte"), ("ping 198.51.100.11", "0"), ("ping 203.0.113.47", "0"))
    assert sorted(call for call in stand.calls() if call[1] == "-q") == [
        ["ping", "-q", "-c", "1", "-W", "1", "-p", PATTERN[-2:], "203.0.113.47"],
        ["ping", "-q", "-c", "1", "-W", "1", "198.51.100.11"],
        ["ping", "-q", "-c", "3", "-W", "1", "203.0.113.47"],
    ]


def test_arm_state_and_silence(stand: Stand) -> None:
    route = ("route 203.0.113.47", '[{"dst":"203.0.113.47"}]')
    assert answer(stand, "1 arm 203.0.113.47\n") == frame(1, ("kind", "marked"), route)
    assert answer(stand, "2 arm\n") == frame(2, ("kind", "marked"), route)  # all of the list that are no prefix
    assert answer(stand, "3 state 203.0.113.47\n") == frame(3, ("neighbour 203.0.113.47", "[]"), route)
    assert answer(stand, "4 silence 198.51.100.11 198.51.100.12\n", PING_STATUS="1") == frame(4, ("owner", "1"), ("us", "1"))
    assert answer(stand, "5 :") == "do-failover-peer 5 0\n\ndo-failover-peer.\n"


@pytest.mark.parametrize(
    ("ping", "status"),
    [
        ("echo 'ping: socket: Operation not permitted' >&2; exit 2", "forbidden"),
        ("echo 'ping: permission denied (are you root?)' >&2; exit 1", "forbidden"),
        ("echo 'ping: sendmsg: Operation not permitted' >&2; exit 1", "1"),
        ("echo 'ping: connect: Network is unreachable' >&2; exit 2", "2"),
        ("kill -9 $$", "2"),
        ("", "missing"),
    ],
)
def test_how_a_ping_failed(tmp_path: Path, shell: tuple[str, ...], ping: str, status: str) -> None:
    stand = make_stand(tmp_path / "failing", shell, ping=ping and f'#!/bin/sh\n[ "$1" != -V ] || exit 0\n{ping}\n')
    kind = "marked" if ping else "plain"
    assert answer(stand, "1 refresh 203.0.113.47 00\n") == frame(1, ("kind", kind), ("ping 203.0.113.47", status))


# -- what it refuses


@pytest.mark.parametrize(
    "line",
    [
        "refresh 203.0.113.47 00",
        "1",
        "x arm",
        "12345678901 arm",
        "1 refresh",
        "1 refresh 203.0.113.47",
        "1 refresh 203.0.113.47 203.0.113.47",
        "1 refresh 203.0.113.47 0",
        "1 refresh 203.0.113.47 0G",
        f"1 refresh 203.0.113.47 {PATTERN}00",
        "1 refresh 00",
        "1 state",
        "1 state 203.0.113.48",
        "1 state 203.0.113.47 203.0.113.48",
        "1 state 198.51.101.1",
        "1 state 0203.0.113.47",
        "1 state 203.0.113.047",
        "1 state 3405803823",
        "1 state 203.0.28975",
        "1 state 2001:db9::1",
        "1 state 2001:db8::1::2",
        "1 state 2001:db8:::1",
        "1 state ff02::1",
        "1 state ::ffff:203.0.113.47",
        "1 state fe80::1%eth0",
        "1 state localhost",
        "1 state -f",
        "1 state --help",
        "1 silence 203.0.113.47",
        "1 state 203.0.113.47 203.0.113.47 203.0.113.47 203.0.113.47 203.0.113.47",
        "1 do_state 203.0.113.47",
        "1 log x",
        "1 arm; id",
        "1 arm $(id)",
        "1 arm `id`",
        "1 arm\t203.0.113.47",
        "1 arm 203.0.113.47 *",
        "1 arm ~",
        "1 arm ../x",
        "1 arm 203.0.113.47\r",
        "1 : 203.0.113.47",
        "1 arm " + "203.0.113.47 " * 60,
        "1 arm" + " " * 600 + "203.0.113.47",
    ],
)
def test_anything_else_is_refused_in_a_few_lines_and_runs_nothing(stand: Stand, line: str) -> None:
    found = answer(stand, f"{line}\n2 :\n")
    head, section, reason, end, *rest = found.splitlines()
    assert head in {"do-failover-peer 0 0", "do-failover-peer 1 0"}
    assert (section, end) == ("@do-failover refused", "do-failover-peer.")
    assert reason
    assert "\n".join(rest) == "do-failover-peer 2 0\n\ndo-failover-peer."
    assert [call for call in stand.calls() if call[0] != "logger"] in ([], [["ping", "-V"]])


@pytest.mark.parametrize(
    "allowed",
    ["", ",", "0.0.0.0/0", "10.0.0.0/7", "::/0", "2001:db8::/31", "127.0.0.1", "224.0.0.1", "ff02::1", "::1", "app1", "*", "/24"],
)
def test_without_a_sound_list_it_does_nothing_and_says_so(stand: Stand, allowed: str) -> None:
    done = stand.run("1 :\n", "--allow", allowed)
    assert (done.returncode, done.stdout.startswith(b"do-failover-peer: its --allow list")) == (64, True)


def test_without_a_list_at_all(stand: Stand) -> None:
    for arguments in (("--allow",), ("--allow", "203.0.113.47", "x"), ("x",)):
        done = stand.run("1 :\n", *arguments)
        assert (done.returncode, done.stdout[:33]) == (64, b"do-failover-peer: it needs --allo")


addresses = st.one_of(
    st.ip_addresses(network="203.0.113.40/29").map(str),
    st.ip_addresses(network="198.51.100.0/23").map(str),
    st.ip_addresses(network="2001:db8::/30").map(str),
    st.ip_addresses(network="fd00:18::/43").map(str),
    st.ip_addresses(network="2001:db8::/31").map(lambda address: address.exploded.upper()),
    st.ip_addresses().map(str),
)


@settings(max_examples=60)
@given(data=st.data())
def test_the_list_means_what_python_says_that_it_means(data: st.DataObject) -> None:
    asked = data.draw(st.lists(addresses, min_size=1, max_size=12))
    with tempfile.TemporaryDirectory() as directory:
        stand = make_stand(Path(directory) / "x", SHELLS[data.draw(st.sampled_from(list(SHELLS)))], logger="")
        found = answer(stand, "".join(f"{number} state {each}\n" for number, each in enumerate(asked, 1)))
        refused = {int(number) for number in re.findall(r"peer (\d+) 0\n@do-failover refused\n", found)}
        seen = {call[-1] for call in stand.calls()}
    for number, each in enumerate(asked, 1):
        is_allowed = any(ipaddress.ip_address(each) in network for network in NETWORKS)
        assert (number not in refused) == is_allowed, each
        assert (each in seen) == is_allowed, each


ADDRESS = r"[0-9a-fA-F.:]+"
FIT = re.compile(
    rf"ping -V|ping (?:-n )?-q -c [123] -W 1 {ADDRESS}|ping -n -q -i 0\.2 -p (?:[0-9a-f]{{2}}){{1,16}} -c 3 -W 1 {ADDRESS}"
    rf"|ip (?:-j )?route get {ADDRESS}|ip (?:-j )?neigh show to {ADDRESS}"
)
words = st.one_of(
    st.sampled_from(
        [
            "arm",
            "refresh",
            "state",
            "silence",
            ":",
            "203.0.113.47",
            "198.51.100.9",
            "2001:db8::9",
            "00ff",
            "1",
            "77",
            "-f",
            "-I",
            "--",
            "-p",
            ";",
            "&",
            "|",
            ">canary",
            "*",
            "?",
            "~",
            "$IFS",
            "${IFS}",
        ]
    ),
    st.sampled_from(
        [PATTERN, "$(touch canary)", "`touch canary`", "'", '"', "\\", "\x00", "\t", "\r", "\x1b[2J", "\xa0", "é", "\u202e", "exit", "eval"]
    ),
    addresses,
    st.text(max_size=12),
    st.binary(max_size=12).map(lambda data: data.decode("latin-1")),
)
lines = st.lists(words, max_size=8).map(" ".join) | st.text(max_size=40) | st.integers(500, 3000).map("9".__mul__)


@settings(max_examples=60)
@given(data=st.data())
def test_no_line_makes_it_run_anything_but_ping_and_ip_on_listed_addresses(data: st.DataObject) -> None:
    text = "\n".join(data.draw(st.lists(lines, max_size=10)))
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        stand = make_stand(home / "x", SHELLS[data.draw(st.sampled_from(list(SHELLS)))], logger="")
        there = sorted(home.rglob("*"))
        before = os.getcwd()
        os.chdir(home)
        try:
            done = stand.run(
                text.encode(errors="surrogatepass"), SSH_ORIGINAL_COMMAND=text.replace("\0", "")[:100].encode("utf-8", "replace").decode()
            )
        finally:
            os.chdir(before)
        assert done.stderr == b""
        assert re.fullmatch(rb"(?s)do-failover-peer hello\n(?:do-failover-peer \d+ 0\n[ -~\n]*?\ndo-failover-peer\.\n)*", done.stdout)
        for call in stand.calls():
            assert FIT.fullmatch(" ".join(call)), call
            if call[1:] != ["-V"]:
                assert any(ipaddress.ip_address(call[-1]) in network for network in NETWORKS), call
        assert [path for path in sorted(home.rglob("*")) if path.parent.name != "record"] == there


def test_an_environment_of_the_clients_changes_nothing(stand: Stand, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    trap.write_text(f"touch {tmp_path}/canary\n")
    line = f"1 refresh 198.51.100.11 203.0.113.47 {PATTERN}\n"
    plain = answer(stand, line)
    calls = sorted(stand.calls())
    for path in stand.record.iterdir():
        path.unlink()
    hostile = {
        "IFS": "0123456789/:.",
        "ENV": str(trap),
        "BASH_ENV": str(trap),
        "PATH": "/nonexistent",
        "LC_ALL": "C.UTF-8",
        "LANG": "tr_TR.UTF-8",
        "SSH_ORIGINAL_COMMAND": f"touch {tmp_path}/canary",
        "SSH_CONNECTION": "$(touch canary) 1 2 3",
        "PS4": f"$(touch {tmp_path}/canary)",
        "CDPATH": "/",
        "allowed": "4 0 0",
        "exact": "1.1.1.1",
        "kind": "$(id)",
        "at_work": "1",
        "mark": "x",
        "me": "x",
        "patience": "-t 0",
        "POSIXLY_CORRECT": "1",
    }
    done = stand.run(line, **hostile)
    assert (done.stdout.decode(), done.stderr) == (GREETING + plain, b"")
    assert sorted(stand.calls()) == calls
    assert not (tmp_path / "canary").exists()


@pytest.mark.skipif(not have("strace"), reason="needs strace")
def test_the_kernel_saw_it_run_nothing_else(stand: Stand, tmp_path: Path) -> None:
    text = f"1 arm\n2 refresh 203.0.113.47 {PATTERN}\n3 state 2001:db8::1\n4 silence 203.0.113.47 198.51.100.1\n"
    text += "5 arm $(id)\nid\n6 state ;id\n`id`\n7 state /bin/sh\n../../bin/sh\n8 eval id\n"
    log = tmp_path / "log"
    argv = [
        "strace",
        "-f",
        "-qq",
        "-e",
        "trace=execve",
        "-o",
        str(log),
        str(shutil.which(stand.shell[0])),
        *stand.shell[1:],
        str(stand.script),
        "--allow",
        ALLOWED,
    ]
    try:
        subprocess.run(argv, input=text.encode(), capture_output=True, timeout=60, env={"RECORD": str(stand.record)}, check=True)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"strace may not trace here: {error.stderr!r}")
    programs = re.findall(r'execve\("([^"]*)"', log.read_text())
    tools = stand.script.parent / "tools"
    assert set(programs[1:]) - {str(stand.script)} <= {str(tools / name) for name in ("ping", "ip", "logger")}
    assert len(programs) > 8
