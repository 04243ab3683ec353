"""What a daemon is given: time, edges, its memory, and the right to act. A simulation hands in its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from do_failover.clock import Clock
    from do_failover.config import FailoverConfig
    from do_failover.daemon.memory import Memory, Process
    from do_failover.mandate import Mandate
    from do_failover.model import FailoverReport, NotifyEvent, Peer
    from do_failover.request import Edges


Order = tuple[int, int]  # clock ticks since boot, process: an event's place among this machine's


@dataclass(frozen=True, slots=True)
class Newer:
    """What another process of this machine heard, or (without an event) a person's move, after `order` was asked for."""

    order: Order
    event: NotifyEvent | None


def _find_nothing(_: FailoverConfig, __: Order) -> Newer | None:
    return None


@dataclass(frozen=True, slots=True)
class World:
    """The outside of one daemon.

    `take_turn` holds a reserved IP's turn among this machine's processes (I4); None as the event: a person's order.
    `find_keepalived` reads which keepalived runs now; `make_run` returns a record's id and a run's 8 octets.
    `register` makes an event known to this machine's other processes, ends what it supersedes there, and returns its place;
    `read_newer` is the way back: what they heard after that place.
    `say` logs one sentence. None of them blocks for long, and none raises.
    """

    clock: Clock
    node: str
    boot_id: str
    make_edges: Callable[[FailoverConfig], Edges]
    list_peers: Callable[[], tuple[Peer, ...]]
    take_turn: Callable[[FailoverConfig, NotifyEvent | None, Mandate], AbstractAsyncContextManager[None]]
    find_keepalived: Callable[[], Process | None]
    load_memory: Callable[[], Memory]
    save_memory: Callable[[Memory], None]
    register: Callable[[NotifyEvent, FailoverConfig], Order | None]
    keep: Callable[[FailoverReport], None]
    say: Callable[[str], None]
    make_run: Callable[[], tuple[str, bytes]]
    list_nits: Callable[[], tuple[str, ...]] = tuple  # what is untidy and goes into the reports
    read_newer: Callable[[FailoverConfig, Order], Newer | None] = _find_nothing
