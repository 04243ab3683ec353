"""The right to act for one event: it lasts until a newer event supersedes it, or SIGTERM comes.

Guarantee: once revoked it stays revoked, with the first reason. It ends nothing by itself: who
holds it looks at `is_revoked` before each new thing it starts, and waits on `revoked()` beside
whatever it waits for (I2).
"""

from __future__ import annotations

import asyncio

from do_failover.errors import SupersededError


class Mandate:
    """One event's right to act."""

    def __init__(self) -> None:
        """Start with the right in force."""
        self._revoked = asyncio.Event()
        self.error: SupersededError | None = None

    def revoke(self, reason: str, error: type[SupersededError] = SupersededError) -> None:
        """End it, with a sentence for the report. Later reasons are ignored."""
        if not self._revoked.is_set():
            self.error = error(reason)
            self._revoked.set()

    @property
    def is_revoked(self) -> bool:
        """Tell whether it has ended."""
        return self._revoked.is_set()

    async def revoked(self) -> None:
        """Wait until it ends."""
        await self._revoked.wait()

    def check(self) -> None:
        """Raise SupersededError when it has ended: to be called before anything new is started."""
        if self.error is not None:
            raise self.error
