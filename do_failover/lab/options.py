"""What a lab is asked to be: the two faults, the three deaths, and the options of one run."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Any, Self

MAX_PEERS = 1000
"""A Linux bridge takes 1023 ports, and two belong to the load balancers."""


class Family(IntEnum):
    """The IP version of the reserved IP."""

    IPV4 = 4
    IPV6 = 6


class Fault(StrEnum):
    """How a peer's link-layer state goes stale (architecture.md, "The lab")."""

    FABRIC = "fabric"
    ON_LINK = "on-link"


class Kill(StrEnum):
    """How lb1 dies: its service, its VRRP daemon, or all of it."""

    HAPROXY = "haproxy"
    KEEPALIVED = "keepalived"
    NODE = "node"


class Mode(StrEnum):
    """`run` plays the scenario and ends, `keep` plays it and stays, `up` only stands."""

    RUN = "run"
    KEEP = "keep"
    UP = "up"


@dataclass(frozen=True, slots=True)
class LabOptions:
    """The options of one lab. Durations are seconds; `watch_s` None means the scenario's own default.

    `logs` is a directory of the host (not below /run, which the lab hides), or empty. `api_fault` is a script of
    the API's faults (fault_text.py), for `run` and `keep`: it begins with the kill. `with_daemon`: the tool is resident on both
    load balancers, as an unprivileged user with CAP_NET_RAW alone. `unarmed`: so many peers, the last ones, are listed
    only a moment before the kill: those the daemon is only beginning to connect to.
    """

    peers: int = 5
    fault: Fault = Fault.FABRIC
    kill: Kill = Kill.HAPROXY
    with_tool: bool = True
    action_time_s: float = 1.5
    watch_s: float | None = None
    mode: Mode = Mode.RUN
    logs: str = ""
    family: Family = Family.IPV4
    api_fault: str = ""
    with_daemon: bool = False
    unarmed: int = 0

    def __post_init__(self) -> None:
        """ValueError for a control with a daemon, and for unarmed peers where none is armed."""
        if self.with_daemon and not self.with_tool:
            message = "a control runs without the tool, so also without its daemon"
            raise ValueError(message)
        if self.unarmed and not (self.with_daemon and 0 < self.unarmed < self.peers):
            message = f"some of {self.peers} peers can be unarmed where a daemon arms the others: not {self.unarmed}"
            raise ValueError(message)

    @property
    def effective_watch_s(self) -> float:
        """How long a run waits for its end: with the tool at most, in a control exactly, after the client recovered."""
        if self.watch_s is not None:
            return self.watch_s
        return 60.0 + self.patience_s if self.with_tool else 10.0

    @property
    def patience_s(self) -> float:
        """How much longer everything may take because all peers' sshd's share this machine."""
        return self.peers / 10

    def to_json(self) -> str:
        """Write the options as one line, for the inner process's argv."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote."""
        raw: dict[str, Any] = json.loads(text)
        return cls(
            **{
                **raw,
                "fault": Fault(raw["fault"]),
                "kill": Kill(raw["kill"]),
                "mode": Mode(raw["mode"]),
                "family": Family(raw["family"]),
            },
        )
