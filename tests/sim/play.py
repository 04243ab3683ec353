"""One seed is one history: start, disturbances, and then rest; the law is kept all along.

python -m tests.sim.play SEED             prints one history
python -m tests.sim.play FIRST LAST STEP  plays many; one line of JSON for each that breaks the law, and one at the end
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from contextlib import suppress
from dataclasses import dataclass

from tests.sim.loop import BusyError, run_in_virtual_time
from tests.sim.plan import Trouble
from tests.sim.region import Region
from tests.sim.rest import find_unrest

_REST_MOST_S = 240.0
_STAYS_S = 6.0
_BROKEN_MOST = 5  # then it stops: a law that is broken so often needs no more seeds


@dataclass(frozen=True)
class Played:
    """What came of a seed. Small: it comes from another process."""

    seed: int
    broken: tuple[str, str] | None
    rests_on: str
    digest: str
    history: str = ""


def play(seed: int) -> Played:
    """Run one history. The same seed gives the same one, byte for byte."""
    kept = random.getstate()
    random.seed(seed)  # backoffs of the product that nobody hands in draw from the module's own generator
    region = Region(random.Random(seed))  # noqa: S311 - chance that can be repeated is the point
    try:
        run_in_virtual_time(_tell(region))
    except BusyError as error:
        region.law.broken = ("BUSY", str(error))
    finally:
        random.setstate(kept)
    law, trace = region.law, region.trace
    return Played(seed, law.broken, law.rests_on, trace.digest(), trace.write())


async def _tell(region: Region) -> None:
    rng, loop = region.rng, asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: region.law.blame("HARNESS", f"{context['message']}: {context.get('exception')!r}"))
    for node in region.nodes.values():
        loop.call_later(2.0 * rng.random(), node.start_keepalived)
        loop.call_later(2.0 * rng.random(), node.start_daemon)
    await _disturb(region)
    await _rest(region)
    for node in region.nodes.values():
        node.kill_daemon()
    for _ in range(200):
        if len(asyncio.all_tasks()) == 1:
            break
        await asyncio.sleep(0)
    else:
        region.law.blame("HARNESS", f"tasks are left behind: {asyncio.all_tasks()}")


async def _disturb(region: Region) -> None:
    loop, span_s = asyncio.get_running_loop(), region.rng.choice((5.0, 15.0, 40.0))
    began = loop.time()
    for at, trouble in Trouble(region).draw(span_s):
        if await _is_stopped(region, began + at - loop.time()):
            return
        trouble()
    await _is_stopped(region, began + span_s - loop.time())


async def _is_stopped(region: Region, seconds: float) -> bool:
    with suppress(TimeoutError):
        async with asyncio.timeout(max(0.0, seconds)):
            await region.law.stop.wait()
    return region.law.broken is not None


async def _rest(region: Region) -> None:
    """Wait until everything is at rest, and stays so."""
    loop, law = asyncio.get_running_loop(), region.law
    limit, since, unrest = loop.time() + _REST_MOST_S, loop.time(), None
    while law.broken is None:
        for node in region.nodes.values():
            if not node.is_off and loop.time() > limit - _REST_MOST_S + 25.0:
                node.traps.clear()
                node.start_keepalived()
                node.start_daemon()
        unrest = find_unrest(region)
        if unrest is not None:
            since = loop.time()
        elif loop.time() - since > _STAYS_S:
            region.trace.add("rest", law.rests_on)
            return
        if loop.time() > limit:
            region.law.blame(*unrest) if unrest is not None else region.law.blame("I1", "it never stayed so")
            return
        await _is_stopped(region, 1.0)


def main(words: list[str]) -> int:
    """Play what the command line names."""
    if len(words) == 1:
        played = play(int(words[0]))
        sys.stdout.write(f"{played.history}\n{played.broken or 'the law was kept: ' + played.rests_on}\n")
        return int(played.broken is not None)
    first, last, step = map(int, words)
    count = broken = 0
    rests: dict[str, int] = {}
    for seed in range(first, last, step):
        played = play(seed)
        count += 1
        rest = played.rests_on.partition(" ")[0]
        rests[rest] = rests.get(rest, 0) + 1
        if played.broken is not None:
            broken += 1
            sys.stdout.write(json.dumps({"seed": seed, "broken": played.broken}) + "\n")
            if broken >= _BROKEN_MOST:
                break
    sys.stdout.write(json.dumps({"count": count, "rests": rests}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
