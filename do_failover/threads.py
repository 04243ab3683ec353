"""Runs a blocking call beside the event loop, in a daemon thread of its own.

Unlike an executor's thread it never holds up the end of the process, and a call that hangs delays
no other. Not guaranteed: that a call whose waiter has gone ends; it has to bound its own time.
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


async def run_in_thread(function: Callable[[], T]) -> T:
    """Return what the function returns, or raise what it raises."""
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

    threading.Thread(target=work, daemon=True, name="beside-the-loop").start()
    return await future


def _post(loop: asyncio.AbstractEventLoop, settle: Callable[..., None], *values: object) -> None:
    try:
        loop.call_soon_threadsafe(settle, *values)
    except RuntimeError:
        return  # the loop has ended: nobody waits any more
