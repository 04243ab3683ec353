"""From (event, owner, what holds us back) to one Decision with a one-sentence reason. Pure: no clock, no I/O.

event                          owner           decision       because
none (a person asks)           this Droplet    already_owner
none (a person asks)           anyone else     assign
MASTER                         this Droplet    already_owner  the peers are still refreshed: they may be stale
MASTER                         anyone else     assign         VRRP's word is the mandate
MASTER_RX_LOWER_PRI            this Droplet    already_owner
MASTER_RX_LOWER_PRI            anyone else     reassert       the other master had a lower priority
BACKUP FAULT STOP DELETED      any             ignore         the IP is never released by us (I5)
MASTER_PRIORITY BACKUP_PRIORITY any            ignore         a number changed, not the state
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from do_failover.model import Decision, DecisionKind, VrrpState, name_droplet

if TYPE_CHECKING:
    from do_failover.model import NotifyEvent


class Unknown:
    """The owner has not been read yet."""


UNKNOWN: Final = Unknown()
Owner = int | None | Unknown

_LETS_GO = {VrrpState.BACKUP, VrrpState.FAULT, VrrpState.STOP, VrrpState.DELETED}


def decide(event: NotifyEvent | None, *, owner: Owner, target: int | None, evidence: str | None = None) -> Decision:
    """Decide what becomes of the reserved IP; `target` is the Droplet that is to own it, None while this one is unknown.

    `evidence`: why a MASTER that has been served already makes sure of the IP again, as a sentence.
    """
    why = f"{event.type} {event.name} is {event.state}" if event is not None else "assigned by hand"
    state = event.state if event is not None else None
    if evidence is not None:
        why = f"{why}, and {evidence}"
    if state in _LETS_GO:
        return Decision(DecisionKind.IGNORE, f"{why}: nothing is assigned, and the reserved IP is never released")
    if state is not None and state.is_of_priority:
        return Decision(DecisionKind.IGNORE, f"{why}: a priority changed, not the state")
    if target is not None and owner == target:
        return Decision(DecisionKind.ALREADY_OWNER, f"{why}, and the API says that Droplet {target} owns the IP already")
    is_again = state is VrrpState.MASTER_RX_LOWER_PRI or evidence is not None
    kind = DecisionKind.REASSERT if is_again else DecisionKind.ASSIGN
    where = "this Droplet" if target is None else f"Droplet {target}"
    return Decision(kind, f"{why}{_describe_owner(owner)}: the reserved IP goes to {where}")


def decide_step(steps: str, *, owner: Owner, target: int | None) -> Decision:
    """Decide for single steps that a person asked for: nothing is assigned."""
    if target is not None and owner == target:
        return Decision(DecisionKind.ALREADY_OWNER, f"{steps} by hand, and the API says that Droplet {target} owns the IP")
    return Decision(DecisionKind.IGNORE, f"{steps} by hand{_describe_owner(owner)}: nothing is assigned")


def _describe_owner(owner: Owner) -> str:
    if isinstance(owner, Unknown):
        return ""
    return f", and {name_droplet(owner)} owns the IP"
