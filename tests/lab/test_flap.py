"""lb1 and lb2 flap at random moments, VRRP is cut one way and both ways, daemons are killed: at rest the owner is the MASTER.

`--long` plays twenty flaps with the default times of the configuration; the short form fewer, with shorter ones.
A failure names the seed, and what was done up to it: FLAP_SEED=... plays the same again (its moments are real time's).
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable

import pytest

from do_failover.lab.handle import LabHandle, standing_lab
from do_failover.lab.options import LabOptions
from tests.lab.daemon_lab import BALANCERS, find_master, find_unrest, mend, other_of, posts, reload_with, start_if_down

pytestmark = pytest.mark.root

PEERS = 3
QUICK = "settle_s = 2\nguard_s = 3\ncool_off_s = 2\ngarp_interval_s = 0.05\n"
SHORT, LONG = 4, 20
SHORT_REST_S, LONG_REST_S = 30.0, 120.0  # longer than a cool-off (2 s, 60 s), what follows it, and a guard's look
WAIT_MOST_S = 2.5
STEADY_S = 1.5


class Flapper:
    """One seeded history of mischief. What it does is kept as sentences."""

    def __init__(self, lab: LabHandle, seed: int) -> None:
        self.lab, self.random = lab, random.Random(seed)  # noqa: S311 - mischief, replayable
        self.done: list[str] = []
        self.began = time.monotonic()

    def note(self, what: str) -> None:
        self.done.append(f"{time.monotonic() - self.began:7.2f} s  {what}")

    async def pause(self) -> None:
        """Let a random moment pass: what comes next is to meet a failover anywhere in its course."""
        await asyncio.sleep(self.random.uniform(0.0, WAIT_MOST_S))

    async def flap(self, number: int) -> None:
        """Take the mastership away from somebody, with more mischief on the way, and mend it after a while."""
        kinds: list[Callable[[str], Awaitable[None]]] = [self.fail_haproxy, self.fail_keepalived, self.cut_one_way, self.cut_both_ways]
        kind = kinds[number % len(kinds)] if number < len(kinds) else self.random.choice(kinds)
        name = find_master(await self.lab.state()) or self.random.choice(BALANCERS)
        await self.lab.set_action_time(self.random.choice((0.1, 0.5, 2.0)))
        await kind(name)
        if self.random.random() < 0.5:
            await self.kill_a_daemon()
        await self.pause()
        await self.repair()

    async def fail_haproxy(self, name: str) -> None:
        self.note(f"haproxy killed on {name}")
        await self.lab.kill(name, "haproxy")
        await self.pause()

    async def fail_keepalived(self, name: str) -> None:
        how = self.random.choice(("kill", "stop"))
        self.note(f"keepalived on {name}: {how}")
        await (self.lab.kill if how == "kill" else self.lab.stop)(name, "keepalived")
        await self.pause()

    async def cut_one_way(self, name: str) -> None:
        way = self.random.choice(((name, other_of(name)), (other_of(name), name)))
        self.note(f"cut from {way[0]} to {way[1]}")
        await self.split(way)

    async def cut_both_ways(self, name: str) -> None:
        self.note("cut both ways")
        await self.split(BALANCERS, (BALANCERS[1], BALANCERS[0]))

    async def split(self, *ways: tuple[str, str]) -> None:
        """Let it last until VRRP's dead time is over, or just not.

        It ends by contact. A MASTER of a split that is stopped before the other hears of it leaves nothing that the other
        could know it by (I6): only a person can tell that from a split that lasts.
        """
        await self.lab.cut(*ways)
        await asyncio.sleep(self.random.uniform(2.5, 7.0))
        if self.random.random() < 0.5:
            await self.kill_a_daemon()
        await self.lab.heal()
        self.note("healed")
        await self.lab.wait_for(lambda state: sorted(state.vrrp.values()) == ["BACKUP", "MASTER"], "VRRP found no MASTER")

    async def kill_a_daemon(self) -> None:
        name = self.random.choice(BALANCERS)
        self.note(f"daemon killed on {name}")
        await self.lab.kill(name, "daemon")
        await self.pause()
        self.note(f"daemon started on {name}")
        await self.lab.start(name, "daemon")

    async def repair(self) -> None:
        self.note("all is mended")
        for name in BALANCERS:
            for service in ("haproxy", "keepalived"):
                await start_if_down(self.lab, name, service)

    async def rest(self, limit_s: float) -> float:
        """Wait until the owner is the MASTER, everybody reaches it, and it stays so; return how long that took."""
        began = since = time.monotonic()
        while time.monotonic() < since + STEADY_S:
            if (unrest := await find_unrest(self.lab)) is not None:
                since = time.monotonic()
                assert since < began + limit_s, await self.tell(f"no rest within {limit_s:g} s: {unrest}")
            await asyncio.sleep(0.05)
        took = since - began
        self.note(f"rest after {took:.1f} s: {find_master(await self.lab.state())}")
        return took

    async def tell(self, what: str) -> str:
        logs = [(self.lab.files(name) / "log/daemon").read_text()[-4000:] for name in BALANCERS]
        return "\n".join([what, *self.done, *logs, str([(r["node"], r["status"]) for r in (await self.lab.state()).requests[-12:]])])


async def test_the_owner_is_the_master_at_rest_however_they_flap(request: pytest.FixtureRequest) -> None:
    is_long = request.config.getoption("--long")
    seed = int(os.environ.get("FLAP_SEED", random.SystemRandom().randrange(1 << 32)))
    flaps, limit_s = (LONG, LONG_REST_S) if is_long else (SHORT, SHORT_REST_S)
    print(f"FLAP_SEED={seed}")  # noqa: T201 - shown with a failure
    async with standing_lab(LabOptions(peers=PEERS, with_daemon=True)) as lab:
        if not is_long:
            for name in BALANCERS:
                await reload_with(lab, name, QUICK)
        await mend(lab, PEERS)
        flapper = Flapper(lab, seed)
        rests = []
        for number in range(flaps):
            sent = len(await posts(lab))
            await flapper.flap(number)
            if is_long and flapper.random.random() < 0.4:
                flapper.note("no rest between")
                continue
            rests.append(await flapper.rest(limit_s))
            # A take-over, each side's one take-back, and one on evidence for each cool-off of a one-way cut.
            assert len(await posts(lab)) - sent <= 12, await flapper.tell("they fought")
        rests.append(await flapper.rest(limit_s))
        assert not [r for r in (await lab.state()).requests if r["is_unknown"]]
        print("\n".join(flapper.done), f"\nlongest rest: {max(rests):.1f} s; assigns: {len(await posts(lab))}")  # noqa: T201
