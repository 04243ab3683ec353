"""Everything that one history happens to: nodes, API, peers, and who keeps the law."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from do_failover.config import FailoverConfig, Router
from do_failover.model import Peer
from tests.sim.cloud import IP, THIRD, Cloud, Droplet
from tests.sim.law import Law, Told
from tests.sim.node import Node
from tests.sim.peers import Fleet, Host
from tests.sim.trace import Trace
from tests.sim.vrrp import Wire

if TYPE_CHECKING:
    from random import Random


@dataclass
class Region:
    """One history's world."""

    rng: Random
    trace: Trace = field(default_factory=Trace)
    law: Law = field(default_factory=Law)
    nodes: dict[int, Node] = field(default_factory=dict)
    wire: Wire = field(init=False)
    cloud: Cloud = field(init=False)
    fleet: Fleet = field(init=False)

    def __post_init__(self) -> None:
        """Draw how large it is, and how it is configured."""
        rng = self.rng
        numbers = range(1, 4 if rng.random() < 0.3 else 3)
        droplets = {number: Droplet(number, f"198.18.0.1{number}") for number in (*numbers, THIRD)}
        self.law.region = self
        self.wire = Wire(rng)
        self.cloud = Cloud(rng, self.trace, self.law, droplets, owner=rng.choice((*numbers, None)))
        self.cloud.seen = {number: number == self.cloud.owner for number in droplets}
        hosts = {
            f"app{n + 1}": Host(Peer(n, f"app{n + 1}"), self.cloud.owner, takes_s=0.005 + 0.02 * rng.random())
            for n in range(rng.choice((2, 3)))
        }
        self.fleet = Fleet(rng, self.cloud, hosts)
        entry = FailoverConfig(
            IP,
            instance="VI_1",
            deadline_s=rng.choice((12.0, 20.0)),
            routers=tuple(Router(number, f"10.110.0.1{number}") for number in numbers) if rng.random() < 0.7 else (),
            refresh_s=rng.choice((0.0, 20.0, 120.0)),
            settle_s=rng.choice((6.0, 15.0)),
            guard_s=rng.choice((5.0, 15.0)),
            cool_off_s=rng.choice((10.0, 30.0)),
            garp_repeat=2,
        )
        mode = rng.choice(("fifo", "fifo", "fifo", "scripts", "both"))
        for number in numbers:
            self.law.told[number] = Told()
            self.nodes[number] = Node(self, number, entry, capacity=rng.choice((4, 8, 2000, 2000)), mode=mode)
