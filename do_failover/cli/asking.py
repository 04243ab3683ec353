"""Asks the daemon of this machine over its local socket. Without a daemon there is nobody to ask."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from do_failover.codec import decode_report
from do_failover.daemon_lock import find_daemon
from do_failover.errors import FailoverError, TemporaryError
from do_failover.model import Stage
from do_failover.report import OpenStage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from do_failover.config import Config
    from do_failover.model import FailoverReport

SOCKET = "do-failover.sock"
_ANSWER_S = 5.0
_ORDER_MORE_S = 30.0  # beyond the round's deadline: the daemon's own patience and the aftermath
_BODY_MOST = 1 << 26


def ask_status(config: Config) -> dict[str, Any] | None:
    """Return the daemon's view; None where no daemon lives. Raises TemporaryError when one lives and can't be asked."""
    if find_daemon(Path(config.paths.run_dir)) is None:
        return None
    with _connected(config, _ANSWER_S) as (sock, lines):
        sock.sendall(b'{"op":"status"}\n')
        for word, value in lines:
            if word == "status" and isinstance(value, dict):
                return value
    msg = "the daemon ended before it answered; see its log (journalctl -u do-failover)"
    raise TemporaryError(msg, kind="socket")


def ask_order(
    config: Config,
    reserved_ip: str,
    deadline_s: float,
    *,
    to_droplet: int | None,
    steps: frozenset[str],
    observe: Callable[[OpenStage | Stage], None],
) -> FailoverReport | None:
    """Let the daemon do it, and show its progress; None where no daemon lives. Ctrl-C tells it to stop, and waits for its report.

    Raises the daemon's own error, or TemporaryError (kind "socket") when it can't be asked.
    """
    if find_daemon(Path(config.paths.run_dir)) is None:
        return None
    order = {"op": "order", "reserved_ip": reserved_ip, "to_droplet": to_droplet, "steps": sorted(steps)}
    with contextlib.ExitStack() as stack:
        sock, lines = stack.enter_context(_connected(config, 2 * deadline_s + _ORDER_MORE_S))
        sock.sendall(msgspec.json.encode(order) + b"\n")
        try:
            return _follow_patiently(sock, lines, observe)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
            msg = (
                f"the daemon took the order, and its report was not received ({error}): what it did is in its log and in the "
                f"history; see: do-failover status"
            )
            raise TemporaryError(msg, kind="daemon_ended") from None


def _follow_patiently(sock: socket.socket, lines: _Lines, observe: Callable[[OpenStage | Stage], None]) -> FailoverReport:
    """Follow it to its end. Ctrl-C tells the daemon to stop, and its report is waited for all the same."""
    while True:
        try:
            return _follow(lines, observe)
        except KeyboardInterrupt:
            with contextlib.suppress(OSError):
                sock.sendall(b'{"op":"interrupt"}\n')


def _follow(lines: Iterator[tuple[str, Any]], observe: Callable[[OpenStage | Stage], None]) -> FailoverReport:
    for word, value in lines:
        if word == "stage":
            with contextlib.suppress(OSError):  # a terminal that was closed: the order goes on
                observe(msgspec.convert(value, Stage))
        elif word == "opened":
            with contextlib.suppress(OSError):
                observe(OpenStage(str(value["name"]), float(value["start_s"])))
        elif word == "report":
            return decode_report(msgspec.json.encode(value))
    msg = "the daemon ended before its report came: what it did is in its log and in the history"
    raise TemporaryError(msg, kind="daemon_ended")


class _Lines:
    """The daemon's answers, one object a line; an interrupt loses none of them."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock, self._buffer = sock, b""

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return self

    def __next__(self) -> tuple[str, Any]:
        while b"\n" not in self._buffer:
            data = self._sock.recv(1 << 16)
            if not data or len(self._buffer) > _BODY_MOST:
                raise StopIteration
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer = msgspec.json.decode(line, type=dict[str, Any])
        word, value = next(iter(answer.items()), ("", None))
        if word == "error":
            raise _make_error(value if isinstance(value, dict) else {})
        return word, value


def _make_error(value: dict[str, Any]) -> FailoverError:
    error = FailoverError(str(value.get("message")), kind=str(value.get("kind")))
    error.exit_code = int(value.get("exit_code", 1))
    return error


@contextlib.contextmanager
def _connected(config: Config, timeout_s: float) -> Iterator[tuple[socket.socket, _Lines]]:
    path = Path(config.paths.run_dir) / SOCKET
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout_s)
        try:
            sock.connect(str(path))
            yield sock, _Lines(sock)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            msg = f"{path}: the daemon can't be asked ({reason}); is it this user's to ask? See its log"
            raise TemporaryError(msg, kind="socket") from None
