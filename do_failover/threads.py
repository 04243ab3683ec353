"""Runs a blocking call beside the event loop, in a daemon thread of its own.

Unlike an executor's thread it never holds up the end of the process, and a call that hangs delays
no other. Not guaranteed: that a call whose waiter has gone ends; it has to bound its own time.
"""

from __future__ import annotations

import asyncio
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class KeptThread:
    """A thread that waits for the next call: a call that finds it idle need not start one.

    A call that finds it busy gets a thread of its own, so none waits for another. It ends with this object, by `close`, or
    with the process; a call that it is in is done first.
    """

    def __init__(self) -> None:
        """No thread is started yet."""
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._is_idle = threading.Event()
        self._is_started = False

    def start(self, work: Callable[[], None]) -> None:
        """Begin the work. Called by one thread only: the event loop's."""
        if not self._is_started:
            self._is_started = True
            calls, is_idle = self._calls, self._is_idle  # not this object: it ends the thread when nobody holds it any more
            _start_thread(lambda: _take_calls(calls, is_idle))
        elif not self._is_idle.is_set():
            _start_thread(work)
            return
        self._is_idle.clear()
        self._calls.put(work)

    def close(self) -> None:
        """Let the thread end, and start another one for the next call."""
        self._calls.put(None)
        self._calls, self._is_idle, self._is_started = SimpleQueue(), threading.Event(), False

    def __del__(self) -> None:
        """Let the thread end."""
        self._calls.put(None)


def _take_calls(calls: SimpleQueue[Callable[[], None] | None], is_idle: threading.Event) -> None:
    while (work := calls.get()) is not None:
        work()
        del work  # what it holds may be the last to hold the thread's owner
        is_idle.set()


def _start_thread(work: Callable[[], None]) -> None:
    threading.Thread(target=work, daemon=True, name="beside-the-loop").start()


async def run_in_thread(function: Callable[[], T], kept: KeptThread | None = None) -> T:
    """Return what the function returns, or raise what it raises. `kept`: the thread to use when it is idle."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type] # None only beside an error

    def work() -> None:
        try:
            result = function()
        except BaseException as error:  # noqa: BLE001 - handed to the waiting coroutine, whole
            _post(loop, settle, None, error)
        else:
            _post(loop, settle, result, None)

    (kept.start if kept is not None else _start_thread)(work)
    return await future


def _post(loop: asyncio.AbstractEventLoop, settle: Callable[..., None], *values: object) -> None:
    try:
        loop.call_soon_threadsafe(settle, *values)
    except RuntimeError:
        return  # the loop has ended: nobody waits any more
