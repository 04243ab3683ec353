"""Every address and name of a lab, worked out from its options. Pure.

Public addresses come from 198.18.0.0/15 (RFC 2544, benchmarks), the reserved IP and the far client from
the documentation nets (RFC 5737), all IPv6 addresses from 2001:db8::/32 (RFC 3849), so that nothing here can be
mistaken for a real host. Anchor addresses are DigitalOcean's 10.17.0.0/16; IPv6 has none.

Every host has its IPv4 addresses in either family: VRRP, SSH, the API and the metadata service stay on them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address

from do_failover.lab.options import MAX_PEERS, Family, Fault, LabOptions

PUBLIC_GATEWAY = "198.18.0.1"
ANCHOR_GATEWAY = "10.17.0.1"
PREFIX_LENGTH = 16
NETMASK = "255.255.0.0"
CLIENT_GATEWAY = "192.0.2.1"
CLIENT_PREFIX_LENGTH = 25
PUBLIC_GATEWAY_V6 = "2001:db8:1::1"
CLIENT_GATEWAY_V6 = "2001:db8:2::1"
PREFIX_LENGTH_V6 = 64
API_ADDRESS = "192.0.2.129"
API_URL = f"https://{API_ADDRESS}/v2/"
METADATA_ADDRESS = "169.254.169.254"
METADATA_URL = f"http://{METADATA_ADDRESS}/metadata/v1"
REGION = "nyc3"
PUBLIC_BRIDGE = "br0"
PRIVATE_BRIDGE = "br1"
CLIENT_LINK = "far0"
INSTANCE = "VI_1"

_RESERVED_IP = {
    (Family.IPV4, Fault.FABRIC): "203.0.113.47",
    (Family.IPV4, Fault.ON_LINK): "198.18.255.47",
    (Family.IPV6, Fault.FABRIC): "2001:db8:f::47",
    (Family.IPV6, Fault.ON_LINK): "2001:db8:1::ff:47",
}
_FIRST_PEER_DROPLET = 1001


class Role(StrEnum):
    """What a node is in the rehearsal region."""

    BALANCER = "balancer"
    PEER = "peer"
    CLIENT = "client"


@dataclass(frozen=True, slots=True)
class Host:
    """One node: its name, its Droplet id, and its addresses. The far client is no Droplet of this region."""

    name: str
    role: Role
    public: str
    public_v6: str
    private: str = ""
    anchor: str = ""
    droplet_id: int = 0
    priority: int = 0

    @property
    def public_link(self) -> str:
        """Name of the fabric's end of the node's eth0."""
        return CLIENT_LINK if self.role is Role.CLIENT else f"{self.name}-0"

    @property
    def private_link(self) -> str:
        """Name of the fabric's end of the node's eth1."""
        return f"{self.name}-1"


@dataclass(frozen=True, slots=True)
class Plan:
    """The whole region. `hosts` is in a fixed order: load balancers, peers, client."""

    family: Family
    fault: Fault
    reserved_ip: str
    balancers: tuple[Host, Host]
    peers: tuple[Host, ...]
    client: Host

    @property
    def hosts(self) -> tuple[Host, ...]:
        """Every node."""
        return (*self.balancers, *self.peers, self.client)

    @property
    def is_v6(self) -> bool:
        """Whether the reserved IP is an IPv6 address, and the nodes' eth0 speak IPv6."""
        return self.family is Family.IPV6

    @property
    def droplets(self) -> tuple[Host, ...]:
        """Every node that the API knows."""
        return (*self.balancers, *self.peers)

    @property
    def sources(self) -> tuple[Host, ...]:
        """Who asks the reserved IP all along: the far client, then the peers."""
        return (self.client, *self.peers)

    def host(self, name: str) -> Host:
        """Find a node by its name. KeyError names the one that does not exist."""
        for host in self.hosts:
            if host.name == name:
                return host
        raise KeyError(name)

    def host_at(self, address: str) -> Host | None:
        """Find a node by one of its own addresses: that is how the metadata service knows its caller."""
        return next((h for h in self.hosts if address and address in {h.public, h.public_v6, h.private, h.anchor}), None)

    def public_of(self, host: Host) -> str:
        """Return the host's public eth0 address of the reserved IP's family: what its fabric learns from."""
        return host.public_v6 if self.is_v6 else host.public

    def balancer_of(self, droplet_id: int | None) -> Host | None:
        """Find the load balancer that is this Droplet; None for a peer's Droplet, or for no Droplet."""
        return next((h for h in self.balancers if h.droplet_id == droplet_id), None)


def make_plan(options: LabOptions) -> Plan:
    """Lay out the region for these options. ValueError when there are too many peers, or fewer than one."""
    if not 1 <= options.peers <= MAX_PEERS:
        message = f"a lab has 1 to {MAX_PEERS} peers, not {options.peers}"
        raise ValueError(message)
    return Plan(
        family=options.family,
        fault=options.fault,
        reserved_ip=_RESERVED_IP[options.family, options.fault],
        balancers=(_balancer(1, priority=150), _balancer(2, priority=100)),
        peers=tuple(_peer(number) for number in range(1, options.peers + 1)),
        client=Host("client", Role.CLIENT, public="192.0.2.2", public_v6="2001:db8:2::2"),
    )


def _balancer(number: int, *, priority: int) -> Host:
    return Host(
        f"lb{number}",
        Role.BALANCER,
        public=f"198.18.0.{10 + number}",
        public_v6=f"2001:db8:1::{10 + number}",
        private=f"10.110.0.{10 + number}",
        anchor=f"10.17.0.{4 + number}",
        droplet_id=number,
        priority=priority,
    )


def _peer(number: int) -> Host:
    return Host(
        f"app{number}",
        Role.PEER,
        public=str(IPv4Address("198.18.1.0") + number),
        public_v6=str(IPv6Address("2001:db8:1::1:0") + number),
        private=str(IPv4Address("10.110.1.0") + number),
        droplet_id=_FIRST_PEER_DROPLET + number - 1,
    )
