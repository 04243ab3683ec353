"""What has to hold when the faults are over and VRRP is stable: I1 and the end of I7, with the exceptions that I6 asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from do_failover.model import VrrpState

if TYPE_CHECKING:
    from tests.sim.node import Node
    from tests.sim.region import Region


def find_unrest(region: Region) -> tuple[str, str] | None:
    """Return the invariant that doesn't hold yet, and what is missing; None at rest. `law.rests_on` then says why it may rest."""
    law, owner = region.law, region.cloud.owner
    masters = [node for node in region.nodes.values() if node.kv.state == "MASTER"]
    law.rests_on = ""
    if len(masters) != 1:
        return "VRRP", f"{len(masters)} nodes are MASTER"
    (master,) = masters
    if region.cloud.pending:
        return "API", "something is still under way"
    claim = law.told[master.number].claim
    if claim is None:
        law.rests_on = "no claim: lines were lost, or the daemon's memory didn't count"
        return None
    if claim is not VrrpState.MASTER:
        return "FIFO", f"{master.name} was not told yet that it is MASTER"
    if owner != master.number:
        excuse = find_excuse(region, master)
        if excuse is None:
            return "I1", f"{master.name} is MASTER, and the owner is {owner}"
        law.rests_on = excuse
        return None
    for host in region.fleet.hosts.values():
        if host.is_up and host.path != owner:
            return "I7", f"{host.peer.host} can be reached, and its path still leads to {host.path}, not to the owner {owner}"
    law.rests_on = "the IP is the MASTER's"
    return None


def find_excuse(region: Region, master: Node) -> str | None:
    """Return why I6 leaves the IP where it is: a person's move, or another's younger action without evidence."""
    law, told = region.law, region.law.told[master.number]
    last, daemon = law.last, master.daemon
    if last is None or daemon is None or last.landed_at is None:
        return None
    (keeper,) = daemon.keepers.values()
    if keeper.standing.intent is not None and (last.by.startswith("person") or master.ordered_to == region.cloud.owner):
        return f"a person's move ({region.cloud.owner}), which {master.name} read late"
    if told.vrrp_at > last.landed_at:
        return None
    if told.moved_away_at is not None:
        return f"a person's move ({last.target}) that {master.name} knows, and no VRRP event since"
    if region.cloud.owner is not None and not _is_well(region, region.cloud.owner):
        return None
    if last.by.startswith("person"):
        return f"a person's move ({last.target}), and no VRRP event since"
    settled_at = keeper.standing.settles_at + master.booted_at
    is_seen_in_time = (
        last.landed_at < settled_at - 5.0 and max(region.cloud.troubled_at, master.troubled_at, master.started_at) < last.landed_at
    )
    if keeper.standing.contest.losses == 0 and is_seen_in_time:
        return None  # lost while settling
    if last.by == master.name:
        return None
    ours = keeper.standing.contest.last_action_id
    if ours is not None and last.id < ours and keeper.standing.contest.losses == 0:
        return None
    return f"the younger action {last.id} of {last.by}, and no evidence since"


def _is_well(region: Region, owner: int) -> bool:
    droplet = region.cloud.droplets[owner]
    return droplet.status == "active" and droplet.answers
