"""While this node is MASTER, the story again and again until the IP is its own (I1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from do_failover.failover import run_failover
from do_failover.model import FailoverReport, Outcome, VrrpState
from do_failover.retry import Backoff, pause

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from do_failover.mandate import Mandate
    from do_failover.request import Edges, Request

_PAUSE = Backoff(first_s=1.0, most_s=30.0)
# A reserved IP of another region never gets here; one that somebody took away is not taken back (I6).
_POINTLESS = {"region", "owner_changed"}


async def run_rounds(  # noqa: PLR0913 - named
    make_request: Callable[[int], Request],
    edges: Edges,
    mandate: Mandate,
    *,
    take_turn: Callable[[], AbstractAsyncContextManager[None]],
    observe: Callable[..., None],
    keep: Callable[[FailoverReport], None],
) -> FailoverReport:
    """Tell the story round after round until the IP is ours, the mandate ends, or trying is pointless.

    `keep` gets the report of every round. A round is told within its turn (I4), which is given up in the
    pause: a person may act then. Only an own MASTER event has more than one round.
    """
    number = 1
    while True:
        async with take_turn():
            request = make_request(number)
            report = await run_failover(request, edges, mandate, observe)
        keep(report)
        if mandate.is_revoked or not _may_try_again(request, report):
            return report
        await pause(_PAUSE.wait_s(number), clock=edges.clock, mandate=mandate)
        if mandate.is_revoked:
            return report
        number += 1


def _may_try_again(request: Request, report: FailoverReport) -> bool:
    is_master = request.event is not None and request.event.state is VrrpState.MASTER
    return is_master and report.outcome is Outcome.FAILED and report.error is not None and report.error.kind not in _POINTLESS
