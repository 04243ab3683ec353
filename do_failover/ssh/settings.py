"""What the configuration says about SSH, and what a command leaves behind."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SshSettings:
    """How to reach peers. Files may start with `~`; they are read again when they change.

    `identity_file`: only this key is offered; None: the keys of the ssh_config or the default ones
    (~/.ssh/id_*), and those of the agent at $SSH_AUTH_SOCK. `ssh_config` None: none is read at all.
    `connect_timeout_s` bounds name, TCP and login together; `command_timeout_s` one command;
    `concurrency`: how many have their turn to log in at once (turns.py); the time before it does not count.
    """

    user: str | None
    identity_file: str | None
    known_hosts: str
    ssh_config: str | None
    connect_timeout_s: float
    command_timeout_s: float
    concurrency: int


@dataclass(frozen=True, slots=True)
class CommandResult:
    """What a command wrote and how it ended.

    `stdout` is complete (64 KiB at most, else PeerError); `stderr` is its end, 2 KiB at most; bytes that are
    not UTF-8 are replaced. `exit_status` is None when a signal ended it: `signal` names that one ("KILL").
    """

    stdout: str
    exit_status: int | None
    stderr: str = ""
    signal: str | None = None
