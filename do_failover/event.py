"""One keepalived notify, by argv or as a FIFO line, becomes a NotifyEvent. Pure.

The name stands between double quotes on the FIFO, unescaped, and may itself hold spaces, dots and
quotes, so a line is read from both ends (keepalived's vrrp_notify.c; facts.md).
"""

from __future__ import annotations

from do_failover.errors import ConfigError
from do_failover.model import NotifyEvent, NotifyType, VrrpState


def parse_arguments(kind: str, name: str, state: str, priority: str | None = None) -> NotifyEvent:
    """Read the arguments that keepalived appends to `notify`. Raises ConfigError with all that is wrong."""
    problems = []
    if kind not in {*NotifyType}:
        problems.append(f"unknown notify type {_shown(kind)}: keepalived passes INSTANCE or GROUP first")
    if state not in {*VrrpState}:
        problems.append(f"unknown VRRP state {_shown(state)}: expected one of {', '.join(VrrpState)}")
    if not name:
        problems.append("the name of the instance or group is empty")
    if priority is not None and not (priority.isascii() and priority.isdigit() and len(priority) <= len("65535")):
        problems.append(f"the priority {_shown(priority)} is not a number")
    if problems:
        raise ConfigError(*problems)
    number = int(priority) if priority is not None else None
    return NotifyEvent(NotifyType(kind), name, VrrpState(state), number)


def parse_line(line: str) -> NotifyEvent:
    """Read one line of vrrp_notify_fifo. Raises ConfigError."""
    head, quote, rest = line.rstrip("\n").partition(' "')
    name, end_quote, tail = rest.rpartition('" ')
    words = tail.split(" ")
    if not quote or not end_quote or len(words) not in {1, 2}:
        msg = f'{_shown(line)} is not a notify line: expected INSTANCE|GROUP "NAME" STATE PRIORITY'
        raise ConfigError(msg)
    return parse_arguments(head, name, *words)


def _shown(text: str) -> str:
    return repr(text[:80])
