"""What a story is given: the request, and the outside as it meets it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from do_failover import announce
from do_failover.assign import AssignApi, Contest
from do_failover.retry import Backoff

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from do_failover import frames, refresh
    from do_failover.clock import Clock
    from do_failover.config import FailoverConfig
    from do_failover.model import Droplet, Identity, NotifyEvent, Peer

ALL_STEPS = frozenset({"assign", "announce", "refresh", "verify"})


class Api(AssignApi, Protocol):
    """What the story needs of the API beyond the assign step."""

    def count_calls(self) -> int:
        """Return how many requests were made so far."""
        ...

    async def read_droplet(self, droplet_id: int, timeout_s: float) -> Droplet:
        """GET one Droplet."""
        ...


class Link(announce.Link, Protocol):
    """One interface of this machine, open for frames and for listening."""

    def listen(self, ethertype: int, program: frames.Program, note: Callable[[bytes], None], *, is_raw: bool = False) -> None:
        """Call `note` with each packet (`is_raw`: frame) that the filter lets through."""
        ...


@dataclass(frozen=True, slots=True)
class Edges:
    """The outside, as the story meets it. A test hands in its own."""

    clock: Clock
    api: Api
    read_identity: Callable[[], Awaitable[Identity]]
    open_link: Callable[[], AbstractAsyncContextManager[Link]]
    open_peers: Callable[[], AbstractAsyncContextManager[refresh.PeerShell]]
    is_on_link: Callable[[str], Awaitable[bool]]
    backoff: Backoff = field(default_factory=Backoff)
    probe_port: int | None = None  # peers.probe: where peers connect to by TCP, if anywhere
    prepare_assign: Callable[[int], None] = lambda _: None  # to this Droplet, some time before it is needed


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for: one entry of the configuration, and how much of the story."""

    entry: FailoverConfig
    peers: tuple[Peer, ...]
    run: bytes
    id: str
    at: str
    node: str
    heard_at: float
    event: NotifyEvent | None = None
    to_droplet: int | None = None
    steps: frozenset[str] = ALL_STEPS
    round: int = 1
    warnings: tuple[str, ...] = ()
    contest: Contest = field(default_factory=Contest)
    identity: Identity | None = None  # as read a moment ago: who this is needs no asking then
    evidence: str | None = None  # why a MASTER that has been served makes sure again
