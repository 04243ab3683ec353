r"""The remote loop of an armed peer, and the reader of its answers. Pure.

    to the peer      ID COMMAND\n
    from the peer    NONCE hello\n, once; then for each command, in any order, as one write:
                     NONCE ID 0\nOUTPUT\nNONCE.\n     what it wrote
                     NONCE ID 1\n\nNONCE.\n           it wrote more than ANSWER_LIMIT bytes, which are not sent

    from do-failover-peer  the same with its name instead of the nonce; it runs words (peer_words.py), not commands

The nonce is new for each channel, so no output can be taken for a frame. The peer puts it together from two halves:
a forced command that only repeats what it was asked to run greets nobody. A frame is shorter than PIPE_BUF (4096),
so the kernel never mixes the answers of two commands that end at once.
"""

from __future__ import annotations

import secrets

from do_failover.peer_words import GREETING, SPEAKER

ANSWER_LIMIT = 3500
# What a login shell may say before the loop greets.
_NOISE_LIMIT = 8 * 1024
_WORDS_GREETING = b"\n" + GREETING.encode()
# Twice forked, a command leaves no zombie and no row in the shell's job table. `eval` in a substitution bounds what a
# command can do to the loop (`exit`, a syntax error, its variables). No single quote and no line end: this is one
# word to any login shell. `$(...)` drops line ends at the end: the cold way drops them too.
_LOOP = (
    "export LC_ALL=C; N={0}; N=${{N}}{1}; "
    'n=$(printf "\\nx"); n=${{n%x}}; printf %s "$N hello$n"; '
    "while read -r i c; do ( {{ "
    'k=0; o=$(eval "$c" 2>/dev/null </dev/null); [ ${{#o}} -le {2} ] || {{ o=; k=1; }}; '
    'printf %s "$N $i $k$n$o$n$N.$n"; }} </dev/null & ); done'
)


class HostileAnswerError(Exception):
    """The peer sent what the loop can't have sent. The message is a part of a sentence, without the peer's text."""


def make_nonce() -> str:
    """Return 16 hexadecimal digits that nobody can guess."""
    return secrets.token_hex(8)


def make_loop_command(nonce: str) -> str:
    """Return the command line that runs the loop, in whatever login shell the peer has."""
    half = len(nonce) // 2
    return f"exec sh -c '{_LOOP.format(nonce[:half], nonce[half:], ANSWER_LIMIT)}'"


class AnswerReader:
    """Reads the bytes of one channel, however they were split or glued.

    Guarantees: it keeps less than 12 KiB; whatever else than frames comes is a HostileAnswerError.
    """

    __slots__ = ("_buffer", "_end", "_start", "is_greeted", "speaks_words")

    def __init__(self, nonce: str) -> None:
        """Expect the greeting."""
        self._buffer = bytearray()
        self._expect(nonce.encode())
        self.is_greeted = self.speaks_words = False

    @property
    def noise(self) -> bytes:
        """Return what came instead of a greeting."""
        return b"" if self.is_greeted else bytes(self._buffer)

    def feed(self, data: bytes) -> list[tuple[int, bytes | None]]:
        """Return the answers that are complete now: the command's number and its output; None: it was too long."""
        self._buffer += data
        if not self.is_greeted and not self._find_greeting():
            return []
        answers = []
        while (end := self._buffer.find(self._end)) >= 0:
            answers.append(self._read_frame(bytes(self._buffer[:end])))
            del self._buffer[: end + len(self._end)]
        self._check_rest()
        return answers

    def _expect(self, start: bytes) -> None:
        self._start, self._end = start, b"\n" + start + b".\n"

    def _find_greeting(self) -> bool:
        greeting = self._start + b" hello\n"
        position = self._buffer.find(greeting)
        if position < 0 and (position := (b"\n" + self._buffer).find(_WORDS_GREETING)) >= 0:
            self._expect(SPEAKER.encode())  # sshd runs it in place of the loop
            self.speaks_words, greeting = True, _WORDS_GREETING[1:]
        if position > _NOISE_LIMIT or (position < 0 and len(self._buffer) > _NOISE_LIMIT):
            msg = f"it wrote more than {_NOISE_LIMIT // 1024} KiB before the loop greeted"
            raise HostileAnswerError(msg)
        if position < 0:
            return False
        del self._buffer[: position + len(greeting)]
        self.is_greeted = True
        return True

    def _read_frame(self, frame: bytes) -> tuple[int, bytes | None]:
        header, separator, output = frame.partition(b"\n")
        words = header.split(b" ")
        is_header = bool(separator) and len(words) == 3 and words[0] == self._start and words[2] in {b"0", b"1"}  # noqa: PLR2004
        if not is_header or not _is_number(words[1]):
            msg = "its answer does not begin as one"
            raise HostileAnswerError(msg)
        if len(output) > ANSWER_LIMIT:
            msg = f"an answer is longer than {ANSWER_LIMIT} bytes"
            raise HostileAnswerError(msg)
        return int(words[1]), output if words[2] == b"0" else None

    def _check_rest(self) -> None:
        """Judge an unfinished frame by what is there of it."""
        start = self._start + b" "
        if not self._buffer.startswith(start[: len(self._buffer)]):
            msg = "it sent bytes that are no answer"
            raise HostileAnswerError(msg)
        if len(self._buffer) > ANSWER_LIMIT + 64:
            msg = f"an answer is longer than {ANSWER_LIMIT} bytes"
            raise HostileAnswerError(msg)


def _is_number(word: bytes) -> bool:
    return 0 < len(word) <= 10 and word.isdigit()  # noqa: PLR2004 - more commands than a channel will ever run
