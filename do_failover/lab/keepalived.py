"""keepalived's configuration for one load balancer, made from the example that operators copy, and its log read back. Pure.

Only the lines that the example tells an operator to change are changed. A line that is not there
exactly once is an error: so the example cannot rot without the lab failing.
"""

from __future__ import annotations

import re
from importlib import resources

from do_failover.lab.errors import LabError
from do_failover.lab.plan import INSTANCE, Host, Plan

NOTIFY = "/run/lab/notify"
FIFO = "/run/do-failover/vrrp.fifo"
PID_FILE = "/run/keepalived.pid"

_ENTERING = re.compile(r"\((?P<name>[^()]+)\) Entering (?P<state>[A-Z]+) STATE")


def example() -> str:
    """Return the text of keepalived.conf.example as it is shipped."""
    return resources.files("do_failover").joinpath("share/keepalived.conf.example").read_text(encoding="utf-8")


def configuration(host: Host, plan: Plan, text: str, *, with_daemon: bool = False) -> str:
    """Make `host`'s configuration out of the example `text`. LabError names a line that the example lost."""
    (other,) = (lb for lb in plan.balancers if lb is not host)
    for pattern, line in (
        *([(rf"# vrrp_notify_fifo {FIFO}", f"vrrp_notify_fifo {FIFO}")] if with_daemon else []),
        (r"router_id \S+", f"router_id {host.name}"),
        (r"interface \S+", "interface eth1"),
        (r"priority \d+", f"priority {host.priority}"),
        (r"unicast_src_ip \S+", f"unicast_src_ip {host.private}"),
        (r"unicast_peer \{[^}]*\}", f"unicast_peer {{\n        {other.private}\n    }}"),
        (r'notify "[^"]*"', f'notify "{NOTIFY}"'),
    ):
        text, count = re.subn(rf"^([ \t]+){pattern}[ \t]*$", rf"\g<1>{line}", text, flags=re.MULTILINE)
        if count != 1:
            message = f"keepalived.conf.example has {count} lines like `{pattern}`, the lab needs exactly 1"
            raise LabError(message)
    return text


def state_in(line: str) -> str | None:
    """Return the VRRP state that a line of keepalived's log says our instance entered; None for any other line."""
    match = _ENTERING.search(line)
    return match["state"] if match and match["name"] == INSTANCE else None
