"""The API calls of one failover: a token has 5000 an hour. Counted at the API, to the way's own end."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import scripts
from bench.figures import Sample, make_row
from bench.loopback import BACKUP, EVENT, MASTER, Loopback, open_daemon, open_loopback
from bench.process import poised

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.cases import Say

DAEMON, ONE_SHOT, TUTORIAL, FOLLOWING = "daemon", "one-shot notify", "tutorial's scripts", "a script that follows its action"


async def run_case(action_times_s: Sequence[float], say: Say) -> dict[str, Any]:
    """Run all ways at once, each with an API of its own: they wait, and are counted."""
    rows = []
    for action_time_s in action_times_s:
        ways = (DAEMON, ONE_SHOT, TUTORIAL, FOLLOWING)
        found = await asyncio.gather(*(_count(way, action_time_s) for way in ways))
        rows += [make_row(way, [sample], action_time_s=action_time_s) for way, sample in zip(ways, found, strict=True)]
        say(f"an action of {action_time_s:g} s")
    return {"rows": rows}


async def _count(way: str, action_time_s: float) -> Sample:
    with tempfile.TemporaryDirectory(prefix="do-failover-bench-") as name:
        async with open_loopback(Path(name), action_time_s) as loopback:
            await (_run_daemon(loopback) if way == DAEMON else _run_script(loopback, way))
            await asyncio.sleep(0.1)  # what it sent last is on its way to us
            loopback.check_requests()
            calls = [line for line in loopback.requests if "method" in line]
            return {"api_calls": len(calls), "gets": sum(line["method"] == "GET" for line in calls), "posts": len(loopback.posts())}


async def _run_daemon(loopback: Loopback) -> None:
    async with open_daemon(loopback, "daemon") as resident:
        await resident.say(BACKUP)
        await resident.wait_for_report(1)
        await loopback.reset()
        await resident.say(MASTER)
        await resident.wait_for_report(2)


async def _run_script(loopback: Loopback, way: str) -> None:
    where = loopback.where
    config = loopback.configure("one-shot")
    assign = loopback.write("assign-ip", scripts.write_tutorial_assign(where))
    argv = {
        ONE_SHOT: [loopback.program(), "-c", str(config), "notify", *EVENT],
        TUTORIAL: [str(loopback.write("master.sh", scripts.write_tutorial(where, str(assign))))],
        FOLLOWING: [sys.executable, str(loopback.write("following.py", scripts.write_following(where)))],
    }[way]
    async with poised(argv, way) as talker:
        talker.tell("go")
        await talker.wait()
