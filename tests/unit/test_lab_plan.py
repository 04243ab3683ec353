from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from do_failover.lab import wiring
from do_failover.lab.fabric import initial_rules, owner_rules
from do_failover.lab.options import Fault, Kill, LabOptions, Mode
from do_failover.lab.plan import make_plan

TEST_RANGES = [ip_network(net) for net in ("198.18.0.0/15", "10.0.0.0/8", "192.0.2.0/24", "203.0.113.0/24")]


def test_options_survive_the_way_to_the_lab_process() -> None:
    options = LabOptions(peers=7, fault=Fault.ON_LINK, kill=Kill.NODE, with_tool=False, watch_s=2.5, mode=Mode.KEEP, logs="/tmp/x y")  # noqa: S108
    assert LabOptions.from_json(options.to_json()) == options


@pytest.mark.parametrize("fault", list(Fault))
def test_a_thousand_peers_fit_without_a_clash(fault: Fault) -> None:
    plan = make_plan(LabOptions(peers=1000, fault=fault))
    addresses = [a for host in plan.hosts for a in (host.public, host.private, host.anchor) if a] + [plan.reserved_ip]
    assert len(set(addresses)) == len(addresses)
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
        assert plan.host_at(host.public) is host
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
