"""One round of the real story against the lab's API with faults: the real client, real time, loopback TLS."""

from __future__ import annotations

import asyncio
import contextlib
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from do_failover.clock import RealClock
from do_failover.config import FailoverConfig
from do_failover.do_api.client import DigitalOceanApi
from do_failover.errors import MissingProgramError
from do_failover.failover import run_failover
from do_failover.lab import api
from do_failover.lab.region import Droplet, Names, Region
from do_failover.lab.region import ReservedIp as Held
from do_failover.mandate import Mandate
from do_failover.model import Action, FailoverReport, Identity, NotifyEvent, NotifyType, ReservedIp, VrrpState
from do_failover.request import Edges, Request
from do_failover.retry import Backoff
from do_failover.token import TokenSource
from tests.loopback import settle

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TOKEN = "dop_v1_canary_0123456789abcdef"
OLD, ME, OTHER, FAR = 1, 2, 3, 4
ADDRESS = {4: "203.0.113.47", 6: "2001:db8:47::1"}
SECOND = {4: "203.0.113.48", 6: "2001:db8:47::2"}
MASTER = NotifyEvent(NotifyType.INSTANCE, "VI_1", VrrpState.MASTER, 150)
BACKOFF = Backoff(first_s=0.02, most_s=0.1)
POLL_S = 0.1


class WatchedApi(DigitalOceanApi):
    """The real client, and in which order it learned who the owner is and sent a POST."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.story: list[str] = []

    async def read_reserved_ip(self, address: str, timeout_s: float = 10.0) -> ReservedIp:
        found = await super().read_reserved_ip(address, timeout_s)
        self.story.append(f"owner {found.droplet_id}")
        return found

    async def post_assign(self, address: str, droplet_id: int, timeout_s: float = 10.0) -> Action:
        self.story.append("POST")
        return await super().post_assign(address, droplet_id, timeout_s)


@dataclass
class Rig:
    """A region of four Droplets (the last in another region); Droplet 1 owns the reserved IP, Droplet 2 asks."""

    server: api.ApiServer
    region: Region
    api: WatchedApi
    address: str
    reports: list[FailoverReport] = field(default_factory=list)

    @property
    def owner(self) -> int | None:
        return self.region.reserved_ips[self.address].droplet_id

    async def tell(self, *, deadline_s: float, is_elsewhere: bool = False, number: int = 1) -> FailoverReport:
        """Run one round. `is_elsewhere`: the metadata service says that the IP is not here, so the POST comes first."""
        is_v6 = ":" in self.address
        hint = False if is_elsewhere else None
        me = self.region.droplets[ME]
        identity = Identity(ME, me.region, "lb2", me.public, me.public_v6 if is_v6 else None, me.anchor or None, hint)

        async def identify() -> Identity:
            return identity

        async def is_on_link(_: str) -> bool:
            return False

        clock = RealClock()
        edges = Edges(clock, self.api, identify, _no_link, _no_peers, is_on_link, BACKOFF)
        entry = FailoverConfig(self.address, instance="VI_1", deadline_s=deadline_s)
        at, heard = "2026-01-01T00:00:00+00:00", clock.now()
        request = Request(entry, (), b"run-%04d" % number, f"id-{number}", at, "lb2", heard, event=MASTER, round=number)
        report = await run_failover(request, edges, Mandate(), lambda _: None)
        self.reports.append(report)
        return report

    async def is_settled(self) -> None:
        """Wait until the IP is not locked any more."""
        async with asyncio.timeout(5.0):
            while self.region.reserved_ips[self.address].is_locked:
                await asyncio.sleep(0.01)

    def check_no_post_once_owned(self) -> None:
        """Never a POST after the API has said that we are the owner."""
        story = self.api.story
        owned = story.index(f"owner {ME}") if f"owner {ME}" in story else len(story)
        assert "POST" not in story[owned:], f"a POST was sent after the API had named us as owner: {story}"


@contextlib.asynccontextmanager
async def _no_link() -> AsyncIterator[Any]:
    raise MissingProgramError("this test has no link")
    yield


@contextlib.asynccontextmanager
async def _no_peers() -> AsyncIterator[Any]:
    yield None


def make_region(version: int, *, action_s: float, names: Names = Names.BOTH) -> Region:
    droplets = {
        number: Droplet(
            number,
            f"lb{number}",
            "nyc3" if number != FAR else "ams3",
            f"198.18.0.1{number}",
            f"10.110.0.1{number}",
            "198.18.0.1",
            f"10.17.0.{number + 4}",
            "10.17.0.1",
            public_v6=f"2001:db8::1{number}",
        )
        for number in (OLD, ME, OTHER, FAR)
    }
    address = ADDRESS[version]
    return Region(droplets, {address: Held(address, "nyc3", OLD)}, action_time_s=action_s, names=names)


@contextlib.asynccontextmanager
async def open_rig(region: Region, *, faults: str = "", token: str = TOKEN) -> AsyncIterator[Rig]:
    """Serve the region until the end; every request must have been one of the published API."""
    with tempfile.TemporaryDirectory() as directory:
        async with api.serve(region, token=TOKEN, directory=Path(directory)) as server:
            tokens = TokenSource(None, {"DIGITALOCEAN_ACCESS_TOKEN": token})
            client = WatchedApi(api_url=server.url, tokens=tokens, ca_file=str(server.ca_file))
            server.set_faults(faults)
            with contextlib.closing(client):
                yield Rig(server, region, client, next(iter(region.reserved_ips)))
            assert server.unknown == [], "a request that the published API doesn't have"
    await settle()


def write_calls(exchanges: list[api.Exchange]) -> str:
    """Write requests as one line: what, its status unless it is usual, `!` where a fault left the status usual.

    A row of healthy reads after the first POST is `polls`: how many there are is a matter of time.
    """
    words: list[str] = []
    has_posted = False
    for exchange in exchanges:
        word = _name_call(exchange)
        has_posted |= exchange.method == "POST"
        if has_posted and word in {"ip", "old-ip", "action"}:
            word = "polls"
        if word != "polls" or words[-1] != "polls":
            words.append(word)
    return " ".join(words)


def _name_call(exchange: api.Exchange) -> str:
    path = exchange.path.partition("?")[0].removeprefix("/v2/")
    name = next((name for pattern, name in _KINDS if re.fullmatch(pattern, path)), path)
    name = {"POST": "POST", "connection": "connection"}.get(exchange.method, name)
    if exchange.method == "connection":
        return name
    if exchange.status not in {200, 201}:
        return f"{name}:{exchange.status or 'none'}"
    return f"{name}!" if exchange.fault else name


_KINDS = (
    (r"floating_ips/[^/]+", "old-ip"),
    (r"(reserved_ips|reserved_ipv6)/[^/]+", "ip"),
    (r"(reserved_ips|floating_ips)/[^/]+/actions", "actions"),
    (r"((reserved_ips|floating_ips)/[^/]+/)?actions/\d+", "action"),
    (r"droplets/\d+/actions", "droplet-actions"),
    (r"droplets/\d+", "droplet"),
    (r"reserved_ips|floating_ips|reserved_ipv6", "list"),
)
