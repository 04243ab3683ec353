from __future__ import annotations

import pytest

from do_failover.decision import UNKNOWN, Owner, decide
from do_failover.model import DecisionKind, NotifyEvent, NotifyType, VrrpState

TABLE = [
    (None, 2, DecisionKind.ALREADY_OWNER),
    (None, 1, DecisionKind.ASSIGN),
    (None, None, DecisionKind.ASSIGN),
    (None, UNKNOWN, DecisionKind.ASSIGN),
    (VrrpState.MASTER, 2, DecisionKind.ALREADY_OWNER),
    (VrrpState.MASTER, 1, DecisionKind.ASSIGN),
    (VrrpState.MASTER, None, DecisionKind.ASSIGN),
    (VrrpState.MASTER_RX_LOWER_PRI, 2, DecisionKind.ALREADY_OWNER),
    (VrrpState.MASTER_RX_LOWER_PRI, 1, DecisionKind.REASSERT),
    *(
        (state, owner, DecisionKind.IGNORE)
        for state in VrrpState
        if state not in {"MASTER", "MASTER_RX_LOWER_PRI"}
        for owner in (1, 2, None)
    ),
]


@pytest.mark.parametrize(("state", "owner", "kind"), TABLE)
def test_table(state: VrrpState | None, owner: Owner, kind: DecisionKind) -> None:
    event = None if state is None else NotifyEvent(NotifyType.INSTANCE, "VI_1", state)
    decision = decide(event, owner=owner, target=2)
    assert decision.kind is kind
    assert "\n" not in decision.reason
    assert ("VI_1 is" in decision.reason) == (event is not None)


def test_the_sentences() -> None:
    master = NotifyEvent(NotifyType.INSTANCE, "VI_1", VrrpState.MASTER)
    assert decide(master, owner=1, target=2).reason == (
        "INSTANCE VI_1 is MASTER, and Droplet 1 owns the IP: the reserved IP goes to Droplet 2"
    )
    backup = NotifyEvent(NotifyType.GROUP, "VG", VrrpState.BACKUP)
    assert decide(backup, owner=2, target=2).reason == ("GROUP VG is BACKUP: nothing is assigned, and the reserved IP is never released")
