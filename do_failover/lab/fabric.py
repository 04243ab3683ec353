"""What DigitalOcean's network does with the reserved IP, as nftables rules. Text here is pure; `Fabric` applies it.

fault fabric: the reserved IP is translated to an anchor IP, without connection tracking, so that an
ICMP flow with a known id can change its way. Each peer has a flow, remembered by its source address
and looked up first; a peer without one, and the far client, follow the owner. The kernel itself
re-learns a peer's flow, at the very packet: any IP packet of a peer to the *owner's* public eth0 address.
Nothing else re-learns it. When an action completes only the owner changes.

fault on-link: load balancers hold the reserved IP themselves. The fabric keeps broadcast ARP requests for it
from load balancers that are not the owner; unicast probes pass, so that an entry which points at a live
old owner is confirmed by it for ever. The far client is routed to the owner.

A reserved IPv6 is never translated, for the load balancers hold it themselves. fault fabric: it is routed to the
owner's public address; a peer's flow is a packet mark given on the bridge, and looked up first: a routing table
for each load balancer. Neighbour discovery is ICMPv6, so it is kept from the learner: a peer's NA
to the new owner is no more a talk to it than an ARP reply is. fault on-link: what is kept from load balancers that are
not the owner is the reserved IPv6's solicited-node group.

Checksums survive both ways, also with veth's checksum offload (measured on Linux 6.18: nftables
corrects the pseudo-header's part of a partial checksum).
"""

from __future__ import annotations

from ipaddress import IPv6Address
from typing import TYPE_CHECKING

from do_failover.lab import plan as p
from do_failover.lab.options import Fault

if TYPE_CHECKING:
    from collections.abc import Collection

    from do_failover.lab.commands import Runner
    from do_failover.lab.plan import Host, Plan

_FIRST_TABLE = 100
_DISCOVERY = "nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, nd-redirect"
_ARP_ASKED = "ether daddr ff:ff:ff:ff:ff:ff arp operation request arp daddr ip {}"


def initial_rules(plan: Plan) -> str:
    """Make tables for this plan's fault, with no owner yet."""
    if plan.fault is Fault.ON_LINK:
        return _on_link_tables(plan)
    return _fabric_v6_tables(plan) if plan.is_v6 else _fabric_tables(plan)


def owner_rules(plan: Plan, owner: Host | None) -> str:
    """Let `owner` own the reserved IP from now on: one nft transaction. Flows of peers stay as they are."""
    return _fabric_owner(plan, owner) if plan.fault is Fault.FABRIC else _on_link_owner(plan, owner)


def flow_routes(plan: Plan) -> str:
    """Make the ways of the flows to a reserved IPv6, a mark and a table for each load balancer, for `ip -6 -batch`."""
    return "".join(
        f"rule add fwmark {lb.droplet_id} lookup {_FIRST_TABLE + lb.droplet_id}\n"
        f"route add {plan.reserved_ip}/128 via {lb.public_v6} table {_FIRST_TABLE + lb.droplet_id}\n"
        for lb in plan.balancers
    )


def owner_route(plan: Plan, owner: Host | None) -> str | None:
    """Return the route to the owner, as arguments for `ip route replace`; None where there is none to make."""
    if plan.fault is Fault.FABRIC and not plan.is_v6:
        return None
    target = f"{plan.reserved_ip}/{128 if plan.is_v6 else 32}"
    return f"unreachable {target}" if owner is None else f"{target} via {plan.public_of(owner)}"


def _flow_sets(plan: Plan) -> str:
    kind = f"type {'ipv6_addr' if plan.is_v6 else 'ipv4_addr'}"
    size = max(64, 2 * len(plan.peers))
    peers = ", ".join(plan.public_of(peer) for peer in plan.peers)
    flows = "".join(f"  set flow_{lb.name} {{ {kind}; flags dynamic; size {size}; }}\n" for lb in plan.balancers)
    return f"  set peers {{ {kind}; elements = {{ {peers} }}; }}\n{flows}"


def _fabric_v6_tables(plan: Plan) -> str:
    marks = "\n".join(f"    ip6 daddr {plan.reserved_ip} ip6 saddr @flow_{lb.name} meta mark set {lb.droplet_id}" for lb in plan.balancers)
    return f"""\
table bridge lab {{
{_flow_sets(plan)}
  chain learn {{
  }}
  chain pre {{
    type filter hook prerouting priority -300;
    icmpv6 type {{ {_DISCOVERY} }} accept
    ip6 saddr @peers jump learn
{marks}
  }}
}}
table ip6 lab {{
  chain output {{
    type filter hook output priority 0;
    icmpv6 type nd-redirect drop
  }}
}}
"""


def _fabric_tables(plan: Plan) -> str:
    stale = "\n".join(f"    ip daddr {plan.reserved_ip} ip saddr @flow_{lb.name} ip daddr set {lb.anchor} accept" for lb in plan.balancers)
    anchors = ", ".join(lb.anchor for lb in plan.balancers)
    return f"""\
table bridge lab {{
{_flow_sets(plan)}
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
    ip = "ip6" if plan.is_v6 else "ip"
    lines = ["flush chain bridge lab learn"]
    if not plan.is_v6:
        lines += ["flush chain bridge lab own", "flush chain ip lab own"]
    if owner is not None:
        forget = " ".join(f"delete @flow_{lb.name} {{ {ip} saddr }}" for lb in plan.balancers if lb is not owner)
        lines.append(f"add rule bridge lab learn {ip} daddr {plan.public_of(owner)} {forget} add @flow_{owner.name} {{ {ip} saddr }}")
    if owner is not None and not plan.is_v6:
        lines += [
            f"add rule bridge lab own ip daddr set {owner.anchor}",
            f"add rule ip lab own ip daddr set {owner.anchor}",
        ]
    return "".join(f"{line}\n" for line in lines)


def _on_link_tables(plan: Plan) -> str:
    asked = f"ip6 daddr {solicited_node(plan.reserved_ip)}" if plan.is_v6 else _ARP_ASKED.format(plan.reserved_ip)
    return f"""\
table bridge lab {{
  set silent {{ type ifname; }}
  chain forward {{
    type filter hook forward priority 0;
    oifname @silent {asked} drop
  }}
  chain output {{
    type filter hook output priority 0;
    oifname @silent {asked} drop
  }}
}}
"""


def _on_link_owner(plan: Plan, owner: Host | None) -> str:
    silent = ", ".join(f'"{lb.public_link}"' for lb in plan.balancers if lb is not owner)
    return f"flush set bridge lab silent\nadd element bridge lab silent {{ {silent} }}\n"


def cut_rules(ways: Collection[tuple[Host, Host]]) -> str:
    """Cut the private network (VRRP's) in these ways, instead of those before: one nft transaction."""
    drops = "".join(f"    ip saddr {a.private} ip daddr {b.private} drop\n" for a, b in sorted(ways, key=str))
    chain = f"  chain pre {{\n    type filter hook prerouting priority -200;\n{drops}  }}\n"
    return f"add table bridge cut\ndelete table bridge cut\ntable bridge cut {{\n{chain}}}\n"


def solicited_node(address: str) -> str:
    """Return the group to which a multicast NS for an IPv6 address goes (RFC 4291 section 2.7.1)."""
    return str(IPv6Address(int(IPv6Address("ff02::1:ff00:0")) | int(IPv6Address(address)) & 0xFFFFFF))


class Fabric:
    """The fabric of one lab. Every change is one nft transaction, and complete when the method returns."""

    def __init__(self, plan: Plan, runner: Runner) -> None:
        """Keep the plan; nothing is changed yet."""
        self._plan = plan
        self._run = runner

    async def start(self, owner: Host) -> None:
        """Install the rules, with this owner."""
        await self._run("nft", "-f", "-", stdin=initial_rules(self._plan))
        if self._plan.is_v6 and self._plan.fault is Fault.FABRIC:
            await self._run("ip", "-6", "-batch", "-", stdin=flow_routes(self._plan))
        await self.set_owner(owner)

    async def set_owner(self, owner: Host | None) -> None:
        """Route the reserved IP to `owner` (None: nowhere)."""
        await self._run("nft", "-f", "-", stdin=owner_rules(self._plan, owner))
        route = owner_route(self._plan, owner)
        if route is not None:
            await self._run("ip", f"-{self._plan.family}", "route", "replace", *route.split())

    async def cut(self, ways: Collection[tuple[Host, Host]]) -> None:
        """Drop what goes these ways between private addresses, each from the first to the second, and nothing else."""
        await self._run("nft", "-f", "-", stdin=cut_rules(ways))

    async def learned(self, owner: Host) -> int:
        """How many peers' flows lead to this load balancer now (fault fabric)."""
        listing = await self._run("nft", "list", "set", "bridge", "lab", f"flow_{owner.name}")
        words = set(listing.replace(",", " ").split())
        return sum(self._plan.public_of(peer) in words for peer in self._plan.peers)

    async def describe(self) -> str:
        """Show the live rules and flows, for the log."""
        return await self._run("nft", "list", "ruleset")
