"""The real command as a process, for tests."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.loopback import TOKEN

if TYPE_CHECKING:
    from tests.loopback import Loopback


@dataclass
class Ended:
    code: int | None
    out: str
    err: str

    def json(self) -> Any:
        """stdout holds exactly one JSON object."""
        document = json.loads(self.out)
        assert isinstance(document, dict)
        return document


async def start(region: Loopback, *arguments: str, **more: str) -> asyncio.subprocess.Process:
    environment = {**region.environment(), **more}
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(*region.command(*arguments), stdout=pipe, stderr=pipe, env=environment)


async def end(process: asyncio.subprocess.Process) -> Ended:
    out, err = await process.communicate()
    assert TOKEN.encode() not in (out or b"") + (err or b"")
    return Ended(process.returncode, (out or b"").decode(), (err or b"").decode())


async def run(region: Loopback, *arguments: str, **more: str) -> Ended:
    return await end(await start(region, *arguments, **more))


async def until(is_true: Any) -> None:
    for _ in range(2000):
        if is_true():
            return
        await asyncio.sleep(0.01)
    pytest.fail("it never happened")
