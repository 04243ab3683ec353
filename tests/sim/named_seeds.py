"""Seeds that found something, and what it was: they are played first, for ever.

A seed names a history only as long as the model draws the same numbers in the same order: who changes that
looks for a new seed of the bug with its fix taken out for a moment, and replaces the old one.
"""

from __future__ import annotations

NAMED_SEEDS: tuple[tuple[int, str], ...] = (
    (3, "after SIGTERM the keeper asked its table again and began another story (I2)"),
    (650, "a line of a keepalived that was dead already counted for ever, for its end was no change (I2, I3)"),
    (120, "an IP that came without a story of ours, or was ours before a restart, never got its peers refreshed (I7)"),
    (307, "peers that were late before a kill were forgotten by the next process, which remembered itself as owner (I7)"),
    (1242, "peers whose turn never came before the deadline were unproven, and with refresh_s = 0 never tried again (I7)"),
    (2359, "a reload after SIGTERM made keepers that knew nothing of the end (I2)"),
    (2930, "the guard looked while a person's `assign --to` ran, and undid it as soon as it had ended (I6)"),
    (6573, "a person's unassign that was not read before kill -9 was taken back by the next process (I6)"),
    (15482, "kill -9 while a person's `assign --to` ran: the next process undid the move (I6)"),
    (25653, "a refresh found the IP unassigned, and the next look no longer knew that it had been ours (I6)"),
    (76314, "a script that came late, after a restart, counted although a younger one had been heard before it (I3)"),
    (28211, "a person's move was respected for ever, also after another node took the IP from there and died with it (I1)"),
    (955, "a lower priority that was heard while a person's `assign --to` ran let the daemon undo the move afterwards (I6)"),
)
