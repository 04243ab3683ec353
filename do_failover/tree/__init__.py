"""Commands to peers by way of ClusterShell's tree of gateways: the only home of ClusterShell.

    settings   what the configuration says about it, and the ssh options of each hop
    shell      TreeShell: runs commands on peers, as refresh's PeerShell; looks after the process that
    relay      is ClusterShell, a process of its own
    sentences  whatever went wrong -> PeerError with the operator's sentence (pure)

Guarantees
- Host keys are checked on each hop: from here against `known_hosts`, and a gateway is told to check those of its peers
  (StrictHostKeyChecking=yes), against its own. What is started from here takes no ProxyCommand or ProxyJump.
- What a gateway sends is data. ClusterShell itself unpickles it, which lets a gateway run code; relay does not.
- Whatever a peer or a gateway does ends as a PeerError of each peer that it concerns, and delays no other.
- After `TreeShell.close()` no process that it started is left here. A gateway's end with their connection, and a peer's
  with its gateway's. No token, and nothing of this process' environment that ssh and ClusterShell don't need, reaches them.

Not guaranteed: that a gateway tells the truth. It knows the patterns of its peers, and could send them itself.
"""
