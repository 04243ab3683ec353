"""Seeds that found something, and what it was: they are played first, for ever.

A seed names a history only as long as the model draws the same: who changes what is drawn, and in which
order, keeps the list all the same, and looks for a new seed of the bug with its fix taken out.
"""

from __future__ import annotations

NAMED_SEEDS: tuple[tuple[int, str], ...] = (
    (332, "a story whose deadline passed left peers unproven, and with refresh_s = 0 nobody refreshed them again (I7)"),
    (1030, "the guard looked while a person's `assign --to` ran, and undid it as soon as it had ended (I6)"),
    (1230, "a MASTER_RX_LOWER_PRI that waited for its cool-off overruled a person's later unassign (I6)"),
    (1252, "the guard undid a person's `assign --to` the other load balancer (I6)"),
    (2619, "peers that were unproven at the deadline stayed with the old owner (I7)"),
)
