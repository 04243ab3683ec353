"""Short programs, awaited, on the fabric's side: `nft`, `ip`, `nsenter ...`."""

from __future__ import annotations

import asyncio
from typing import Protocol

from do_failover.lab.errors import LabError

LIMIT_S = 60.0
"""No set-up command takes longer, also when a hundred of them share two cores."""


class Runner(Protocol):
    """Runs a program to its end and returns its stdout. LabError carries the stderr of one that failed."""

    async def __call__(self, *argv: str, stdin: str = "") -> str:
        """Run one program."""


async def run(*argv: str, stdin: str = "") -> str:
    """Run a program to its end; LabError when it fails, or lasts longer than `LIMIT_S`."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(LIMIT_S):
            out, err = await process.communicate(stdin.encode())
    except TimeoutError:
        process.kill()
        await process.wait()
        message = f"`{' '.join(argv)}` did not end within {LIMIT_S:.0f} s"
        raise LabError(message) from None
    if process.returncode != 0:
        message = f"`{' '.join(argv)}` failed ({process.returncode}): {err.decode(errors='replace').strip()}"
        raise LabError(message)
    return out.decode(errors="replace")
