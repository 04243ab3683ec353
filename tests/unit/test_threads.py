"""The kept thread: used again, never waited for, and gone with its owner."""

from __future__ import annotations

import asyncio
import gc
import threading

from do_failover.threads import KeptThread, run_in_thread


async def until_idle(kept: KeptThread) -> None:
    while not kept._is_idle.is_set():
        await asyncio.sleep(0)


async def test_an_idle_thread_is_used_again_and_a_busy_one_is_not_waited_for() -> None:
    kept, gate = KeptThread(), threading.Event()
    first = await run_in_thread(threading.get_ident, kept)
    await until_idle(kept)
    assert await run_in_thread(threading.get_ident, kept) == first
    await until_idle(kept)
    stuck = asyncio.create_task(run_in_thread(lambda: gate.wait(10), kept))
    await asyncio.sleep(0)
    assert await run_in_thread(threading.get_ident, kept) != first
    gate.set()
    assert await stuck
    kept.close()


async def test_it_ends_with_its_owner_and_when_it_is_closed() -> None:
    for end in ("close", "forget"):
        kept = KeptThread()
        thread = await run_in_thread(threading.current_thread, kept)
        await until_idle(kept)
        if end == "close":
            kept.close()
        else:
            del kept
            gc.collect()
        await asyncio.to_thread(thread.join, 10)
        assert not thread.is_alive(), end


async def test_an_error_is_the_callers_and_the_thread_stays() -> None:
    kept = KeptThread()

    def fail() -> None:
        raise ValueError("no")

    try:
        await run_in_thread(fail, kept)
    except ValueError as error:
        assert str(error) == "no"
    assert await run_in_thread(lambda: 3, kept) == 3
