"""The resident failover: ordered, superseding, guarding what it reached.

    lines      the FIFO's bytes -> what was heard, in order (pure)
    table      VRRP's claim, the owner, the evidence -> the next move and its reason: the state table (pure)
    memory     what outlives the process, and when it still counts (pure)
    world      what a daemon is given: time, edges, memory, the right to act
    evidence   why a lost reserved IP may be taken back: what the API and the peers say of its owner
    keeper     one reserved IP: acts on the newest event, then settles, guards, refreshes
    daemon     hears for all reserved IPs, tells their keepers; reload and stop; a person's orders
    fifo, keepalived, lock, local_socket, notice    the machine's side: one outside thing each

Guarantees: I1 to I7 of docs/design.md, as docs/daemon.md tells them. Everything that acts gets its
time and its outside as arguments: the simulation (tests/sim) runs this code unchanged.
"""
