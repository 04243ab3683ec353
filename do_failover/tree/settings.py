"""What the configuration says about the tree, and the ssh options of each hop. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

_GROOMING_S = 0.02  # how long a gateway collects what its peers say


@dataclass(frozen=True, slots=True)
class TreeSettings:
    """How to reach peers through gateways. Files are absolute paths.

    `topology` None: where ClusterShell looks by itself. `user` is the peers', `gateway_user` the gateways'. `identity_file`,
    `known_hosts` and `ssh_config` are for what starts here: to gateways, and to peers that the topology doesn't have.
    `connect_timeout_s` and `command_timeout_s` bound each hop and each command; `fanout`: how many peers each gateway, and
    this machine, log in to at once.
    """

    topology: str | None
    user: str | None
    gateway_user: str | None
    identity_file: str | None
    known_hosts: str
    ssh_config: str | None
    connect_timeout_s: float
    command_timeout_s: float
    fanout: int

    @property
    def timeout_s(self) -> float:
        """Return what one command on one peer may take, its login included."""
        return self.connect_timeout_s + self.command_timeout_s

    def to_relay(self) -> dict[str, object]:
        """Return what relay takes."""
        return {
            "topology": self.topology,
            "user": self.user,
            "gateway_user": self.gateway_user,
            "ssh": self._list_own_options(),
            "bounded": _BOUNDED,
            "gateway_ssh": _CHECKED,
            "connect_timeout_s": math.ceil(self.connect_timeout_s),
            "timeout_s": self.timeout_s,
            "grooming_s": _GROOMING_S,
            "fanout": self.fanout,
        }

    def _list_own_options(self) -> list[str]:
        """Return the options of the ssh that starts here. What stands first counts, so no ssh_config can weaken it."""
        identity = ["-oIdentitiesOnly=yes", "-i", self.identity_file] if self.identity_file else []
        return [
            "-F",
            self.ssh_config or "none",
            *_CHECKED,
            f"-oUserKnownHostsFile={_quote(self.known_hosts)}",
            "-oGlobalKnownHostsFile=none",
            "-oKnownHostsCommand=none",
            "-oProxyCommand=none",
            "-oControlPath=none",
            "-oServerAliveInterval=5",
            "-oServerAliveCountMax=2",
            f"-oConnectTimeout={math.ceil(self.connect_timeout_s)}",
            *identity,
        ]


_SCRIPT = """\
case "$*" in *ClusterShell.Gateway*) exec ssh "$@" ;; esac
setpriv --pdeathsig KILL true 2>/dev/null || exec ssh "$@"
setpriv --pdeathsig KILL ssh "$@" | head -c 69632
"""
_BOUNDED = ["sh", "-c", _SCRIPT, "ssh"]
"""What stands in for `ssh` on the last hop: no more than 68 KiB of what a peer writes comes through.

ClusterShell takes in whatever comes, so a flood would keep a gateway from serving its other peers. ClusterShell ends it by
SIGKILL to the shell: ssh goes with it. Where setpriv (util-linux 2.33) is missing, there is no bound. The status is lost.
"""

_CHECKED = [
    "-oStrictHostKeyChecking=yes",
    "-oUpdateHostKeys=no",
    "-oVerifyHostKeyDNS=no",
    "-oNoHostAuthenticationForLocalhost=no",
    "-oBatchMode=yes",
    "-oPasswordAuthentication=no",
    "-oKbdInteractiveAuthentication=no",
    "-oForwardAgent=no",
    "-oForwardX11=no",
    "-oClearAllForwardings=yes",
    "-oPermitLocalCommand=no",
    "-oRequestTTY=no",
    "-oEscapeChar=none",
]
"""For every hop, a gateway's too: what it doesn't settle stands in the gateway user's own ~/.ssh/config."""


def _quote(path: str) -> str:
    """Write a path as ssh reads it: % begins a token, blanks end a name."""
    return '"' + path.replace("%", "%%").replace('"', '\\"') + '"'
