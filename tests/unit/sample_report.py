"""A failover report with something in every field, for tests of what keeps, writes and reads them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from do_failover import history
from do_failover.model import (
    DecisionKind,
    FailoverReport,
    Neighbour,
    NotifyEvent,
    NotifyType,
    Outcome,
    PeerOutcome,
    PeerResult,
    ReportError,
    Stage,
    VrrpState,
)

BASE = datetime(2026, 3, 1, 3, 0, 0, tzinfo=UTC)


def make_report(number: int = 0, **changes: object) -> FailoverReport:
    at = BASE + timedelta(seconds=number)
    report = FailoverReport(
        id=history.make_id(at, number.to_bytes(4)),
        at=at.isoformat(),
        node="lb2",
        reserved_ip="45.55.96.47",
        instance="VI_1",
        event=NotifyEvent(NotifyType.INSTANCE, "VI_1", VrrpState.MASTER, 150),
        decision=DecisionKind.ASSIGN,
        reason="this node became MASTER and the API names another owner",
        droplet_id=2,
        owner_before=1,
        owner_after=2,
        outcome=Outcome.PARTIAL,
        exit_code=10,
        error=ReportError("deadline", "too late", "req-1"),
        stages=(Stage("assign", 0.0, 1.25, 1, "assigned"),),
        peers=(
            PeerResult(
                "app1",
                PeerOutcome.HEALED,
                on_link=True,
                neighbour=Neighbour("10.0.0.1", "02:00:00:00:00:01", "REACHABLE"),
                acknowledged=True,
                witnessed=True,
                duration_s=0.04,
            ),
            PeerResult("app2", PeerOutcome.UNREACHABLE, error="app2: no answer"),
        ),
        warnings=("untidy",),
    )
    return replace(report, **changes)  # type: ignore[arg-type]
