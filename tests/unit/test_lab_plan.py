from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from do_failover.lab import files, metadata, wiring
from do_failover.lab.fabric import flow_routes, initial_rules, owner_route, owner_rules, solicited_node
from do_failover.lab.options import Family, Fault, Kill, LabOptions, Mode
from do_failover.lab.plan import Plan, make_plan
from do_failover.lab.rehearsal import make_region

TEST_RANGES = [ip_network(net) for net in ("198.18.0.0/15", "10.0.0.0/8", "192.0.2.0/24", "203.0.113.0/24", "2001:db8::/32")]


def plan_v6(fault: Fault, peers: int = 2) -> Plan:
    return make_plan(LabOptions(family=Family.IPV6, fault=fault, peers=peers))


def test_options_survive_the_way_to_the_lab_process() -> None:
    options = LabOptions(
        peers=7,
        family=Family.IPV6,
        fault=Fault.ON_LINK,
        kill=Kill.NODE,
        with_tool=False,
        watch_s=2.5,
        mode=Mode.KEEP,
        logs="/tmp/x y",  # noqa: S108
    )
    arrived = LabOptions.from_json(options.to_json())
    assert arrived == options
    assert isinstance(arrived.family, Family)


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize("fault", list(Fault))
def test_a_thousand_peers_fit_without_a_clash(fault: Fault, family: Family) -> None:
    plan = make_plan(LabOptions(peers=1000, fault=fault, family=family))
    own = [a for host in plan.hosts for a in (host.public, host.public_v6, host.private, host.anchor) if a]
    addresses = [*own, plan.reserved_ip]
    assert len(set(addresses)) == len(addresses)
    assert [str(ip_address(a)) for a in addresses] == addresses
    assert ip_address(plan.reserved_ip).version == family
    assert all(any(ip_address(a) in net for net in TEST_RANGES) for a in addresses)
    assert len({host.droplet_id for host in plan.droplets}) == len(plan.droplets)
    assert all(len(link) <= 15 for host in plan.hosts for link in (host.public_link, host.private_link))


@pytest.mark.parametrize("peers", [0, 1001])
def test_an_impossible_number_of_peers_is_refused(peers: int) -> None:
    with pytest.raises(ValueError, match="1 to 1000"):
        make_plan(LabOptions(peers=peers))


def test_a_caller_is_known_by_any_of_its_addresses() -> None:
    plan = make_plan(LabOptions(peers=2))
    for host in plan.hosts:
        assert plan.host_at(host.public) is plan.host_at(host.public_v6) is host
    assert plan.host_at(plan.reserved_ip) is None
    assert plan.host_at("") is None


def test_only_peers_have_flows_and_only_the_owner_is_learned() -> None:
    plan = make_plan(LabOptions(peers=2))
    lb1, lb2 = plan.balancers
    assert f"elements = {{ {plan.peers[0].public}, {plan.peers[1].public} }}" in initial_rules(plan)
    rules = owner_rules(plan, lb2)
    assert f"ip daddr {lb2.public} delete @flow_lb1 {{ ip saddr }} add @flow_lb2 {{ ip saddr }}" in rules
    assert lb1.public not in rules
    assert "add rule" not in owner_rules(plan, None)


def test_on_link_only_load_balancers_without_the_ip_are_silent() -> None:
    plan = make_plan(LabOptions(fault=Fault.ON_LINK))
    assert '{ "lb1-0" }' in owner_rules(plan, plan.balancers[1])
    assert '{ "lb1-0", "lb2-0" }' in owner_rules(plan, None)


def test_load_balancers_hold_the_reserved_ip_themselves_only_on_link() -> None:
    for fault in Fault:
        plan = make_plan(LabOptions(fault=fault))
        batch = wiring.node_batch(plan.balancers[0], plan)
        assert (f"addr add {plan.reserved_ip}/32 dev lo" in batch) is (fault is Fault.ON_LINK)
        assert plan.reserved_ip not in wiring.node_batch(plan.peers[0], plan)


def test_a_reserved_ipv6_is_held_on_lo_and_where_an_ns_must_be_answered_on_eth0_as_no_source() -> None:
    for fault, where in ((Fault.FABRIC, "dev lo"), (Fault.ON_LINK, "dev eth0 nodad preferred_lft 0")):
        plan = plan_v6(fault)
        for lb in plan.balancers:
            assert f"addr add {plan.reserved_ip}/128 {where}\n" in wiring.node_batch(lb, plan)
        assert plan.reserved_ip not in wiring.node_batch(plan.peers[0], plan)


def test_only_the_on_link_ipv6_is_in_the_peers_own_prefix() -> None:
    for fault in Fault:
        plan = plan_v6(fault)
        own = ip_network(f"{plan.peers[0].public_v6}/64", strict=False)
        assert (ip_address(plan.reserved_ip) in own) is (fault is Fault.ON_LINK)


def test_no_node_has_the_solicited_node_group_that_is_kept_from_silent_load_balancers() -> None:
    plan = plan_v6(Fault.ON_LINK, peers=1000)
    group = solicited_node(plan.reserved_ip)
    assert group == "ff02::1:ffff:47"
    assert group not in {solicited_node(host.public_v6) for host in plan.droplets}
    assert initial_rules(plan).count(f"oifname @silent ip6 daddr {group} drop") == 2
    assert "arp" not in initial_rules(plan)


def test_a_flow_to_a_reserved_ipv6_is_a_mark_learned_from_anything_but_neighbour_discovery() -> None:
    plan = plan_v6(Fault.FABRIC)
    lb1, lb2 = plan.balancers
    rules = initial_rules(plan)
    assert f"elements = {{ {plan.peers[0].public_v6}, {plan.peers[1].public_v6} }}" in rules
    assert rules.index("nd-neighbor-advert") < rules.index("jump learn") < rules.index("meta mark set 1")
    learned = owner_rules(plan, lb2)
    assert f"ip6 daddr {lb2.public_v6} delete @flow_lb1 {{ ip6 saddr }} add @flow_lb2 {{ ip6 saddr }}" in learned
    assert lb1.public_v6 not in learned
    assert f"rule add fwmark 1 lookup 101\nroute add {plan.reserved_ip}/128 via {lb1.public_v6} table 101\n" in flow_routes(plan)


def test_the_owners_route() -> None:
    v4 = make_plan(LabOptions(fault=Fault.FABRIC))
    assert owner_route(v4, v4.balancers[1]) is None
    for fault in Fault:
        plan = plan_v6(fault)
        assert owner_route(plan, plan.balancers[1]) == f"{plan.reserved_ip}/128 via 2001:db8:1::12"
        assert owner_route(plan, None) == f"unreachable {plan.reserved_ip}/128"


def test_the_metadata_tells_an_owner_of_its_reserved_ipv6_and_everyone_of_its_own_address() -> None:
    plan = plan_v6(Fault.FABRIC)
    region = make_region(plan, 1.0)
    for lb, is_owner in zip(plan.balancers, (True, False), strict=True):
        droplet = region.droplets[lb.droplet_id]
        told = metadata.document(droplet, region)
        assert told["interfaces"]["public"][0]["ipv6"] == {"ip_address": lb.public_v6, "cidr": 64, "gateway": "2001:db8:1::1"}
        assert told["reserved_ip"]["ipv4"] == told["floating_ip"]["ipv4"] == {"active": False}
        assert metadata.answer("/metadata/v1/reserved_ip/ipv6/active", droplet, region) == str(is_owner).lower()
        address = metadata.answer("/metadata/v1/reserved_ip/ipv6/ip_address", droplet, region)
        assert address == (plan.reserved_ip if is_owner else None)
        assert metadata.answer("/metadata/v1/interfaces/public/0/ipv6/address", droplet, region) == lb.public_v6


def test_a_lab_of_a_reserved_ipv4_knows_no_ipv6() -> None:
    plan = make_plan(LabOptions())
    region = make_region(plan, 1.0)
    assert all("ipv6" not in metadata.document(d, region)["interfaces"]["public"][0] for d in region.droplets.values())
    assert all(":" not in wiring.node_batch(host, plan) for host in plan.hosts)
    assert "disable_ipv6" not in wiring.node_script(plan.balancers[0], plan)
    assert "bind *:80" in files.haproxy_cfg(plan.balancers[0], plan)
    assert "bind :::80 v4v6" in files.haproxy_cfg(plan.balancers[0], plan_v6(Fault.FABRIC))


def test_the_gateways_lladdr_does_not_die_with_a_node() -> None:
    (line,) = [line for line in wiring.fabric_batch().splitlines() if line.startswith("link add br0")]
    assert " address 02:" in line
