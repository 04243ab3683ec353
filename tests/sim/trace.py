"""What happened, for a person: virtual time, who, what. Its hash tells one history from another."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, field

from tests.sim.loop import START_S


@dataclass
class Trace:
    """One history."""

    lines: list[tuple[float, str, str]] = field(default_factory=list)

    def add(self, who: str, what: str) -> None:
        """Note one thing at the present time."""
        self.lines.append((asyncio.get_running_loop().time() - START_S, who, what))

    def write(self) -> str:
        """Return it as text."""
        return "\n".join(f"{at:10.4f}  {who:<7} {what}" for at, who, what in self.lines)

    def digest(self) -> str:
        """Return what identifies it, byte for byte."""
        return hashlib.sha256(repr(self.lines).encode()).hexdigest()
