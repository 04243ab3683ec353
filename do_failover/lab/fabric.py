"""What DigitalOcean's network does with the reserved IP, as nftables rules. Text here is pure; `Fabric` applies it.

fault fabric: the reserved IP is translated to an anchor IP, without connection tracking, so that an
ICMP flow with a known id can change its way. Each peer has a flow, remembered by its source address
and looked up first; a peer without one, and the far client, follow the owner. The kernel itself
re-learns a peer's flow, at the very packet: any IP packet of a peer to the *owner's* public eth0 address.
Nothing else re-learns it. When an action completes only the owner changes.

fault on-link: load balancers hold the reserved IP themselves. The fabric keeps broadcast ARP requests for it
from load balancers that are not the owner; unicast probes pass, so that an entry which points at a live
old owner is confirmed by it for ever. The far client is routed to the owner.

Checksums survive both ways, also with veth's checksum offload (measured on Linux 6.18: nftables
corrects the pseudo-header's part of a partial checksum).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from do_failover.lab import plan as p
from do_failover.lab.options import Fault

if TYPE_CHECKING:
    from do_failover.lab.commands import Runner
    from do_failover.lab.plan import Host, Plan


def initial_rules(plan: Plan) -> str:
    """Make tables for this plan's fault, with no owner yet."""
    return _fabric_tables(plan) if plan.fault is Fault.FABRIC else _on_link_tables(plan)


def owner_rules(plan: Plan, owner: Host | None) -> str:
    """Let `owner` own the reserved IP from now on: one nft transaction. Flows of peers stay as they are."""
    return _fabric_owner(plan, owner) if plan.fault is Fault.FABRIC else _on_link_owner(plan, owner)


def _fabric_tables(plan: Plan) -> str:
    flows = "\n".join(
        f"  set flow_{lb.name} {{ type ipv4_addr; flags dynamic; size {max(64, 2 * len(plan.peers))}; }}" for lb in plan.balancers
    )
    stale = "\n".join(f"    ip daddr {plan.reserved_ip} ip saddr @flow_{lb.name} ip daddr set {lb.anchor} accept" for lb in plan.balancers)
    anchors = ", ".join(lb.anchor for lb in plan.balancers)
    peers = ", ".join(peer.public for peer in plan.peers)
    return f"""\
table bridge lab {{
  set peers {{ type ipv4_addr; elements = {{ {peers} }}; }}
{flows}
  chain learn {{
  }}
  chain own {{
  }}
  chain pre {{
    type filter hook prerouting priority -300;
    ip saddr @peers jump learn
{stale}
    ip daddr {plan.reserved_ip} jump own
    ip saddr {{ {anchors} }} ip saddr set {plan.reserved_ip}
  }}
}}
table ip lab {{
  chain own {{
  }}
  chain pre {{
    type filter hook prerouting priority -300;
    iifname "{p.CLIENT_LINK}" ip daddr {plan.reserved_ip} jump own
  }}
}}
"""


def _fabric_owner(plan: Plan, owner: Host | None) -> str:
    lines = ["flush chain bridge lab learn", "flush chain bridge lab own", "flush chain ip lab own"]
    if owner is not None:
        forget = " ".join(f"delete @flow_{lb.name} {{ ip saddr }}" for lb in plan.balancers if lb is not owner)
        lines += [
            f"add rule bridge lab learn ip daddr {owner.public} {forget} add @flow_{owner.name} {{ ip saddr }}",
            f"add rule bridge lab own ip daddr set {owner.anchor}",
            f"add rule ip lab own ip daddr set {owner.anchor}",
        ]
    return "".join(f"{line}\n" for line in lines)


def _on_link_tables(plan: Plan) -> str:
    return f"""\
table bridge lab {{
  set silent {{ type ifname; }}
  chain forward {{
    type filter hook forward priority 0;
    oifname @silent ether daddr ff:ff:ff:ff:ff:ff arp operation request arp daddr ip {plan.reserved_ip} drop
  }}
  chain output {{
    type filter hook output priority 0;
    oifname @silent ether daddr ff:ff:ff:ff:ff:ff arp operation request arp daddr ip {plan.reserved_ip} drop
  }}
}}
"""


def _on_link_owner(plan: Plan, owner: Host | None) -> str:
    silent = ", ".join(f'"{lb.public_link}"' for lb in plan.balancers if lb is not owner)
    return f"flush set bridge lab silent\nadd element bridge lab silent {{ {silent} }}\n"


class Fabric:
    """The fabric of one lab. Every change is one nft transaction, and complete when the method returns."""

    def __init__(self, plan: Plan, runner: Runner) -> None:
        """Keep the plan; nothing is changed yet."""
        self._plan = plan
        self._run = runner

    async def start(self, owner: Host) -> None:
        """Install the rules, with this owner."""
        await self._run("nft", "-f", "-", stdin=initial_rules(self._plan))
        await self.set_owner(owner)

    async def set_owner(self, owner: Host | None) -> None:
        """Route the reserved IP to `owner` (None: nowhere)."""
        await self._run("nft", "-f", "-", stdin=owner_rules(self._plan, owner))
        if self._plan.fault is Fault.ON_LINK:
            target = "unreachable {ip}/32" if owner is None else "{ip}/32 via " + owner.public
            await self._run("ip", "route", "replace", *target.format(ip=self._plan.reserved_ip).split())

    async def learned(self, owner: Host) -> int:
        """How many peers' flows lead to this load balancer now (fault fabric)."""
        listing = await self._run("nft", "list", "set", "bridge", "lab", f"flow_{owner.name}")
        return sum(f" {peer.public}" in listing.replace(",", " ,") for peer in self._plan.peers)

    async def describe(self) -> str:
        """Show the live rules and flows, for the log."""
        return await self._run("nft", "list", "ruleset")
