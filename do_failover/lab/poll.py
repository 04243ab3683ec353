"""Waiting for something observable, with a limit and a sentence for when it never comes."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from do_failover.lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Callable

EVERY_S = 0.02


async def comes_true(is_true: Callable[[], bool], *, limit_s: float) -> bool:
    """Return True as soon as `is_true()`, False after `limit_s`."""
    end = time.monotonic() + limit_s
    while not is_true():
        if time.monotonic() > end:
            return False
        await asyncio.sleep(EVERY_S)
    return True


async def until(is_true: Callable[[], bool], complaint: str, *, limit_s: float) -> None:
    """Return as soon as `is_true()`; LabError(complaint) after `limit_s`."""
    if not await comes_true(is_true, limit_s=limit_s):
        message = f"{complaint} within {limit_s:g} s"
        raise LabError(message)
