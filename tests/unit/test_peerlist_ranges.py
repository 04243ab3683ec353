"""Host ranges, as ClusterShell's nodeset writes and reads them (the expectations were compared with ClusterShell 1.9)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from do_failover.model import Peer
from do_failover.peerlist import MOST_EXPANSIONS, expand_ranges, parse_peers


@pytest.mark.parametrize(
    ("entry", "hosts"),
    [
        ("app1", ["app1"]),
        ("app[1-3]", ["app1", "app2", "app3"]),
        ("app[08-11]", ["app08", "app09", "app10", "app11"]),
        ("app[098-101]", ["app098", "app099", "app100", "app101"]),
        ("app[9-11]", ["app9", "app10", "app11"]),
        ("app[00-02]", ["app00", "app01", "app02"]),
        ("app[007]", ["app007"]),
        ("app[1-3,7]-db[1-2]", [f"app{app}-db{db}" for app in (1, 2, 3, 7) for db in (1, 2)]),
        ("10.0.0.[1-20/6]", ["10.0.0.1", "10.0.0.7", "10.0.0.13", "10.0.0.19"]),
        ("web[1-2].internal", ["web1.internal", "web2.internal"]),
        ("app[ 1 , 3 ]", ["app1", "app3"]),
        ("[2001:db8::1]:22", ["[2001:db8::1]:22"]),
    ],
)
def test_what_a_range_means(entry: str, hosts: list[str]) -> None:
    assert expand_ranges(entry) == hosts


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("app[]", "is not a number or a range"),
        ("app[1,]", "is not a number or a range"),
        ("app[1-]", "is not a number or a range"),
        ("app[b-c]", "is not a number or a range"),
        ("app[1--2]", "is not a number or a range"),
        ("app[1-3/]", "is not a number or a range"),
        ("app[1234567890]", "is not a number or a range"),
        ("app[5-3]", "is empty"),
        ("app[1-3/0]", "is empty"),
        ("app[001-10]", "to different lengths"),
        ("app[1-09]", "to different lengths"),
        ("app[1-2", "brackets don't match"),
        ("app1-2]", "brackets don't match"),
        ("app[[1-2]]", "brackets don't match"),
        ("app[1-2][3-4]", "side by side"),
        (f"app[1-{MOST_EXPANSIONS + 1}]", "5001 hosts, and 5000 is the most"),
        ("app[1-100]-[1-51]", "5100 hosts"),
        ("[0-999999999]x[0-999999999]y[0-999999999]", "is the most"),
    ],
)
def test_a_malformed_range_is_a_nit_for_its_line_and_the_others_count(entry: str, reason: str) -> None:
    found = parse_peers(f"app-a\n{entry}\napp-z\n", "/etc/peers")
    assert [peer.host for peer in found.peers] == ["app-a", "app-z"]
    (nit,) = found.nits
    assert nit.startswith("/etc/peers:2: ")
    assert reason in nit


def test_the_most_that_a_range_may_mean() -> None:
    found = parse_peers(f"app[1-{MOST_EXPANSIONS}]", "f")
    assert (len(found.peers), found.nits) == (MOST_EXPANSIONS, ())


def test_a_list_holds_as_many_peers_as_a_witness_pattern_can_number() -> None:
    found = parse_peers("".join(f"r{number}-[1-5000]\n" for number in range(15)), "f")
    assert len(found.peers) == 65536
    assert [nit[:5] for nit in found.nits] == ["f:14:", "f:15:"]
    assert all("more than 65536 peers" in nit for nit in found.nits)


def test_user_and_port_are_those_of_every_host_of_a_range() -> None:
    found = parse_peers("deploy@app[1-2].internal:2222  # the web tier\n", "f")
    assert found.peers == (Peer(0, "app1.internal", "deploy", 2222), Peer(1, "app2.internal", "deploy", 2222))


def test_several_entries_on_one_line_and_inline() -> None:
    found = parse_peers("app[1-2,4], db1\n", "f", ["[2001:db8::1]:22,cache[1-2]"])
    assert [peer.host for peer in found.peers] == ["app1", "app2", "app4", "db1", "2001:db8::1", "cache1", "cache2"]
    assert found.sources == ("file f:1",) * 4 + ("hosts[0]",) * 3
    assert parse_peers("app1,,app2", "f").nits == ("f:1: '' is not [user@]host[:port]; it is ignored",)


def test_hosts_that_are_listed_twice_by_ranges_are_one_nit_a_line() -> None:
    found = parse_peers("app[1-4]\napp[3-9]\n2001:db8::5\n[2001:DB8:0::5]\nAPP1\n", "f")
    assert len(found.peers) == 10
    assert found.nits == (
        "f:2: app3 (and 1 more of 2) is listed twice",
        "f:4: 2001:DB8:0::5 is listed twice",
        "f:5: APP1 is listed twice",
    )


def test_what_looks_like_an_address_has_to_be_one() -> None:
    found = parse_peers("10.0.0.[254-257]\n1:2:3\n[2001:db8::g]\n10.0.0.1\n", "f")
    assert [peer.host for peer in found.peers] == ["10.0.0.254", "10.0.0.255", "10.0.0.1"]
    assert found.nits[0] == "f:1: '10.0.0.256' (and 1 more of 2) is not [user@]host[:port]; it is ignored"
    assert [nit[:3] for nit in found.nits] == ["f:1", "f:2", "f:3"]


@given(st.text("ap[]-,/019:@ ", max_size=40))
def test_no_range_raises_or_explodes(text: str) -> None:
    found = parse_peers(text, "f")
    assert len(found.peers) <= 20 * MOST_EXPANSIONS
    assert not any("[" in peer.host or "," in peer.host for peer in found.peers)
