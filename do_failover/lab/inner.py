"""The lab process: pid 1 of its own namespaces, started by launch.py as `python -m do_failover.lab.inner OPTIONS`.

Its stdin is a leash: when that ends before the word `release` was read, the lab ends. Its stdout carries events
(timeline.py). When this process ends, for whatever reason, the kernel ends everything in the lab.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

from do_failover.errors import FailoverError
from do_failover.lab import control, logs
from do_failover.lab.options import LabOptions, Mode
from do_failover.lab.rehearsal import ROOT, Rehearsal
from do_failover.lab.result import exit_code
from do_failover.lab.scenario import play
from do_failover.lab.timeline import Timeline

RELEASE = b"release\n"


def main() -> int:
    """Mount the lab's tmpfs, build, play, and stay if asked to."""
    options = LabOptions.from_json(sys.argv[1])
    os.umask(0o022)  # the nodes' own users have to read what is made here, whatever the caller's umask is
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: os._exit(1))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "do-failover-lab", "/run"], check=True)
    ROOT.mkdir()
    timeline = Timeline(_send)
    try:
        return asyncio.run(_live(options, timeline))
    except FailoverError as error:
        failed = error
    except ExceptionGroup as group:
        failed = _first(group)
    timeline.send("failed", kind=failed.kind, message=failed.message, exit_code=failed.exit_code)
    return failed.exit_code


async def _live(options: LabOptions, timeline: Timeline) -> int:
    leash = asyncio.create_task(_hold_leash())
    lab = Rehearsal(options, timeline)
    try:
        async with lab.standing(), await control.serve(lab):
            return await _play_and_stay(lab, leash)
    finally:
        leash.cancel()
        if options.logs:
            await logs.collect(lab, Path(options.logs))


async def _play_and_stay(lab: Rehearsal, leash: asyncio.Task[None]) -> int:
    code = 0
    if lab.options.mode is not Mode.UP:
        result = await play(lab)
        lab.timeline.send("result", result=result)
        code = exit_code(result)
    if lab.options.mode is not Mode.RUN:
        lab.timeline.send("ready", nodes=[host.name for host in lab.plan.hosts])
        await leash
        await asyncio.Event().wait()
    return code


async def _hold_leash() -> None:
    """Return when released; end the process when the other side is gone."""
    loop = asyncio.get_running_loop()
    heard = bytearray()
    ended: asyncio.Future[bool] = loop.create_future()

    def hear() -> None:
        data = os.read(0, 64)
        heard.extend(data)
        if not data or RELEASE in heard:
            loop.remove_reader(0)
            ended.set_result(bool(data))

    loop.add_reader(0, hear)
    if not await ended:
        os._exit(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _send(line: str) -> None:
    """Write one event; nobody listens any more once a kept lab was released."""
    try:
        os.write(1, line.encode())
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _first(group: ExceptionGroup[Exception]) -> FailoverError:
    """Return the first error of a group, however nested; one that is not ours is a bug and is raised."""
    error = group.exceptions[0]
    if isinstance(error, ExceptionGroup):
        return _first(error)
    if not isinstance(error, FailoverError):
        raise error
    return error


if __name__ == "__main__":
    sys.exit(main())
