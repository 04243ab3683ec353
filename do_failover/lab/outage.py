"""How long a source was without the new owner. Pure.

A probe is served when the *new owner* answers it. The outage of a source lasts from the kill to the start of
the first probe of its final unbroken run of served probes; a source whose last probe was not served is
cut off, and its outage is the whole time watched.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Service:
    """One source's answers so far, folded: who answers now, and since which probe without a break."""

    answer: str | None = None
    since: float = 0.0

    def add(self, started_at: float, answer: str | None) -> bool:
        """Take one probe, in order of their starts. Says whether the answer differs from the one before."""
        if answer == self.answer:
            return False
        self.answer, self.since = answer, started_at
        return True

    def is_served_by(self, owner: str) -> bool:
        """Whether the last probe was answered by `owner`."""
        return self.answer == owner

    def outage_s(self, owner: str, killed_at: float, ended_at: float) -> float:
        """Seconds without `owner` after the kill, up to the end of the watch for one that is cut off."""
        end = self.since if self.is_served_by(owner) else ended_at
        return round(max(0.0, end - killed_at), 3)
