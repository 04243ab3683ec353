"""The links, addresses, routes and sysctls of every node, as input for `ip -batch` and `sh`. Pure.

The lab process's own network namespace is the fabric: br0 joins everyone's eth0 (public and anchor
addresses), br1 everyone's eth1 (private: VRRP and SSH), and the far client hangs on a link of its own.

The kernel ages neighbour entries here in 1 to 3 s instead of 15 to 45 s, so that watching a control
run for ten seconds sees a stale entry outlive several rounds of the kernel's own probing.

IPv6 is off everywhere but on eth0 and the fabric's ends of it, and there only for a reserved IPv6. Addresses are
static: no router advertisements, no duplicate address detection (it would hold each address back for a second),
no redirects (a router that forwards back into the same link sends them, and a peer that obeyed would skip the fabric).
Both load balancers hold the reserved IPv6 themselves, as DigitalOcean asks: on lo. On the peers' own link it is on eth0,
for Linux answers an NS for an address of the very interface only (measured: one for an address on lo stays
unanswered), and deprecated, so that it is never chosen as source: an NS from it would take the peers back.
"""

from __future__ import annotations

from do_failover.lab import plan as p
from do_failover.lab.options import Fault
from do_failover.lab.plan import Host, Plan, Role

FABRIC_SYSCTLS = (
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/default/send_redirects", "0"),
    ("net/ipv6/conf/default/disable_ipv6", "1"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/bridge/bridge-nf-call-iptables", "0"),
    ("net/bridge/bridge-nf-call-ip6tables", "0"),
    ("net/bridge/bridge-nf-call-arptables", "0"),
)
"""Bridged frames must not visit the router's hooks; the last three exist only where br_netfilter is loaded."""

_NODE_SYSCTLS = (
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv4/conf/all/accept_redirects", "0"),
    ("net/ipv6/conf/default/disable_ipv6", "1"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_redirects", "0"),
    ("net/ipv4/ping_group_range", "0 2147483647"),
)
"""The last is what systemd sets: an unprivileged ping without set-uid."""

_GATEWAY_LLADDR = "02:d0:00:00:00:01"
"""A bridge without an lladdr of its own has its ports' lowest, and changes it when that node dies: then
everybody's entry of the gateway is wrong until the kernel's probes failed (measured: five more seconds of outage)."""

_AGEING = (("base_reachable_time_ms", "2000"), ("delay_first_probe_time", "1"))


def fabric_batch() -> str:
    """Make the two bridges and the fabric's own addresses."""
    return _lines(
        "link set lo up",
        f"link add {p.PUBLIC_BRIDGE} address {_GATEWAY_LLADDR} type bridge mcast_snooping 0",
        f"link add {p.PRIVATE_BRIDGE} type bridge",
        f"addr add {p.PUBLIC_GATEWAY}/{p.PREFIX_LENGTH} dev {p.PUBLIC_BRIDGE}",
        f"addr add {p.ANCHOR_GATEWAY}/{p.PREFIX_LENGTH} dev {p.PUBLIC_BRIDGE}",
        f"addr add {p.API_ADDRESS}/32 dev lo",
        f"addr add {p.METADATA_ADDRESS}/32 dev lo",
        f"link set {p.PUBLIC_BRIDGE} up",
        f"link set {p.PRIVATE_BRIDGE} up",
    )


def fabric_v6_script() -> str:
    """Give the fabric, whose cables are laid, its IPv6 side, for `sh -eu`."""
    enable = "".join(f"echo 0 > /proc/sys/net/ipv6/conf/{link}/disable_ipv6\n" for link in (p.PUBLIC_BRIDGE, p.CLIENT_LINK))
    batch = _lines(
        f"addr add {p.PUBLIC_GATEWAY_V6}/{p.PREFIX_LENGTH_V6} dev {p.PUBLIC_BRIDGE} nodad",
        f"addr add {p.CLIENT_GATEWAY_V6}/{p.PREFIX_LENGTH_V6} dev {p.CLIENT_LINK} nodad",
    )
    return f"echo 1 > /proc/sys/net/ipv6/conf/all/forwarding\n{enable}ip -batch - <<'BATCH'\n{batch}BATCH\n"


def cable_batch(host: Host, pid: int) -> str:
    """Lay the cables of one node, whose init is `pid`, into the fabric."""
    lines = [f"link add {host.public_link} type veth peer name eth0 netns {pid}"]
    if host.role is Role.CLIENT:
        lines += [
            f"addr add {p.CLIENT_GATEWAY}/{p.CLIENT_PREFIX_LENGTH} dev {host.public_link}",
            f"link set {host.public_link} up",
        ]
        return _lines(*lines)
    lines += [
        f"link set {host.public_link} master {p.PUBLIC_BRIDGE} up",
        f"link add {host.private_link} type veth peer name eth1 netns {pid}",
        f"link set {host.private_link} master {p.PRIVATE_BRIDGE} up",
    ]
    return _lines(*lines)


def node_batch(host: Host, plan: Plan) -> str:
    """Give one node its addresses and routes, from inside."""
    if host.role is Role.CLIENT:
        return _lines(
            "link set lo up",
            f"addr add {host.public}/{p.CLIENT_PREFIX_LENGTH} dev eth0",
            "link set eth0 up",
            f"route add default via {p.CLIENT_GATEWAY}",
            *_node_v6_lines(host, plan, p.CLIENT_GATEWAY_V6),
        )
    lines = [
        "link set lo up",
        f"addr add {host.public}/{p.PREFIX_LENGTH} dev eth0",
        "link set eth0 up",
        f"addr add {host.private}/{p.PREFIX_LENGTH} dev eth1",
        "link set eth1 up",
        f"route add default via {p.PUBLIC_GATEWAY} src {host.public}",
        f"route add {p.METADATA_ADDRESS} dev eth0 src {host.public}",
        *_node_v6_lines(host, plan, p.PUBLIC_GATEWAY_V6),
    ]
    if host.role is Role.BALANCER:
        lines += [
            f"addr add {host.anchor}/{p.PREFIX_LENGTH} dev eth0",
            f"rule add from {host.anchor} lookup 17",
            f"route add default via {p.ANCHOR_GATEWAY} dev eth0 table 17",
        ]
        lines += _held_lines(plan)
    return _lines(*lines)


def _node_v6_lines(host: Host, plan: Plan, gateway: str) -> list[str]:
    """Address and default route of eth0 for a reserved IPv6; nothing for an IPv4."""
    if not plan.is_v6:
        return []
    return [
        f"addr add {host.public_v6}/{p.PREFIX_LENGTH_V6} dev eth0 nodad",
        f"route add default via {gateway} dev eth0 src {host.public_v6}",
    ]


def _held_lines(plan: Plan) -> list[str]:
    """How a load balancer holds the reserved IP itself: always an IPv6, an IPv4 only where no anchor IP stands for it."""
    if plan.is_v6:
        is_on_link = plan.fault is Fault.ON_LINK
        return [f"addr add {plan.reserved_ip}/128 dev {'eth0 nodad preferred_lft 0' if is_on_link else 'lo'}"]
    return [f"addr add {plan.reserved_ip}/32 dev lo"] if plan.fault is Fault.ON_LINK else []


def init_script() -> str:
    """Be the first process of a node ($0 its name, $1 its files): private /run, host name, then reap for ever."""
    sysctls = "; ".join(f"echo '{value}' > /proc/sys/{key}" for key, value in _NODE_SYSCTLS)
    return (
        'mount --bind "$1" /run && echo "$0" > /proc/sys/kernel/hostname && '
        f"{{ {sysctls}; }} 2> /run/log/sysctl && : > /run/lab/up\n"
        "sleep infinity & wait"
    )


def node_script(host: Host, plan: Plan) -> str:
    """Everything that a node does to itself once its cables are laid, for `sh -eu`."""
    families = ["ipv4", "ipv6"] if plan.is_v6 else ["ipv4"]
    sysctls = [] if host.role is Role.CLIENT else [(f"net/{ip}/neigh/eth0/{key}", value) for ip in families for key, value in _AGEING]
    if host.role is Role.BALANCER:
        # The old owner answers ARP for the reserved IP but never asks in its name: healing stays healed.
        sysctls.append(("net/ipv4/conf/eth0/arp_announce", "2"))
    writes = "".join(f"echo '{value}' > /proc/sys/{key}\n" for key, value in sysctls)
    enable = "echo 0 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6\n" if plan.is_v6 else ""
    return f"{enable}ip -batch - <<'BATCH'\n{node_batch(host, plan)}BATCH\n{writes}"


def _lines(*lines: str) -> str:
    return "".join(f"{line}\n" for line in lines)
