"""The real daemon as a process beside the loopback region, and what it hears."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests import cli_process
from tests.cli_process import Ended, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.loopback import Loopback

MASTER, BACKUP, STOP = (f'INSTANCE "VI_1" {state} 150\n'.encode() for state in ("MASTER", "BACKUP", "STOP"))


@dataclass
class Resident:
    """One daemon: its process and its FIFO."""

    region: Loopback
    process: asyncio.subprocess.Process
    log: bytearray = field(default_factory=bytearray)

    @property
    def fifo(self) -> Path:
        return self.region.directory / "run" / "vrrp.fifo"

    def say(self, *lines: bytes) -> None:
        """Write lines as keepalived does."""
        fd = os.open(self.fifo, os.O_RDWR | os.O_NONBLOCK)
        try:
            for line in lines:
                os.write(fd, line)
        finally:
            os.close(fd)

    async def status(self) -> dict[str, Any]:
        ended = await cli_process.run(self.region, "status", "-o", "json", "-c", str(self.region.config))
        found: dict[str, Any] = ended.json()["daemon"]
        return found

    async def claim(self) -> str | None:
        return str((await self.status())["failovers"][0]["claim"])

    def reports(self) -> list[dict[str, Any]]:
        files = sorted((self.region.directory / "history").glob("*.json"))
        return [json.loads(file.read_text()) for file in files]

    async def wait_for_report(self, number: int = 1) -> dict[str, Any]:
        await until(lambda: len(self.reports()) >= number)
        return self.reports()[number - 1]

    async def has_logged(self, sentence: str) -> None:
        await until(lambda: sentence.encode() in self.log)

    async def end(self, how: int = signal.SIGTERM) -> Ended:
        self.process.send_signal(how)
        await self.process.wait()
        await asyncio.sleep(0)
        return Ended(self.process.returncode, "", self.log.decode())


def configure(region: Loopback, **more: str) -> Path:
    keepalived = region.directory / "keepalived.pid"
    rest = f'[keepalived]\nfifo = "{region.directory}/run/vrrp.fifo"\npid_file = "{keepalived}"\n'
    return region.write_config(**{"rest": rest, **more})


async def start(region: Loopback, *arguments: str) -> Resident:
    process = await cli_process.start(region, "daemon", "-c", str(region.config), *arguments, NOTIFY_SOCKET="/nonexistent")
    resident = Resident(region, process)

    async def read() -> None:
        assert process.stderr is not None
        while data := await process.stderr.read(1 << 16):
            resident.log += data

    resident.reading = asyncio.create_task(read())  # type: ignore[attr-defined]
    return resident


@contextlib.asynccontextmanager
async def running(region: Loopback, *arguments: str) -> AsyncIterator[Resident]:
    """Run a daemon that is ready; it is ended with the block, whatever happens."""
    resident = await start(region, *arguments)
    try:
        await resident.has_logged("do-failover 0")
        yield resident
    finally:
        if resident.process.returncode is None:
            resident.process.kill()
        await resident.process.wait()
        await resident.reading  # type: ignore[attr-defined]
        transport = resident.process._transport  # type: ignore[attr-defined]
        transport.close()
