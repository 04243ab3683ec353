"""The links, addresses, routes and sysctls of every node, as input for `ip -batch` and `sh`. Pure.

The lab process's own network namespace is the fabric: br0 joins everyone's eth0 (public and anchor
addresses), br1 everyone's eth1 (private: VRRP and SSH), and the far client hangs on a link of its own.

The kernel ages neighbour entries here in 1 to 3 s instead of 15 to 45 s, so that watching a control
run for ten seconds sees a stale entry outlive several rounds of the kernel's own probing.
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
    ("net/bridge/bridge-nf-call-iptables", "0"),
    ("net/bridge/bridge-nf-call-arptables", "0"),
)
"""Bridged frames must not visit the router's hooks; the last two exist only where br_netfilter is loaded."""

_NODE_SYSCTLS = (
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv4/conf/all/accept_redirects", "0"),
    ("net/ipv6/conf/default/disable_ipv6", "1"),
    ("net/ipv4/ping_group_range", "0 2147483647"),
)
"""The last is what systemd sets: an unprivileged ping without set-uid."""

_AGEING_SYSCTLS = (
    ("net/ipv4/neigh/eth0/base_reachable_time_ms", "2000"),
    ("net/ipv4/neigh/eth0/delay_first_probe_time", "1"),
)


def fabric_batch() -> str:
    """Make the two bridges and the fabric's own addresses."""
    return _lines(
        "link set lo up",
        f"link add {p.PUBLIC_BRIDGE} type bridge",
        f"link add {p.PRIVATE_BRIDGE} type bridge",
        f"addr add {p.PUBLIC_GATEWAY}/{p.PREFIX_LENGTH} dev {p.PUBLIC_BRIDGE}",
        f"addr add {p.ANCHOR_GATEWAY}/{p.PREFIX_LENGTH} dev {p.PUBLIC_BRIDGE}",
        f"addr add {p.API_ADDRESS}/32 dev lo",
        f"addr add {p.METADATA_ADDRESS}/32 dev lo",
        f"link set {p.PUBLIC_BRIDGE} up",
        f"link set {p.PRIVATE_BRIDGE} up",
    )


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
        )
    lines = [
        "link set lo up",
        f"addr add {host.public}/{p.PREFIX_LENGTH} dev eth0",
        "link set eth0 up",
        f"addr add {host.private}/{p.PREFIX_LENGTH} dev eth1",
        "link set eth1 up",
        f"route add default via {p.PUBLIC_GATEWAY} src {host.public}",
        f"route add {p.METADATA_ADDRESS} dev eth0 src {host.public}",
    ]
    if host.role is Role.BALANCER:
        lines += [
            f"addr add {host.anchor}/{p.PREFIX_LENGTH} dev eth0",
            f"rule add from {host.anchor} lookup 17",
            f"route add default via {p.ANCHOR_GATEWAY} dev eth0 table 17",
        ]
        if plan.fault is Fault.ON_LINK:
            lines.append(f"addr add {plan.reserved_ip}/32 dev lo")
    return _lines(*lines)


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
    sysctls = [] if host.role is Role.CLIENT else list(_AGEING_SYSCTLS)
    if host.role is Role.BALANCER:
        # The old owner answers ARP for the reserved IP but never asks in its name: healing stays healed.
        sysctls.append(("net/ipv4/conf/eth0/arp_announce", "2"))
    writes = "".join(f"echo '{value}' > /proc/sys/{key}\n" for key, value in sysctls)
    return f"ip -batch - <<'BATCH'\n{node_batch(host, plan)}BATCH\n{writes}"


def _lines(*lines: str) -> str:
    return "".join(f"{line}\n" for line in lines)
