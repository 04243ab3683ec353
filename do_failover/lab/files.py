"""The text of every file that a node finds under /run/lab. Pure.

Nodes see these paths; the load balancers' configuration is what an operator would write.
"""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

from do_failover.lab import plan as p
from do_failover.lab.errors import LabError
from do_failover.lab.keepalived import FIFO, PID_FILE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from do_failover.lab.plan import Host, Plan

USER = "do-failover"
UID = 990
PROGRAM = "/run/lab/do-failover"
_DEADLINE_S = 30
"""Of a round. It and the time-outs grow with the peers, for all of them live on the load balancer's cores here."""

HISTORY = "lab/history"
"""Where a load balancer keeps its reports, below its /run."""

SHADOW = f"root:*:20000:0:99999:7:::\nsshd:*:20000::::::\n{USER}:*:20000:0:99999:7:::\n"
"""`*` and not `!`: OpenSSH refuses a locked account even to a key. No hash of the host's comes in here."""


def passwd(of_host: str) -> str:
    """Return the host's accounts (daemons look theirs up) and the lab's own."""
    return _without_user(of_host) + f"{USER}:x:{UID}:{UID}::/run/home:/bin/sh\n"


def group(of_host: str) -> str:
    """Return the host's groups and the lab's own."""
    return _without_user(of_host) + f"{USER}:x:{UID}:\n"


def _without_user(text: str) -> str:
    return "".join(f"{line}\n" for line in text.splitlines() if not line.startswith(f"{USER}:"))


def hosts(plan: Plan) -> str:
    """/etc/hosts: names by which the load balancers reach peers, on the private network."""
    lines = [f"{host.private}\t{host.name}\n" for host in plan.droplets]
    return "127.0.0.1\tlocalhost\n" + "".join(lines)


def haproxy_cfg(host: Host, plan: Plan) -> str:
    """Configure a HAProxy that says who it is."""
    bind = ":::80 v4v6" if plan.is_v6 else "*:80"
    return (
        "global\n    maxconn 2000\n"
        "defaults\n    mode http\n    timeout connect 2s\n    timeout client 5s\n    timeout server 5s\n"
        f"frontend who\n    bind {bind}\n"
        f'    http-request return status 200 content-type text/plain string "{host.name}\\n"\n'
    )


def sshd_config(host: Host) -> str:
    """Configure a stock sshd for one unprivileged user, by key only."""
    return (
        f"Port 22\nListenAddress {host.private}\nHostKey /run/lab/host_key\nPidFile none\n"
        f"AllowUsers {USER}\nPermitRootLogin no\nAuthorizedKeysFile /run/lab/authorized_keys\nStrictModes no\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\nUseDNS no\nPrintMotd no\n"
    )


def known_hosts(plan: Plan, host_keys: Mapping[str, str]) -> str:
    """All peers' host keys, under name and private address."""
    return "".join(f"{peer.name},{peer.private} {host_keys[peer.name]}\n" for peer in plan.peers)


def peers(listed: Sequence[Host]) -> str:
    """Write the fan-out list."""
    return "# made by the lab\n" + "".join(f"{peer.name}\n" for peer in listed)


def config_toml(plan: Plan, *, with_daemon: bool = False) -> str:
    """do-failover's own configuration, as an operator would write it, with the history where the lab looks for it."""
    routers = ", ".join(f'{{droplet_id = {lb.droplet_id}, address = "{lb.private}"}}' for lb in plan.balancers)
    keepalived = f'\n[keepalived]\npid_file = "{PID_FILE}"\nfifo     = "{FIFO}"\n' if with_daemon else ""
    return f"""\
[digitalocean]
token_file   = "/run/lab/token"
api_url      = "{p.API_URL}"
metadata_url = "{p.METADATA_URL}"
ca_file      = "/run/lab/ca.pem"

[[failover]]
reserved_ip = "{plan.reserved_ip}"
instance    = "{p.INSTANCE}"
interface   = "eth0"
deadline_s  = {_DEADLINE_S + len(plan.peers) // 20}
{f"routers     = [{routers}]" if with_daemon else ""}

[peers]
file              = "/run/lab/peers"
user              = "{USER}"
identity_file     = "/run/lab/identity"
known_hosts       = "/run/lab/known_hosts"
connect_timeout_s = {3 + len(plan.peers) // 200}
command_timeout_s = {5 + len(plan.peers) // 50}

[paths]
run_dir     = "/run/do-failover"
history_dir = "/run/{HISTORY}"
{keepalived}"""


def notify_with_tool(python: str) -> str:
    """Write the hook that keepalived calls: the tool, with keepalived's arguments unchanged."""
    command = f"{shlex.quote(python)} -m do_failover -c /run/lab/config.toml notify"
    return f'#!/bin/sh\nexec {command} "$@" >> /run/log/notify 2>&1\n'


def program(python: str) -> str:
    """Write the lab's `do-failover` program, which knows its configuration."""
    return f'#!/bin/sh\nDO_FAILOVER_CONFIG=/run/lab/config.toml exec {shlex.quote(python)} -m do_failover "$@"\n'


def notify_with_daemon() -> str:
    """Write the hook where a daemon lives: the shim, with a log."""
    return '#!/bin/sh\nexec /run/lab/do-failover-notify "$@" >> /run/log/notify 2>&1\n'


def shim(text: str) -> str:
    """Make the shim out of the one that is shipped. LabError names a line that it lost."""
    for pattern, line in ((r"program=do-failover .*", f"program={PROGRAM}"), (r"config= .*", "config=/run/lab/config.toml")):
        text, count = re.subn(rf"^{pattern}$", line, text, flags=re.MULTILINE)
        if count != 1:
            message = f"share/do-failover-notify has {count} lines like `{pattern}`, the lab needs exactly 1"
            raise LabError(message)
    return text


def notify_without_tool(python: str, script: str, plan: Plan) -> str:
    """Write the control's hook: a script that only moves the IP, as tutorials do."""
    command = shlex.join([python, script, p.API_URL, p.METADATA_URL, plan.reserved_ip])
    return f'#!/bin/sh\n[ "$3" = MASTER ] || exit 0\nexec {command} >> /run/log/notify 2>&1\n'
