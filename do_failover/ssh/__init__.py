"""Connections to peers, kept open: the only home of asyncssh.

    settings   what the configuration says about SSH, and the result of one command
    trust      identity and known_hosts files -> asyncssh's options, shared by all peers
    turns      whose turn it is to log in: no peer's time-out measures our own crowd, no dead peer holds up a living one
    dial       a peer's name -> a connected TCP socket on which somebody speaks
    jump       jump hosts (ProxyJump): one shared connection each, for all peers behind it
    login      that socket -> an authenticated SSH connection to a host that known_hosts vouches for
    tcp_channel  a TCP connection from a peer or a jump host
    session    one command on such a connection: bounded output, bounded time
    sentences  whatever went wrong -> PeerError with the operator's sentence
    host_keys  known_hosts as `peers trust` reads and writes it; key_fetch: what hosts show
    pool       PeerConnections: one connection a peer, opened once, reopened when it was cut
    armed_loop      the remote loop of an armed peer, and the reader of its answers (pure)
    armed_channel   one channel on which that loop runs
    armed           ArmedPeers: keeps peers armed in the background, for the daemon

Guarantees
- A host key is accepted only from `known_hosts` (also hashed names and @cert-authority lines), of jump hosts too. No
  ssh_config can change that: not with StrictHostKeyChecking, UserKnownHostsFile or ProxyJump. ProxyCommand is refused.
- Nothing is forwarded to a peer (agent, X11, ports; `probe_tcp` opens one channel and sends what it is given), no
  environment is sent, no password or passphrase is ever asked for.
- Whatever a peer does ends as a PeerError of that peer: unreachable, refused, host_key, command.
- After `PeerConnections.close()` or `ArmedPeers.close()` no task and no socket is left. A name look-up that hangs in the
  system's resolver can't be interrupted: its daemon thread ends by itself.

Not guaranteed: a peer's output is text written by that machine, control characters and all.
"""

from __future__ import annotations

import logging

from do_failover.ssh.armed import ArmedPeers, Pace, PeerArms
from do_failover.ssh.pool import PeerConnections
from do_failover.ssh.settings import CommandResult, SshSettings

__all__ = ["ArmedPeers", "CommandResult", "Pace", "PeerArms", "PeerConnections", "SshSettings"]

# What asyncssh logs is said by our sentences already. Without a handler of its own, its warnings
# would reach the terminal by logging's last resort; a program that wants them adds a handler.
logging.getLogger("asyncssh").addHandler(logging.NullHandler())
logging.getLogger("asyncssh").propagate = False
