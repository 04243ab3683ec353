"""The whole: lb1's HAProxy dies, and every peer and the far client are served by lb2. Real keepalived, the lab's own scenario.

Split, on the lab's clock (zero: the kill):
detect_s    until lb2's keepalived says MASTER: its check of lb1, and VRRP's down interval. Nothing of ours
post_s      from there to the POST at the API: ours
api_s       from the POST to the completed action: the API's own, here the lab's action_time_s
notice_s    from the completed action to our knowing of it: ours
heal_s      from there to the last peer proven: ours (the report's own clock, whose zero is the event)
ours_s      post_s + notice_s + heal_s
client_s, peers_s    outage of the far client, and of the last peer, as they ask for a page: a peer asks every max(0.1, N / 200) s

The tutorial's way beside it: keepalived's script moves the IP, and nobody tells the peers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench.figures import Sample, make_row
from bench.process import BenchError
from do_failover.lab.handle import LabHandle
from do_failover.lab.launch import launch
from do_failover.lab.options import LabOptions, Mode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.cases import Say

DAEMON, ONE_SHOT, TUTORIAL = "daemon", "one-shot notify", "tutorial's way"
_WATCH_S = 5.0


ALL = (DAEMON, ONE_SHOT, TUTORIAL)


async def run_case(counts: Sequence[int], rounds: int, action_time_s: float, say: Say, *, ways: Sequence[str] = ALL) -> dict[str, Any]:
    """Play the scenario in each way, interleaved, a fresh lab each time."""
    rows = []
    for count in counts:
        samples: dict[str, list[Sample]] = {way: [] for way in ways}
        for number in range(rounds):
            for way, found in samples.items():
                found.append(await _play(way, count, action_time_s))
                say(f"{count} peers, {way}: round {number + 1} of {rounds}")
        rows += [make_row(way, found, n=count) for way, found in samples.items()]
    return {"action_time_s": action_time_s, "rows": rows}


async def _play(way: str, count: int, action_time_s: float) -> Sample:
    """Play once. BenchError when it did not end as it should."""
    options = LabOptions(
        peers=count,
        mode=Mode.KEEP,
        with_tool=way != TUTORIAL,
        with_daemon=way == DAEMON,
        action_time_s=action_time_s,
        watch_s=_WATCH_S if way == TUTORIAL else None,
    )
    result: dict[str, Any] = {}
    async with launch(options, is_tied=True) as process:
        async for event in process.events():
            if event["event"] == "result":
                result = event["result"]
            if event["event"] == "ready":
                break
        requests = (await LabHandle(process.pid).state()).requests
    if way != TUTORIAL and result["problems"]:
        message = f"{way}: {result['problems']}"
        raise BenchError(message)
    return _measure(result, requests)


def _measure(result: dict[str, Any], requests: list[dict[str, Any]]) -> Sample:
    """Read the lab's result. Pure."""
    peers = [outage for name, outage in result["outage_s"].items() if name != "client"]
    calls = [request for request in requests if request["node"] == "lb2" and (request["t"] or -1) >= 0]
    master = _find(result["timeline"], "lb2", "MASTER")
    post = next(request["t"] for request in calls if request["method"] == "POST")
    completed = _find(result["timeline"], "API", "action completed")
    sample: Sample = {
        "detect_s": master,
        "post_s": max(0.0, post - master),
        "api_s": completed - post,
        "client_s": result["outage_s"]["client"],
        "peers_s": max(peers),
        "cut_off": len(result["cut_off_at_end"]),
        "api_calls": len(calls),
    }
    report = result["report"]
    if report is None:
        return sample
    ends = {stage["name"]: master + stage["end_s"] for stage in report["stages"]}
    parts = {"notice_s": ends["assign"] - completed, "heal_s": ends["refresh"] - ends["assign"]}
    return sample | parts | {"ours_s": sample["post_s"] + sum(parts.values()), "healed": _count_healed(report)}


def _count_healed(report: dict[str, Any]) -> int:
    return sum(peer["outcome"] == "healed" for peer in report["peers"])


def _find(timeline: list[dict[str, Any]], who: str, what: str) -> float:
    return float(next(entry["t"] for entry in timeline if entry["who"] == who and what in entry["what"]))
