"""The disturbances of one history: drawn from its seed beforehand, each with its own end."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.sim.cloud import IP, THIRD, Mood

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.sim.node import Node
    from tests.sim.region import Region


@dataclass
class Trouble:
    """Makes disturbances in a region."""

    region: Region

    def draw(self, span_s: float) -> list[tuple[float, Callable[[], None]]]:
        """Return what happens when, in order."""
        rng = self.region.rng
        kinds = (
            *[self.split, self.flap, self.kill, self.trap, self.storm, self.peer_away] * 2,
            *(self.stop, self.restart_keepalived, self.crash_keepalived, self.stall, self.reboot, self.lie, self.burst),
            *(self.move, self.order, self.jump, self.darken, self.junk, self.reload),
        )
        chosen = sorted((rng.random() * span_s, number, rng.choice(kinds)) for number in range(rng.choice((0, 1, 2, 3, 5, 8))))
        return [(at, kind) for at, _, kind in chosen]

    def _node(self) -> Node:
        return self.region.rng.choice(list(self.region.nodes.values()))

    def _later(self, least_s: float, most_s: float, call: Callable[..., Any], *given: Any) -> None:
        self.region.cloud.later(least_s + (most_s - least_s) * self.region.rng.random(), call, *given)

    # -- VRRP

    def split(self) -> None:
        """Cut one or both directions between two routers."""
        one, other = self.region.rng.sample(sorted(self.region.nodes), 2)
        ways = {(one, other)} if self.region.rng.random() < 0.4 else {(one, other), (other, one)}
        self.region.trace.add("net", f"VRRP is cut {'one way' if len(ways) == 1 else 'both ways'} from lb{one} to lb{other}")
        self.region.wire.cut |= ways
        self._later(1.0, 15.0, self._join, ways)

    def _join(self, ways: set[tuple[int, int]]) -> None:
        self.region.trace.add("net", f"VRRP passes again: {sorted(ways)}")
        self.region.wire.cut -= ways

    def flap(self) -> None:
        """Let a tracked service fail for a while."""
        node = self._node()
        node.note("the tracked service fails")
        node.kv.track(is_well=False)
        self._later(0.01, 5.0, node.kv.track_well)

    def burst(self) -> None:
        """Let it fail and come back many times while the daemon doesn't read."""
        node = self._node()
        self._stall(node)
        for number in range(self.region.rng.randrange(2, 8)):
            self.region.cloud.later(0.01 * (2 * number + 1), node.kv.track_bad)
            self.region.cloud.later(0.01 * (2 * number + 2), node.kv.track_well)

    def restart_keepalived(self) -> None:
        node = self._node()
        node.end_keepalived(is_crash=False)
        self._later(0.1, 6.0, node.start_keepalived)

    def crash_keepalived(self) -> None:
        node = self._node()
        node.end_keepalived(is_crash=True)
        self._later(0.1, 12.0, node.start_keepalived)

    # -- the daemon

    def kill(self) -> None:
        node = self._node()
        node.kill_daemon()
        self._later(0.1, 8.0, node.start_daemon)

    def trap(self) -> None:
        """Kill it some steps after its next POST, line or frame."""
        node, rng = self._node(), self.region.rng
        node.traps[rng.choice(("POST", "heard", "frame"))] = rng.randrange(60)

    def stop(self) -> None:
        node = self._node()
        node.stop_daemon()
        self._later(0.1, 20.0, node.start_daemon)

    def stall(self) -> None:
        self._stall(self._node())

    def _stall(self, node: Node) -> None:
        node.note("the daemon doesn't read")
        node.is_stalled = True
        self._later(0.1, 4.0, self._go_on, node)

    def _go_on(self, node: Node) -> None:
        node.is_stalled, node.read_at = False, asyncio.get_running_loop().time()
        node.read()
        node.look_at_keepalived()

    def reload(self) -> None:
        """Give a daemon another configuration: what it was told still counts."""
        self._node().reload(guard_s=self.region.rng.choice((5.0, 7.0)))

    def junk(self) -> None:
        """Write lines that are no business of this instance."""
        rng, node = self.region.rng, self._node()
        for _ in range(rng.randrange(1, 4)):
            node.write(rng.choice(_JUNK))

    # -- the machine

    def reboot(self) -> None:
        """Turn the Droplet off; it may stay so."""
        node = self._node()
        droplet = self.region.cloud.droplets[node.number]
        if droplet.status != "active":
            return
        node.note("the Droplet is off")
        node.end_keepalived(is_crash=True)
        node.kill_daemon()
        node.pipe.clear()
        node.is_off = True
        droplet.status, droplet.answers = "off", False
        self.note_bad_owner()
        if self.region.rng.random() < 0.7 or any(other.is_off for other in self.region.nodes.values() if other is not node):
            self._later(2.0, 15.0, self._boot, node)

    def _boot(self, node: Node) -> None:
        node.is_off = False
        droplet = self.region.cloud.droplets[node.number]
        droplet.status, droplet.answers = "active", True
        node.booted_at = asyncio.get_running_loop().time() - 20.0
        node.boot_id = f"boot-{node.booted_at}"
        self.region.law.note_boot(node)
        node.note("the Droplet is on again")
        self._later(0.0, 3.0, node.start_keepalived)
        self._later(0.0, 3.0, node.start_daemon)

    def note_bad_owner(self) -> None:
        self.region.law.inactive_at = self.region.law.now()

    def darken(self) -> None:
        """Cut a node off from everything, though it runs."""
        node = self._node()
        node.note("is cut off from everything")
        node.is_dark = True
        node.troubled_at = 1e9
        self.region.wire.dark.add(node.number)
        self.region.cloud.droplets[node.number].answers = False
        self.note_bad_owner()
        self._later(1.0, 20.0, self._lighten, node)

    def _lighten(self, node: Node) -> None:
        node.note("can be reached again")
        node.is_dark = False
        node.troubled_at = asyncio.get_running_loop().time()
        self.region.wire.dark.discard(node.number)
        self.region.cloud.droplets[node.number].answers = not node.is_off

    def jump(self) -> None:
        node = self._node()
        node.wall_offset_s += self.region.rng.choice((-86400.0, 3600.0, 1e6))
        node.note("the wall clock jumps")

    def lie(self) -> None:
        """Let one Droplet's metadata say the opposite for a while."""
        node = self._node()
        node.note("the metadata service lies")
        self.region.cloud.lies.add(node.number)
        self._later(1.0, 15.0, self.region.cloud.lies.discard, node.number)

    # -- the API and people

    def storm(self) -> None:
        """Give the API a bad time."""
        rng = self.region.rng
        mood = Mood(
            delay_s=rng.choice((0.02, 0.3, 1.5)),
            spread_s=rng.choice((0.03, 0.5)),
            action_s=rng.choice((0.3, 2.0, 6.0)),
            lost=rng.choice((0.0, 0.1, 0.5)),
            slow=rng.choice((0.0, 0.0, 0.3)),
            errors=rng.choice((0.0, 0.2, 0.6)),
            odd=rng.choice((0.0, 0.5, 0.9)),
            refuses=rng.choice((0.0, 0.0, 0.3)),
            is_down=rng.random() < 0.15,
        )
        self.region.trace.add("API", f"behaves otherwise: {mood}")
        self.region.cloud.mood, self.region.cloud.troubled_at = mood, 1e9
        self._later(1.0, 20.0, self._calm, mood)

    def _calm(self, mood: Mood) -> None:
        if self.region.cloud.mood is mood:
            self.region.trace.add("API", "is well again")
            self.region.cloud.mood = Mood()
            self.region.cloud.troubled_at = asyncio.get_running_loop().time() + 10.0  # calls that were lost wait so long

    def move(self) -> None:
        """Let a person move or unassign the IP in the control panel."""
        target = self.region.rng.choice((*self.region.nodes, THIRD, THIRD, None, None))
        if self.region.cloud.locked_by is None and target != self.region.cloud.owner:
            self.region.cloud.begin("person", target)

    def order(self) -> None:
        rng = self.region.rng
        self._node().order(rng.choice((None, None, *self.region.nodes, THIRD)))

    # -- peers

    def peer_away(self) -> None:
        """Take a peer away for a while; the daemons may hear of its return, or not."""
        host = self.region.rng.choice(list(self.region.fleet.hosts.values()))
        self.region.trace.add(host.peer.host, "is away")
        host.is_up = False
        self._later(0.5, 25.0, self._come_back, host.peer.host)

    def _come_back(self, name: str) -> None:
        host = self.region.fleet.hosts[name]
        self.region.trace.add(name, "is back")
        host.is_up, host.up_since = True, asyncio.get_running_loop().time()
        for node in self.region.nodes.values():
            if self.region.rng.random() < 0.6:
                self._later(0.0, 3.0, node.return_of, host.peer)


_JUNK = (
    'INSTANCE "VI_2" MASTER 150',
    'INSTANCE "VI_2" BACKUP 150',
    'GROUP "VI_1" MASTER 0',
    'GROUP "VI_1" STOP 0',
    'INSTANCE "VI_1" MASTER_PRIORITY 120',
    'INSTANCE "VI_1" BACKUP_PRIORITY 120',
    'INSTANCE "VI_1" NONSENSE 1',
    f"VS [{IP}]:tcp:80 UP",
    "x" * 5000,
    "",
)
