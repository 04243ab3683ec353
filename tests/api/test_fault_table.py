"""One row a fault, both families: the calls, the owner, the exit code and the sentence that each must end in.

All rows run side by side, once, against one region each; each test looks at its own row's round.
"""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from do_failover.lab.region import Names
from do_failover.lab.region import ReservedIp as Held
from do_failover.model import FailoverReport
from tests.fault_round import ADDRESS, ME, OLD, OTHER, POLL_S, SECOND, TOKEN, Rig, make_region, open_rig, write_calls

# A request that the API cut in its answer leaves its socket to the garbage collector (requests raises and keeps the response).
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket.*laddr=.'127.0.0.1':ResourceWarning")

PATIENT_S = 20.0  # of a round that ends well: it is never waited for
DEADLINE_S = 4.0
ACTION_S = 0.2
SIDE_BY_SIDE = 16
SHORTEST_CALL_S = 0.75  # a call is given half a second at least, and a quarter to end; then the deadline counts
NOISE_S = 1.0

ONE, TWO = "one assign was sent", "2 assigns were sent"
TOLD_BY_OWNER = r"ip POST! polls"
WHY = "polls droplet-actions list"  # the reads that look for the cause of a 422
AGAIN_4 = "polls actions polls POST polls"
AGAIN_6 = "polls POST polls"
# IPv6 shows neither a lock nor a list of actions: a POST that failed by a status is repeated, and a 422 is read.
LANDED_4 = r"polls( actions( POST:422)? polls)*"
LANDED_6 = rf"polls( POST:422 (polls|{WHY} polls))*"


def leave(_: Rig) -> None:
    """Nothing beforehand."""


def lock_for(seconds: float) -> Callable[[Rig], None]:
    """Somebody else's assign to another Droplet runs."""

    def prepare(rig: Rig) -> None:
        rig.region.action_time_s = seconds
        rig.server.assign(rig.address, OTHER)
        rig.region.action_time_s = ACTION_S

    return prepare


def busy_for(seconds: float) -> Callable[[Rig], None]:
    """Our Droplet has another event."""
    return lambda rig: void(rig.server.make_busy(ME, "snapshot", time_s=seconds))


def own_already(rig: Rig) -> None:
    rig.region.reserved_ips[rig.address].droplet_id = ME


def hold_another(rig: Rig) -> None:
    version = 6 if ":" in rig.address else 4
    rig.region.reserved_ips[SECOND[version]] = Held(SECOND[version], "nyc3", ME)


def be_elsewhere(rig: Rig) -> None:
    """Our Droplet is of another region than the reserved IP."""
    rig.region.droplets[ME] = dataclasses.replace(rig.region.droplets[ME], region="ams3")


def have_no_anchor(rig: Rig) -> None:
    rig.region.droplets[ME] = dataclasses.replace(rig.region.droplets[ME], anchor="")


def unassign(rig: Rig) -> None:
    rig.region.reserved_ips[rig.address].droplet_id = None


def void(_: object) -> None:
    """Drop a result."""


@dataclass(frozen=True)
class Row:
    """What happens, and what must come of it. `calls` is a pattern for write_calls; `calls6` where IPv6 differs."""

    name: str
    faults: str
    calls: str
    says: str
    kind: str | None = None
    exit_code: int = 0
    posts: int | None = None
    calls6: str | None = None
    says6: str | None = None
    before: Callable[[Rig], None] = leave
    is_elsewhere: bool = False
    owner: int | None = ME
    versions: tuple[int, ...] = (4, 6)
    names: Names = Names.BOTH
    token: str = TOKEN

    def sentence(self, version: int) -> str:
        wanted = self.says6 if version == 6 and self.says6 is not None else self.says
        return wanted.format(ip=ADDRESS[version], other=SECOND[version], route={4: "reserved_ips", 6: "reserved_ipv6"}[version])


def good(name: str, faults: str, calls: str, says: str = ONE, **more: Any) -> Row:
    return Row(name, faults, calls, says, **more)


def bad(name: str, faults: str, calls: str, says: str, kind: str = "deadline", exit_code: int = 1, **more: Any) -> Row:
    return Row(name, faults, calls, says, **{"kind": kind, "exit_code": exit_code, "owner": OLD, **more})


ROWS = (
    good("health", "", "ip POST polls", posts=1),
    good("health, POST first", "", "POST polls", is_elsewhere=True, posts=1),
    good("ours already", "", "ip ip", "owner Droplet 2; nothing was sent", before=own_already, posts=0),
    good("unassigned", "", "ip POST polls", "owner was no Droplet; one assign", before=unassign, posts=1),
    # -- the way there
    good("latency", "*:latency 0.2; POST:latency 0.2", "ip! POST! polls", posts=1),
    good("hang-connect", "*:hang-connect 0.3", "connection ip POST polls", posts=1),
    good("hang-tls", "*:hang-tls 0.3", "connection ip POST polls", posts=1),
    bad("hang-tls for ever", "***:hang-tls", "connection( connection)*", "the last cause: GET {route}/{ip}", posts=0),
    good("reset-connect", "**3:reset-connect", "(connection ){3}ip POST polls", posts=1),
    good("GET hang-before", "GET ip:hang-before 0.3", "ip:none ip POST polls", posts=1),
    bad("GET hang-before for ever", "GET ip**:hang-before", "ip:none( ip:none)*", "did not answer in time", posts=0),
    good("POST hang-before", "POST:hang-before 0.3", f"ip POST:none {AGAIN_4}", TWO, calls6=f"ip POST:none {AGAIN_6}", posts=2),
    good("POST hang-after", "POST:hang-after 0.3", "ip POST:none polls", "the last without an answer", posts=1),
    good("GET hang-body", "GET ip:hang-body 0.3", "ip! ip POST polls", posts=1),
    bad("GET hang-body for ever", "GET ip**:hang-body", "ip!( ip!)*", "the last cause: GET {route}/{ip}", posts=0),
    good("POST hang-body", "POST:hang-body 0.3", "ip POST! polls", "the last without an answer", posts=1),
    good("POST hang-mid-body", "POST:hang-mid-body 0.3", "ip POST! polls", "the last without an answer", posts=1),
    good("POST cut-body", "POST:cut-body", f"ip POST! {LANDED_4}", "owner is Droplet 2", calls6=f"ip POST! {LANDED_6}"),
    good("GET reset-before", "GET ip*2:reset-before", "ip:none ip:none ip POST polls", posts=1),
    good("POST reset-before", "POST:reset-before", f"ip POST:none {AGAIN_4}", TWO, calls6=f"ip POST:none {AGAIN_6}", posts=2),
    good("POST reset-after", "POST:reset-after", f"ip POST:none {LANDED_4}", "owner is Droplet 2", calls6=f"ip POST:none {LANDED_6}"),
    bad(
        "POST reset for ever",
        "POST**:reset-before",
        "ip( POST:none polls actions polls)+( POST:none)?",
        "actions: the connection to the API failed: name not resolved, refused, or cut, but the owner of {ip} is Droplet 1",
        calls6="ip( POST:none polls)+",
    ),
    # -- refusals
    bad("401", "***:401", "ip:401", "write a valid one to the token file", "token", 4, posts=0),
    bad("401, unknown token", "", "ip:401", "the API does not know this token", "token", 4, token="wrong", posts=0),
    bad("401 at the POST", "POST:401", "ip POST:401", "does not know this token", "token", 4, posts=1),
    bad("403", "POST:403", "ip POST:403", "it needs reserved_ip:update", "forbidden", 4, posts=1),
    bad("403 unpaid", "POST:403 unpaid", "ip POST:403", "an unpaid bill forbids it too", "forbidden", 4, posts=1),
    bad("404", "ip**:404", "ip:404 old-ip:404", "the API knows no reserved IP {ip} (404)", "not_found", calls6="ip:404", posts=0),
    bad("400", "POST:400", "ip POST:400", "answered 400: The request could not be understood", "rejected", posts=1),
    good("409", "POST:409", f"ip POST:409 {WHY} polls POST polls", TWO, posts=2),
    # -- 422: why, by reading
    good("422 locked by nothing that shows", "POST:422 locked", f"ip POST:422 {WHY} polls POST polls", TWO, posts=2),
    good("422 busy with nothing that shows", "POST*3:422 busy", f"ip( POST:422 {WHY} polls){{3}} POST polls", "4 assigns", posts=4),
    bad(
        "422 locked",
        "",
        "POST:422( polls actions)+( polls)?",
        "{ip} is locked by action 2208110886 (assign_ip), begun 20",
        before=lock_for(30.0),
        is_elsewhere=True,
        posts=1,
        versions=(4,),
    ),
    bad(
        "422 locked, which IPv6 does not show",
        "",
        f"(POST:422 {WHY} polls )*(POST:422 )?{WHY}( polls)?",
        "for IPv6 the API shows neither a lock nor a list of actions, so nothing that can be read says why",
        before=lock_for(30.0),
        is_elsewhere=True,
        versions=(6,),
    ),
    bad(
        "locked, seen first",
        "",
        "ip( actions ip)+( actions)?",
        "is locked by action 2208110886",
        before=lock_for(30.0),
        posts=0,
        versions=(4,),
    ),
    good(
        "422 locked for a while",
        "",
        "POST:422 polls actions .*POST polls",
        TWO,
        before=lock_for(0.4),
        is_elsewhere=True,
        posts=2,
        versions=(4,),
    ),
    good(
        "422 locked for a while",
        "",
        "(POST:422 polls.* )+POST polls",
        "owner is Droplet 2",
        before=lock_for(0.4),
        is_elsewhere=True,
        versions=(6,),
    ),
    bad(
        "422 busy",
        "",
        "ip( POST:422 polls droplet-actions polls)+( POST:422 polls droplet-actions)?",
        "Droplet 2 is busy with action 2208110886 (snapshot), begun 20",
        before=busy_for(30.0),
    ),
    good("422 busy for a while", "", "ip( POST:422 polls droplet-actions.*)+ POST polls", "owner is Droplet 2", before=busy_for(0.3)),
    good("422 owns-this", "", "POST:422 polls", "owner is Droplet 2", before=own_already, is_elsewhere=True, posts=1),
    bad(
        "422 owns-another",
        "",
        f"ip POST:422 {WHY}",
        "Droplet 2 already holds reserved IP {other}, and can hold one: unassign {other}, or correct reserved_ip",
        "refused_assign",
        before=hold_another,
        posts=1,
    ),
    bad(
        "422 other-region",
        "",
        f"POST:422 {WHY}",
        "is of region nyc3, Droplet 2 of ams3",
        "region",
        6,
        before=be_elsewhere,
        is_elsewhere=True,
        posts=1,
    ),
    bad("other region, seen first", "", "ip", "is of region nyc3, Droplet 2 of ams3", "region", 6, before=be_elsewhere, posts=0),
    bad(
        "422 no-anchor", "", f"ip POST:422 {WHY}", "Droplet 2 has no anchor IP", "no_anchor", before=have_no_anchor, versions=(4,), posts=1
    ),
    good("no anchor, which IPv6 does not need", "", "ip POST polls", before=have_no_anchor, versions=(6,), posts=1),
    # -- 429
    good("429 burst", "POST:429 burst retry-after=0.3", "ip POST:429 polls POST polls", TWO, posts=2),
    bad("429 burst, far", "POST:429 burst retry-after=30", "ip POST:429 polls", "asks to wait 30 s, which is beyond the deadline", posts=1),
    good("429 burst, absurd", "POST:429 burst retry-after=99999999", "ip POST:429 polls POST polls", TWO, posts=2),
    good("429 burst, no number", "POST:429 burst retry-after=soon", "ip POST:429 polls POST polls", TWO, posts=2),
    good("429 hourly", "*:429 hourly", "ip:429 ip POST polls", posts=1),
    bad("429 hourly for ever", "***:429 hourly", "ip:429( ip:429)+", "answered 429: API rate limit exceeded", posts=0),
    good("429 hourly, past", "POST*2:429 hourly reset=past", "ip( POST:429 polls){2} POST polls", "3 assigns", posts=3),
    good("429 hourly, ahead", "POST*2:429 hourly reset=ahead", "ip( POST:429 polls){2} POST polls", "3 assigns", posts=3),
    good("429 hourly, garbage", "POST*2:429 hourly reset=garbage", "ip( POST:429 polls){2} POST polls", "3 assigns", posts=3),
    good("429 hourly, soon", "GET ip:429 hourly reset=1.5", "ip:429 ip POST polls", posts=1),
    # -- 5xx
    good("500", "POST:500", f"ip POST:500 {AGAIN_4}", TWO, calls6=f"ip POST:500 {AGAIN_6}", posts=2),
    good("500 that landed", "POST:500 landed", f"ip POST:500 {LANDED_4}", "owner is Droplet 2", calls6=f"ip POST:500 {LANDED_6}"),
    bad(
        "500 for ever",
        "POST**:500",
        "ip( POST:500 polls actions polls)+( POST:500)?",
        "answered 500: Unexpected server-side error, but the owner of {ip} is Droplet 1, not Droplet 2",
        calls6="ip( POST:500 polls)+",
    ),
    good("502 HTML", "*:502; POST:502", f"ip:502 ip POST:502 {AGAIN_4}", TWO, calls6=f"ip:502 ip POST:502 {AGAIN_6}", posts=2),
    good("503 empty", "*:503; POST:503", f"ip:503 ip POST:503 {AGAIN_4}", TWO, calls6=f"ip:503 ip POST:503 {AGAIN_6}", posts=2),
    bad("503 for ever", "GET ip**:503", "ip:503( ip:503)+", "answered 503: no explanation in its body", posts=0),
    good("504", "POST:504", f"ip POST:504 {AGAIN_4}", TWO, calls6=f"ip POST:504 {AGAIN_6}", posts=2),
    good("504 that landed", "POST:504 landed", f"ip POST:504 {LANDED_4}", "owner is Droplet 2", calls6=f"ip POST:504 {LANDED_6}"),
    # -- garbled
    good("GET truncated", "GET ip*2:truncated", "ip! ip! ip POST polls", posts=1),
    good("POST truncated", "POST:truncated", f"ip POST! {LANDED_4}", "owner is Droplet 2", calls6=f"ip POST! {LANDED_6}"),
    bad("truncated for ever", "GET ip**:truncated", "ip!( ip!)+", "the API's answer is not what it publishes", posts=0),
    good("GET wrong-types", "GET ip:wrong-types", "ip! ip POST polls", posts=1),
    good("POST wrong-types", "POST:wrong-types", f"ip POST! {LANDED_4}", "owner is Droplet 2", calls6=f"ip POST! {LANDED_6}"),
    bad("wrong-types for ever", "GET ip**:wrong-types", "ip!( ip!)+", "Expected `str`, got `int`", posts=0),
    good("HTML with 200", "GET ip:html", "ip! ip POST polls", posts=1),
    bad("no-droplet", "GET ip**:no-droplet", "ip!", "lacks the scope droplet:read", "owner_hidden", posts=0),
    # -- the action's course
    good("slow", "POST:slow 0.8", TOLD_BY_OWNER, posts=1),
    good("errored", "POST:errored", "ip POST! polls actions polls POST polls", TWO, calls6="ip POST! polls POST polls", posts=2),
    bad("errored for ever", "POST**:errored", "ip( POST! polls( actions polls)?)+", "is errored, but the owner of {ip} is Droplet 1"),
    good("no-effect", "POST:no-effect", "ip POST! polls actions polls POST polls", TWO, calls6="ip POST! polls POST polls", posts=2),
    bad("no-effect for ever", "POST**:no-effect", "ip( POST! polls( actions polls)?)+", "is completed, but the owner of {ip} is Droplet 1"),
    good("effect-errored", "POST:effect-errored", TOLD_BY_OWNER, posts=1),
    good("done", "POST:done", TOLD_BY_OWNER, posts=1),
    good("vanish", "POST:vanish", TOLD_BY_OWNER, "owner is Droplet 2", calls6=r"ip POST! (polls action:404 )?" + LANDED_6),
    good(
        "action 404",
        "action**:404",
        "ip POST polls( action:404 polls)?",
        calls6=r"ip POST (polls action:404 )?" + LANDED_6,
        says="owner is Droplet 2",
    ),
    good("endless", "POST:endless", TOLD_BY_OWNER, posts=1),
    good("split pages", "list*4:split 1; POST:422", "ip POST:422 polls droplet-actions! list! polls POST polls", TWO, posts=2),
    # -- old names
    good("old names", "", "ip:404 old-ip POST polls", versions=(4,), names=Names.FLOATING, posts=1),
    good("new names only", "", "ip POST polls", versions=(4,), names=Names.RESERVED, posts=1),
)
CASES = [pytest.param(row, version, id=f"{row.name}-v{version}") for row in ROWS for version in row.versions]
Ended = tuple[FailoverReport, str, list[str], int | None]


async def run_row(row: Row, version: int) -> Ended:
    region = make_region(version, action_s=ACTION_S, names=row.names)
    async with open_rig(region, faults=row.faults, token=row.token) as rig:
        row.before(rig)
        report = await rig.tell(deadline_s=PATIENT_S if row.kind is None else DEADLINE_S, is_elsewhere=row.is_elsewhere)
        return report, write_calls(rig.server.requests), rig.api.story, rig.owner


@pytest.fixture(scope="module")
def rounds(request: pytest.FixtureRequest) -> dict[tuple[str, int], Ended]:
    """Run the rows that were asked for side by side."""
    cases = filter(None, map(find_case, request.session.items))
    asked = {(row.name, version): row for row, version in cases}
    turn = asyncio.Semaphore(SIDE_BY_SIDE)

    async def take_turn(row: Row, version: int) -> Ended:
        async with turn:
            return await run_row(row, version)

    async def run_all() -> list[Ended]:
        return await asyncio.gather(*(take_turn(row, version) for (_, version), row in asked.items()))

    return dict(zip(asked, asyncio.run(run_all()), strict=True))


def find_case(item: pytest.Item) -> tuple[Row, int] | None:
    """Return the case of a test of this table."""
    parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    row, version = parameters.get("row"), parameters.get("version")
    return (row, version) if isinstance(row, Row) and isinstance(version, int) else None


@pytest.mark.parametrize(("row", "version"), CASES)
def test_each_fault_ends_in_the_right_owner_or_in_a_sentence(row: Row, version: int, rounds: dict[tuple[str, int], Ended]) -> None:
    report, calls, story, owner = rounds[row.name, version]
    said = report.error.message if report.error is not None else next(stage.detail for stage in report.stages if stage.name == "assign")
    pattern = row.calls6 if version == 6 and row.calls6 is not None else row.calls
    assert (report.error and report.error.kind, report.exit_code) == (row.kind, row.exit_code), said
    assert row.sentence(version) in said
    assert re.fullmatch(pattern, calls), calls
    assert row.posts in {None, story.count("POST")}
    check_ends(row, report, owner)
    assert f"owner {ME}" not in story or "POST" not in story[story.index(f"owner {ME}") :]
    assert TOKEN not in f"{report} {said}"


def check_ends(row: Row, report: FailoverReport, owner: int | None) -> None:
    if row.kind is None:
        assert (report.owner_after, owner) == (ME, ME)
        return
    assert report.owner_after != ME
    assert owner == row.owner
    assert report.stages[-1].end_s <= DEADLINE_S + POLL_S + SHORTEST_CALL_S + NOISE_S


LATE_LIST = "POST:reset-after; GET list:latency 0.6"  # the action ends between the owner's read and the list's


@pytest.mark.parametrize(
    ("faults", "version", "action_s"),
    [
        ("POST:reset-after", 4, 1.0),
        ("action**:404", 4, 1.0),
        (LATE_LIST, 4, 0.4),
        ("POST:reset-after", 6, 1.0),
        ("action**:404", 6, 1.0),
    ],
)
async def test_a_post_that_may_still_land_is_not_repeated(faults: str, version: int, action_s: float) -> None:
    async with open_rig(make_region(version, action_s=action_s), faults=faults) as rig:
        report = await rig.tell(deadline_s=PATIENT_S)
    assert (report.exit_code, rig.owner) == (0, ME)
    assert rig.api.story.count("POST") == 1, write_calls(rig.server.requests)
