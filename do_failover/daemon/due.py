"""Which peers are to be refreshed, and when: all of them now and then, the late ones when they return. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from do_failover.model import PeerOutcome
from do_failover.retry import Backoff

if TYPE_CHECKING:
    from collections.abc import Iterable

    from do_failover.model import Peer, PeerResult

_AGAIN = Backoff(first_s=5.0, most_s=60.0, jitter=0.25)
_RETURNED_S = 0.5  # peers that return together are refreshed together
# Also one whose turn never came before the deadline. One that was refreshed and can't be proven waits for refresh_s.
_IS_LATE = {PeerOutcome.STALE, PeerOutcome.UNREACHABLE}
NEVER = float("inf")

Key = tuple[str, int]


@dataclass(slots=True)
class DuePeers:
    """Keeps what is known of each peer since the IP is ours."""

    refresh_s: float
    all_at: float = NEVER
    late_at: float = NEVER
    outcomes: dict[Key, PeerOutcome] = field(default_factory=dict)
    late: dict[Key, int] = field(default_factory=dict)  # failed tries since it was well

    def note(self, results: Iterable[tuple[Peer, PeerResult]], now: float) -> bool:
        """Take a story's rows; return whether any peer came out otherwise than before."""
        has_changed = False
        for peer, result in results:
            key = (peer.host, peer.port)
            if result.outcome is PeerOutcome.SKIPPED:
                continue
            has_changed |= self.outcomes.get(key) is not result.outcome
            self.outcomes[key] = result.outcome
            if result.outcome in _IS_LATE or (result.outcome is PeerOutcome.UNPROVEN and not result.attempts):
                self.late[key] = self.late.get(key, 0) + 1
            else:
                self.late.pop(key, None)
        self.late_at = now + _AGAIN.wait_s(max(1, min(self.late.values()))) if self.late else NEVER
        return has_changed

    def plan_all(self, now: float) -> None:
        """All peers were refreshed just now: once more after refresh_s (0: never)."""
        self.all_at = now + self.refresh_s if self.refresh_s > 0 else NEVER

    def put_off(self, now: float) -> None:
        """Plan the next time before this one begins: one that is interrupted is not begun anew at once."""
        if now >= self.all_at:
            self.plan_all(now)
        self.late_at = now + _AGAIN.first_s if self.late else NEVER

    def note_return(self, peer: Peer, now: float) -> None:
        """Note that a peer can be reached again: it may have been away when the IP moved, or have forgotten since."""
        self.late.setdefault((peer.host, peer.port), 0)
        self.late_at = min(self.late_at, now + _RETURNED_S)

    def is_due(self, now: float) -> bool:
        """Tell whether anybody is to be refreshed now."""
        return now >= min(self.all_at, self.late_at)

    def choose(self, peers: Iterable[Peer], now: float) -> tuple[Peer, ...]:
        """Return those whose turn it is; who is no longer listed is forgotten."""
        peers = tuple(peers)
        listed = {(peer.host, peer.port) for peer in peers}
        for known in (self.late, self.outcomes):
            for key in [key for key in known if key not in listed]:
                del known[key]
        if now >= self.all_at:
            return peers
        return tuple(peer for peer in peers if (peer.host, peer.port) in self.late)

    def forget(self) -> None:
        """Drop it all: the IP is not ours, nobody is due."""
        self.all_at = self.late_at = NEVER
        self.late.clear()
        self.outcomes.clear()
