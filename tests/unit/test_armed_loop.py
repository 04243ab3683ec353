"""The remote loop under real shells, and the reader of its answers under any bytes."""

from __future__ import annotations

import itertools
import shlex
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from do_failover.ssh.armed_loop import ANSWER_LIMIT, AnswerReader, HostileAnswerError, make_loop_command, make_nonce

if TYPE_CHECKING:
    from collections.abc import Iterator

NONCE = "0123456789abcdef"
GREETING = NONCE.encode() + b" hello\n"
END = b"\n" + NONCE.encode() + b".\n"
SHELLS = [shell for shell in (["dash"], ["busybox", "sh"], ["bash"]) if shutil.which(shell[0])]


def frame(number: int, output: bytes | None) -> bytes:
    return f"{NONCE} {number} {0 if output is not None else 1}\n".encode() + (output or b"") + END


# -- the loop


class Loop:
    """A remote loop at the end of two pipes."""

    def __init__(self, shell: list[str]) -> None:
        words = shlex.split(make_loop_command(NONCE))  # as a login shell reads it
        assert words[:3] == ["exec", "sh", "-c"]
        assert len(words) == 4
        self.process = subprocess.Popen([*shell, "-c", words[3]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        self.reader = AnswerReader(NONCE)
        self.raw: list[bytes] = []

    def ask(self, *commands: str, first: int = 1) -> dict[int, str | None]:
        """Return all answers, in the order of their arrival."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("".join(f"{first + place} {command}\n" for place, command in enumerate(commands)).encode())
        answers: dict[int, str | None] = {}
        while len(answers) < len(commands):
            self.raw.append(self.process.stdout.read(65536))
            assert self.raw[-1], "the loop ended"
            answers |= {number: None if output is None else output.decode() for number, output in self.reader.feed(self.raw[-1])}
        return answers

    def children(self) -> str:
        return Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()

    def end(self) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        status = self.process.wait(10)
        self.process.stdout.close()
        return status


@pytest.fixture(params=SHELLS, ids=lambda shell: shell[0])
def loop(request: pytest.FixtureRequest) -> Iterator[Loop]:
    opened = Loop(request.param)
    try:
        yield opened
    finally:
        opened.process.kill()
        if opened.process.stdin is not None and not opened.process.stdin.closed:
            opened.end()


def test_the_loop_answers_each_command_and_ends_with_its_input(loop: Loop) -> None:
    commands = [
        "echo a; echo b",
        "true",
        "printf 'no line end'",
        "echo 'two  words'  \\\\ | cat",
        "printf 'h\\303\\244'",
        'echo "$((6*7))"',
    ]
    answers = loop.ask(*commands)
    assert [answers[number + 1] for number in range(6)] == ["a\nb", "", "no line end", "two  words \\", "hä", "42"]
    assert loop.end() in {0, 1}


def test_a_command_cannot_harm_the_loop(loop: Loop) -> None:
    odd = ["exit 3", "(", "fi", "echo ${", "exec true", "set -e; false", "N=x; n=y; k=1; o=z; i=9; exec >&2"]
    assert set(loop.ask(*odd).values()) == {""}
    assert loop.ask("cat; echo 'stdin is empty'; echo noise >&2", first=100) == {100: "stdin is empty"}
    assert loop.ask("echo $LC_ALL", first=101) == {101: "C"}


def test_a_long_command_does_not_hold_up_a_short_one(loop: Loop, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    wait = f"t=0; while [ ! -e {gate} ] && [ $t -lt 300000 ]; do t=$((t+1)); done"
    assert loop.ask(f"{wait}; [ -e {gate} ] && echo slow", f"echo fast; : > {gate}") == {1: "slow", 2: "fast"}


@pytest.mark.parametrize(("length", "is_sent"), [(ANSWER_LIMIT, True), (ANSWER_LIMIT + 1, False), (1_000_000, False)])
def test_an_answer_is_one_short_write_or_none(loop: Loop, length: int, is_sent: bool) -> None:
    loop.ask("true")
    before = len(loop.raw)
    answers = loop.ask(f"head -c {length} /dev/zero | tr '\\0' a", first=2)
    assert answers == {2: "a" * length if is_sent else None}
    assert len(loop.raw) == before + 1  # one read: the pipe got it as one write
    assert len(loop.raw[-1]) < 4096


def test_the_loop_does_not_grow(loop: Loop) -> None:
    for number in range(200):
        loop.ask("true", first=number)
    end = time.monotonic() + 10
    while loop.children():  # the last one's middle process is reaped by the loop itself
        assert time.monotonic() < end, f"still there: {loop.children()}"


def test_each_channel_has_its_own_nonce_which_is_not_in_the_command() -> None:
    first, second = make_nonce(), make_nonce()
    assert first != second
    assert first not in make_loop_command(first)
    for forbidden in ("\n", "!"):
        assert forbidden not in make_loop_command(first)


# -- the reader

outputs = st.one_of(st.none(), st.binary(max_size=ANSWER_LIMIT).filter(lambda output: END not in output + END[:-1]))
answers = st.lists(st.tuples(st.integers(0, 10**10 - 1), outputs), max_size=6)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@given(answers, st.lists(st.integers(0, 30_000), max_size=12), st.binary(max_size=200))
def test_answers_arrive_however_they_are_cut(expected: list[tuple[int, bytes | None]], places: list[int], noise: bytes) -> None:
    reader = AnswerReader(NONCE)
    stream = noise + GREETING + b"".join(frame(number, output) for number, output in expected)
    found = [answer for part in cut(stream, places) for answer in reader.feed(part)]
    assert found == expected
    assert reader.is_greeted
    assert reader.noise == b""


pieces = st.one_of(
    st.binary(max_size=300),
    st.sampled_from([GREETING, END, NONCE.encode(), b"\n", b" ", b"0", b"\x1b[31m", b"a" * 4000, NONCE.encode() + b" 1 0\n"]),
    st.integers(0, 99).map(lambda number: frame(number, b"fine")),
)


@given(st.lists(pieces, max_size=30), st.lists(st.integers(0, 100_000), max_size=10), st.booleans())
def test_any_bytes_are_answers_or_hostile_and_never_kept(parts: list[bytes], places: list[int], is_greeted: bool) -> None:
    reader = AnswerReader(NONCE)
    if is_greeted:
        reader.feed(GREETING)
    try:
        for part in cut(b"".join(parts), places):
            for number, output in reader.feed(part):
                assert number >= 0
                assert output is None or len(output) <= ANSWER_LIMIT
            assert len(reader._buffer) <= 8 * 1024
    except HostileAnswerError as error:
        assert str(error).isprintable()


@pytest.mark.parametrize(
    ("sent", "part"),
    [
        (b"motd\n", "no answer"),
        (b"\x1b[2J", "no answer"),
        (b"0" * 16, "no answer"),
        (NONCE.encode() + b" 1 0\n" + b"a" * 3600, "longer than 3500"),
        (NONCE.encode() + b" 1 0\n" + b"a" * 3501 + END, "longer than 3500"),
        (NONCE.encode() + b" 1 2\n" + END, "does not begin"),
        (NONCE.encode() + b" -1 0\n" + END, "does not begin"),
        (NONCE.encode() + b" \xb2 0\n" + END, "does not begin"),
        (NONCE.encode() + b" 99999999999 0\n" + END, "does not begin"),
        (NONCE.encode() + b" 1 0" + END, "does not begin"),
        (b"x 1 0\n" + END, "does not begin"),
    ],
)
def test_what_the_loop_cannot_have_sent(sent: bytes, part: str) -> None:
    reader = AnswerReader(NONCE)
    assert reader.feed(GREETING) == []
    with pytest.raises(HostileAnswerError, match=part):
        reader.feed(sent)


def feed_slowly(reader: AnswerReader, data: bytes) -> None:
    for start in range(0, len(data), 1024):
        reader.feed(data[start : start + 1024])


def test_megabytes_instead_of_a_greeting_are_not_kept() -> None:
    reader = AnswerReader(NONCE)
    with pytest.raises(HostileAnswerError, match="8 KiB before"):
        feed_slowly(reader, b"a" * 1_000_000)
    assert len(reader._buffer) < 10 * 1024
