"""Whatever the API does for a while, the round ends in the right owner; while it goes on, in a sentence that says why."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from tests.fault_round import ME, OLD, POLL_S, Rig, make_region, open_rig

# A request that the API cut in its answer leaves its socket to the garbage collector (requests raises and keeps the response).
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket.*laddr=.'127.0.0.1':ResourceWarning")

ACTION_S = 0.25  # longer than the reads after a POST without an answer: the next try finds the IP here
DEADLINE_S = 20.0  # of a round that ends well: it is never waited for
ROUND_S = 3.0  # of a round that can't: a POST needs two seconds before it
SHORTEST_CALL_S = 0.75  # a call is given half a second at least, and a quarter to end; then the deadline counts
NOISE_S = 1.0
SIDE_BY_SIDE = 4
UNSHRUNK = (Phase.explicit, Phase.generate)  # each example takes real time, and its faults are few enough to read

WITHOUT_EFFECT = (
    *("*:latency 0.1", "*:hang-tls 0.2", "*:reset-connect", "*:503", "*:502", "*:429 burst retry-after=0.1", "*:429 hourly reset=past"),
    *("GET ip:reset-before", "GET ip:truncated", "GET ip:wrong-types", "GET ip:html", "GET ip:hang-body 0.2", "GET ip:500"),
    *("list:503", "list:truncated", "action:500", "action:404"),
    *(
        "POST:reset-before",
        "POST:hang-before 0.2",
        "POST:503",
        "POST:504",
        "POST:429 burst retry-after=0.1",
        "POST:429 hourly reset=garbage",
    ),
    *("POST:422 locked", "POST:422 busy", "POST:no-effect", "POST:errored"),
)
WITH_EFFECT = (
    *("POST:reset-after", "POST:hang-after 0.2", "POST:hang-body 0.2", "POST:cut-body", "POST:truncated", "POST:wrong-types"),
    *("POST:500 landed", "POST:504 landed", "POST:effect-errored", "POST:done", "POST:vanish", "POST:endless", "POST:slow 0.3"),
)
# A 404 or 500 of the action would be the last cause by itself.
SAME_CAUSE = tuple(fault for fault in WITHOUT_EFFECT if not fault.startswith("action:"))
FOR_EVER = {
    "***:503": "answered 503",
    "***:429 hourly": "answered 429: API rate limit exceeded",
    "***:reset-before": "the connection to the API failed",
    "***:truncated": "not what it publishes",
    "***:hang-before 0.2": "the connection to the API failed",
    "GET ip**:502": "answered 502",
    "GET ip**:wrong-types": "not what it publishes",
    "POST**:503": "answered 503",
    "POST**:reset-before": "the connection to the API failed",
    "POST**:429 hourly reset=ahead": "answered 429: API rate limit exceeded",
    "POST**:422 busy": "answered 422: Droplet already has a pending event",
    "POST**:errored": "is errored, but the owner of",
    "POST**:no-effect": "is completed, but the owner of",
}


@dataclass(frozen=True)
class Play:
    """One sequence of faults, for one family, and whether the POST comes first."""

    faults: tuple[str, ...]
    version: int
    is_elsewhere: bool = False
    for_ever: str | None = None

    @property
    def text(self) -> str:
        return ";".join([*self.faults, *filter(None, [self.for_ever])])


def plays(faults: tuple[str, ...], most: int, for_ever: st.SearchStrategy[str | None]) -> st.SearchStrategy[list[Play]]:
    """Draw several, which run side by side."""
    sequence = st.lists(st.sampled_from(faults), max_size=most).map(tuple)
    one = st.builds(Play, sequence, st.sampled_from([4, 6]), st.booleans() if most == 6 else st.just(False), for_ever)
    return st.lists(one, min_size=SIDE_BY_SIDE, max_size=SIDE_BY_SIDE)


async def pass_with_time(play: Play) -> None:
    async with open_rig(make_region(play.version, action_s=ACTION_S), faults=play.text) as rig:
        await must_end_well(rig, play)


async def must_end_well(rig: Rig, play: Play, number: int = 1) -> None:
    report = await rig.tell(deadline_s=DEADLINE_S, is_elsewhere=play.is_elsewhere, number=number)
    assert report.error is None, f"{play}: {report.error}"
    assert (report.exit_code, report.owner_after, rig.owner) == (0, ME, ME), play
    assert report.stages[-1].end_s <= DEADLINE_S + POLL_S + SHORTEST_CALL_S + NOISE_S, play
    rig.check_no_post_once_owned()


async def go_on_for_ever(play: Play) -> None:
    async with open_rig(make_region(play.version, action_s=ACTION_S), faults=play.text) as rig:
        report = await rig.tell(deadline_s=ROUND_S)
        assert report.error is not None, play
        assert (report.error.kind, report.exit_code, rig.owner) == ("deadline", 1, OLD), f"{play}: {report.error}"
        cause = report.error.message.partition("the last cause: ")[2]
        has_had_its_turn = any(exchange.fault == play.for_ever for exchange in rig.server.requests)
        assert cause, report.error
        assert not has_had_its_turn or FOR_EVER[play.for_ever or ""] in cause, f"{play}: {report.error}"
        assert ROUND_S - 2 * POLL_S <= report.stages[-1].end_s <= ROUND_S + POLL_S + SHORTEST_CALL_S + NOISE_S, play
        rig.server.set_faults("")
        await must_end_well(rig, play, number=2)


def run_all(*coroutines: Coroutine[Any, Any, None]) -> None:
    async def side_by_side() -> None:
        await asyncio.gather(*coroutines)

    asyncio.run(side_by_side())


@settings(max_examples=10, phases=UNSHRUNK)
@given(plays(WITHOUT_EFFECT + WITH_EFFECT, 6, st.none()))
@example([Play(("POST:no-effect", "POST:errored", "POST:reset-after", "POST:vanish", "*:503", "GET ip:truncated"), v) for v in (4, 6)])
@example([Play((fault,) * 6, v, is_elsewhere=True) for fault in ("*:429 hourly reset=past", "POST:503") for v in (4, 6)])
def test_faults_that_pass_end_in_the_right_owner(played: list[Play]) -> None:
    run_all(*map(pass_with_time, played))


@settings(max_examples=8, phases=UNSHRUNK)
@given(plays(SAME_CAUSE, 5, st.sampled_from(sorted(FOR_EVER))))
@example([Play((), v, for_ever=fault) for fault in sorted(FOR_EVER) for v in (4, 6)])
def test_faults_that_go_on_end_at_the_deadline_with_the_last_cause_and_a_later_round_ends_well(played: list[Play]) -> None:
    run_all(*map(go_on_for_ever, played))
