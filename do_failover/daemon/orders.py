"""What a person asks of the daemon for one reserved IP. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from do_failover.request import ALL_STEPS


@dataclass(frozen=True, slots=True)
class Order:
    """The story by hand, or steps of it; `to_droplet` None: to this Droplet."""

    reserved_ip: str
    to_droplet: int | None = None
    steps: frozenset[str] = ALL_STEPS
