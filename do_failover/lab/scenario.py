"""The story of `lab run`: lb1 dies, keepalived elects lb2, the reserved IP moves; who reaches it, and since when.

With the tool the watch ends when every source is served and lb2's last report says so (or at the limit). The
control is watched for a fixed time after its client recovered.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from do_failover.lab.options import Kill
from do_failover.lab.poll import comes_true, until
from do_failover.lab.result import problems_of

if TYPE_CHECKING:
    from do_failover.lab.rehearsal import Rehearsal

_REPORT_LIMIT_S = 60.0
_CLIENT_LIMIT_S = 60.0


async def play(lab: Rehearsal) -> dict[str, Any]:
    """Kill lb1 and watch to the end; the result is what `lab run -o json` prints."""
    if lab.options.with_tool:
        limit_s = _REPORT_LIMIT_S + lab.options.patience_s
        await until(lambda: bool(reports_of_acts(lab, "lb1")), "lb1's do-failover wrote no report of its start", limit_s=limit_s)
    if lab.options.unarmed:
        await lab.list_all_peers()
    killed_at = await _kill(lab)
    lab.api.set_faults(lab.options.api_fault)
    if lab.options.with_tool:
        await _watch_with_tool(lab)
    else:
        await _watch_control(lab)
    ended_at = time.monotonic()
    await lab.meter.stop()
    lab.timeline.flush()
    return result_of(lab, killed_at, ended_at)


def result_of(lab: Rehearsal, killed_at: float, ended_at: float) -> dict[str, Any]:
    """Sum up: the contract's keys, then the timeline and what was not well."""
    new_master = lab.plan.balancers[1].name
    reports = reports_of_acts(lab, new_master)
    result: dict[str, Any] = {
        "schema": 1,
        "family": int(lab.options.family),
        "fault": str(lab.options.fault),
        "kill": str(lab.options.kill),
        "api_fault": lab.options.api_fault,
        "with_tool": lab.options.with_tool,
        "with_daemon": lab.options.with_daemon,
        "peers": lab.options.peers,
        "unarmed": lab.options.unarmed,
        "set_up_s": lab.set_up_s,
        "report": reports[-1] if reports else None,
        "outage_s": {name: service.outage_s(new_master, killed_at, ended_at) for name, service in lab.meter.services.items()},
        "cut_off_at_end": lab.meter.not_answered_by(new_master),
        "watched_s": round(ended_at - killed_at, 3),
        "owner": lab.owner.name if lab.owner else None,
        "timeline": sorted(lab.timeline.entries, key=lambda entry: entry["t"]),
        "unknown_requests": lab.unknown_requests,
    }
    return {**result, "problems": problems_of(result)}


def reports_of_acts(lab: Rehearsal, name: str) -> list[dict[str, Any]]:
    """Return a load balancer's reports, without those of events that ask for nothing: the daemon's history has them too."""
    return [report for report in lab.reports(name) if report["decision"] != "ignore"]


async def _kill(lab: Rehearsal) -> float:
    """Kill what the options say on lb1; the moment is the timeline's zero."""
    if lab.options.kill is Kill.NODE:
        killed_at = lab.timeline.kill_now("lb1", "node killed")
        await lab.kill_node("lb1")
        return killed_at
    killed_at = lab.timeline.kill_now("lb1", f"{lab.options.kill} killed")
    await lab.services.kill("lb1", str(lab.options.kill))
    return killed_at


async def _watch_with_tool(lab: Rehearsal) -> None:
    shown: set[str] = set()

    def is_over() -> bool:
        reports = reports_of_acts(lab, "lb2")
        for report in reports:
            if report["id"] not in shown:
                shown.add(report["id"])
                lab.timeline.add("lb2", f"report: {report['outcome']}")
        # A superseded or failed round is followed by another: VRRP may flap, the API may hiccup.
        is_settled = bool(reports) and reports[-1]["outcome"] in {"done", "partial"}
        return bool(lab.unknown_requests) or (is_settled and not lab.meter.not_answered_by("lb2"))

    await comes_true(is_over, limit_s=lab.options.effective_watch_s)


async def _watch_control(lab: Rehearsal) -> None:
    client = lab.plan.client.name
    if await comes_true(lambda: client in lab.meter.answered_by("lb2"), limit_s=_CLIENT_LIMIT_S):
        await comes_true(
            lambda: bool(lab.unknown_requests) or not lab.meter.not_answered_by("lb2"),
            limit_s=lab.options.effective_watch_s,
        )
