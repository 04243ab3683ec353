"""What `ip` prints on a peer: samples of the real programs, and everything that a hostile peer may print."""

from __future__ import annotations

import ipaddress
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from do_failover import neigh
from do_failover.model import Neighbour

# Printed by `ip` of iproute2 6.1.0 and BusyBox 1.35.0 in a namespace.
NEIGH_JSON = """[{"dst":"198.18.0.54","dev":"v0","lladdr":"02:00:00:00:00:54","extern_learn":null,"state":["STALE"]},
{"dst":"198.18.0.9","dev":"v0","state":["INCOMPLETE"]},
{"dst":"198.18.0.2","dev":"v0","lladdr":"c2:21:bc:ae:12:f4","refcnt":1,"used":2,"probes":4,"state":["REACHABLE"]},
{"dst":"fd00:18::53","dev":"v0","lladdr":"02:00:00:00:00:53","router":null,"state":["STALE"]}]"""
NEIGH_PLAIN = """198.18.0.54 dev v0 lladdr 02:00:00:00:00:54 extern_learn STALE \n198.18.0.9 dev v0 INCOMPLETE
198.18.0.2 dev v0 lladdr c2:21:bc:ae:12:f4 REACHABLE \nfd00:18::53 dev v0 lladdr 02:00:00:00:00:53 router STALE \n"""
NEIGH_STATISTICS = """198.18.0.54 dev v0 lladdr 02:00:00:00:00:54 extern_learn  used 0/60/0probes 0 STALE
198.18.0.9 dev v0  ref 1 used 2/62/2probes 5 INCOMPLETE
198.18.0.2 dev v0 lladdr c2:21:bc:ae:12:f4  ref 1 used 2/2/2probes 4 REACHABLE
fd00:18::53 dev v0 lladdr 02:00:00:00:00:53 router  used 0/60/0probes 0 STALE"""
NEIGH_BUSYBOX = """198.18.0.54 dev v0 lladdr 02:00:00:00:00:54 used 0/0/0 probes 0 STALE
198.18.0.9 dev v0  ref 1 used 0/0/0 probes 6 INCOMPLETE
198.18.0.2 dev v0 lladdr c2:21:bc:ae:12:f4 ref 1 used 0/0/0 probes 4 REACHABLE
fd00:18::53 dev v0 lladdr 02:00:00:00:00:53 router used 0/0/0 probes 0 STALE"""
NEIGHBOURS = (
    Neighbour("198.18.0.54", "02:00:00:00:00:54", "STALE"),
    Neighbour("198.18.0.9", None, "INCOMPLETE"),
    Neighbour("198.18.0.2", "c2:21:bc:ae:12:f4", "REACHABLE"),
    Neighbour("fd00:18::53", "02:00:00:00:00:53", "STALE"),
)


@pytest.mark.parametrize("text", [NEIGH_JSON, NEIGH_PLAIN, NEIGH_STATISTICS, NEIGH_BUSYBOX])
def test_each_ip_says_the_same_neighbours(text: str) -> None:
    assert neigh.parse_neighbours(text) == NEIGHBOURS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        ("\n", ()),
        ("[]", ()),
        ("[{}]", ()),
        ("198.18.0.2 lladdr C2:21:bc:ae:12:F4 REACHABLE", (Neighbour("198.18.0.2", "c2:21:bc:ae:12:f4", "REACHABLE"),)),
        ("198.18.0.52 dev v0 proxy", (Neighbour("198.18.0.52", None, None),)),
        ('[{"dst":"198.18.0.52","dev":"v0","proxy":null}]', (Neighbour("198.18.0.52", None, None),)),
        (
            "198.18.0.2 dev STALE lladdr 02:00:00:00:00:01 PERMANENT proto static",
            (Neighbour("198.18.0.2", "02:00:00:00:00:01", "PERMANENT"),),
        ),
        ("fd00:0018:0::0053 dev v0 FAILED", (Neighbour("fd00:18::53", None, "FAILED"),)),
        ("198.18.0.2 dev tun0 lladdr 10.0.0.1 NOARP", ()),
        ('[{"dst":"198.18.0.2","dev":"tun0","lladdr":"10.0.0.1","state":["NOARP"]}]', ()),
        (
            "198.18.0.2 dev ib0 lladdr " + ":".join(["80"] * 20) + " STALE",
            (Neighbour("198.18.0.2", ":".join(["80"] * 20), "STALE"),),
        ),
    ],
)
def test_corners_of_neighbours(text: str, expected: tuple[Neighbour, ...]) -> None:
    assert neigh.parse_neighbours(text) == expected


HOSTILE = [
    "Permission denied",
    "198.18.0.1 is on fire",
    "198.18.0.300 dev v0 STALE",
    "198.18.0.1 dev v0 lladdr zz:00:00:00:00:01 STALE",
    "198.18.0.1 dev v0 lladdr 02:00:00:00:01 STALE",
    "198.18.0.1 dev v0 lladdr",
    "fe80::1%\x1b[31m dev v0 STALE",
    "\x1b]0;owned\x07 dev v0 STALE",
    "{}",
    "[1]",
    "[[]]",
    "[",
    "[" * 200_000,
    '[{"dst":' * 100_000,
    "[" + "9" * 10_000 + "]",
    '[{"dst":7,"state":["STALE"]}]',
    '[{"state":["STALE"]}]',
    '[{"dst":"198.18.0.1","state":"STALE"}]',
    '[{"dst":"198.18.0.1","state":["ON\\u001bFIRE"]}]',
    '[{"dst":"198.18.0.1","state":[["STALE"]]}]',
    '[{"dst":"198.18.0.1","lladdr":["02:00:00:00:00:01"],"state":["STALE"]}]',
    '[{"dst":"198.18.0.1","lladdr":"","state":["STALE"]}]',
    '[{"dst":"198.18.0.1","lladdr":"02:00:00:00:00:01\\n","state":["STALE"]}]',
    '[{"dst":"198.18.0.1\\u0000","state":["STALE"]}]',
    '[{"dst":true,"dev":{},"gateway":[]}]',
    "x" * ((1 << 20) + 1),
    "198.18.0.1 dev v0 lladdr 02:00:00:00:00:01 STALE\n" * 30_000,
]


def check_refusal(refusal: ValueError) -> None:
    """A refusal is one short sentence that no terminal obeys."""
    text = str(refusal)
    assert text.isascii()
    assert text.isprintable()
    assert 0 < len(text) < 200


def check_address(address: str) -> None:
    """An address is one, in canonical form and without a zone."""
    assert str(ipaddress.ip_address(address)) == address
    assert "%" not in address


def check_route(text: str) -> None:
    """The text is a sound route or refused."""
    try:
        route = neigh.parse_route(text)
    except ValueError as refusal:
        check_refusal(refusal)
        return
    check_address(route.address)
    assert route.device is None or re.fullmatch(r"[!-~]{1,15}", route.device)
    assert not (route.is_on_link and (route.is_local or route.device is None))
    if route.source is not None:
        check_address(route.source)


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:30]))
def test_hostile_output_is_refused_in_short_printable_words(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as refusal:
        neigh.parse_neighbours(text)
    check_refusal(refusal.value)
    check_route(text)


LOCAL = neigh.Route("198.18.0.1", is_on_link=False, device="lo", source="198.18.0.1", is_local=True)
ON_LINK = neigh.Route("198.18.0.2", is_on_link=True, device="v0", source="198.18.0.1", is_local=False)
ROUTED = neigh.Route("8.8.8.8", is_on_link=False, device="v0", source="198.18.0.1", is_local=False)
ON_LINK6 = neigh.Route("fd00:18::2", is_on_link=True, device="v0", source="fd00:18::1", is_local=False)
ROUTED6 = neigh.Route("2001:db8::1", is_on_link=False, device="v0", source="fd00:18::1", is_local=False)
BROADCAST = neigh.Route("198.18.0.255", is_on_link=False, device="v0", source="198.18.0.1", is_local=False)
VIA6 = neigh.Route("203.0.113.3", is_on_link=False, device="v0", source="198.18.0.1", is_local=False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[{"dst":"198.18.0.2","dev":"v0","prefsrc":"198.18.0.1","flags":[],"uid":0,"cache":[]}]', ON_LINK),
        ("198.18.0.2 dev v0 src 198.18.0.1 uid 0 \n    cache \n", ON_LINK),
        ("198.18.0.2 dev v0  src 198.18.0.1 \n", ON_LINK),
        ("unicast 198.18.0.2 dev v0 table main src 198.18.0.1 uid 0 \n    cache", ON_LINK),
        (
            '[{"type":"unicast","dst":"198.18.0.2","dev":"v0","table":"main","prefsrc":"198.18.0.1","flags":[]}]',
            ON_LINK,
        ),
        ('[{"type":"local","dst":"198.18.0.1","dev":"lo","prefsrc":"198.18.0.1","cache":["local"]}]', LOCAL),
        ("local 198.18.0.1 dev lo src 198.18.0.1 uid 0 \n    cache <local> \n", LOCAL),
        ("local 198.18.0.1 dev lo  src 198.18.0.1 \n", LOCAL),
        ('[{"dst":"8.8.8.8","gateway":"198.18.0.2","dev":"v0","prefsrc":"198.18.0.1","flags":[],"uid":0}]', ROUTED),
        ("8.8.8.8 via 198.18.0.2 dev v0 src 198.18.0.1 uid 0 \n    cache \n", ROUTED),
        ("8.8.8.8 via 198.18.0.2 dev v0 src 198.18.0.1 uid 0 \\    cache \n", ROUTED),
        ("8.8.8.8 via 198.18.0.2 dev v0  src 198.18.0.1 \n", ROUTED),
        (
            '[{"dst":"fd00:18::2","from":"::","dev":"v0","protocol":"kernel","prefsrc":"fd00:18::1","metric":256}]',
            ON_LINK6,
        ),
        ("fd00:18::2 from :: dev v0 proto kernel src fd00:18::1 metric 256 pref medium\n", ON_LINK6),
        ("fd00:18::2 from :: dev v0  src fd00:18::1  metric 256 \n", ON_LINK6),
        ('[{"dst":"2001:db8::1","from":"::","gateway":"fe80::1","dev":"v0","prefsrc":"fd00:18::1"}]', ROUTED6),
        ("2001:db8::1 from :: via fe80::1 dev v0 src fd00:18::1 metric 1024 pref medium\n", ROUTED6),
        ('[{"dst":"203.0.113.3","via":{"family":"inet6","host":"fe80::1"},"dev":"v0","prefsrc":"198.18.0.1"}]', VIA6),
        ("203.0.113.3 via inet6 fe80::1 dev v0 src 198.18.0.1 uid 0 \n    cache", VIA6),
        ('[{"type":"broadcast","dst":"198.18.0.255","dev":"v0","prefsrc":"198.18.0.1"}]', BROADCAST),
        ("broadcast 198.18.0.255 dev v0 src 198.18.0.1 uid 0 \n    cache <local,brd>", BROADCAST),
        (
            "unreachable 2001:db8::9 from :: dev lo metric 4294967295 error 4294967183",
            neigh.Route("2001:db8::9", is_on_link=False, device="lo", source=None, is_local=False),
        ),
        (
            "blackhole 203.0.113.1",
            neigh.Route("203.0.113.1", is_on_link=False, device=None, source=None, is_local=False),
        ),
    ],
)
def test_each_ip_says_the_same_route(text: str, expected: neigh.Route) -> None:
    assert neigh.parse_route(text) == expected


@pytest.mark.parametrize("text", ["", "  \n", "[]", "[{}]"])
def test_no_output_is_no_route(text: str) -> None:
    with pytest.raises(ValueError, match="no route"):
        neigh.parse_route(text)


@pytest.mark.parametrize(
    "text",
    [
        "198.18.0.2 src 198.18.0.1",
        "local",
        "via 198.18.0.2 dev v0",
        "198.18.0.2 dev v0 src",
        "198.18.0.2 dev",
        "198.18.0.2 dev a/b",
        "198.18.0.2 dev sixteen_letters_",
        "198.18.0.2 dev v0 src nowhere",
        '[{"dst":"198.18.0.2","dev":"v\\u001b0"}]',
        '[{"dst":"198.18.0.2","dev":7}]',
        '[{"dst":"198.18.0.2","dev":"v0"},{"dst":"198.18.0.2","dev":"v0"}]',
        '[{"dst":"198.18.0.2","dev":"v0","type":"scenic"}]',
        '[{"dst":"198.18.0.2","dev":"v0","type":[]}]',
        '[{"dst":"198.18.0.2"}]',
    ],
)
def test_what_is_no_route_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as refusal:
        neigh.parse_route(text)
    check_refusal(refusal.value)


words = st.sampled_from(
    [
        "dev",
        "lladdr",
        "via",
        "src",
        "from",
        "STALE",
        "FAILED",
        "proxy",
        "local",
        "unicast",
        "v0",
        "198.18.0.1",
        "fe80::1",
        "fe80::1%\x1b",
        "02:00:00:00:00:01",
        "02:00:00:00:00:0\uff11",
        "10.0.0.1",
        "\x1b[2J",
        "\n",
        "\x85",
        "\u2028",
        "\\",
        "[",
        "\ud800",
    ]
)
lines = st.lists(words | st.text(max_size=8), max_size=12).map(" ".join)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | words | st.text(max_size=20)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3))
keys = st.sampled_from(["dst", "dev", "lladdr", "state", "type", "gateway", "via", "prefsrc", "nexthops"])
objects = st.lists(st.dictionaries(keys, values, max_size=8) | values, max_size=3).map(json.dumps)


@given(text=lines | objects | st.text() | st.tuples(objects, lines).map("".join))
def test_whatever_a_peer_prints_the_result_is_sound_or_a_valueerror(text: str) -> None:
    try:
        for entry in neigh.parse_neighbours(text):
            check_address(entry.address)
            assert entry.lladdr is None or re.fullmatch(r"[0-9a-f]{2}(:[0-9a-f]{2}){5,19}", entry.lladdr)
            assert entry.nud is None or entry.nud in {
                "INCOMPLETE",
                "REACHABLE",
                "STALE",
                "DELAY",
                "PROBE",
                "FAILED",
                "NOARP",
                "PERMANENT",
                "NONE",
            }
    except ValueError as refusal:
        check_refusal(refusal)
    check_route(text)


addresses = st.ip_addresses().map(str)
lladdrs = st.binary(min_size=6, max_size=6).map(lambda octets: octets.hex(":"))
states = st.sampled_from(["REACHABLE", "STALE", "DELAY", "PROBE", "PERMANENT"])


@given(entries=st.lists(st.tuples(addresses, lladdrs, states)))
def test_every_sound_entry_is_read_in_either_form(entries: list[tuple[str, str, str]]) -> None:
    expected = tuple(Neighbour(*entry) for entry in entries)
    objects: list[dict[str, Any]] = [{"dst": a, "dev": "eth0", "lladdr": m, "state": [s]} for a, m, s in entries]
    assert neigh.parse_neighbours(json.dumps(objects)) == expected
    plain = "\n".join(f"{address} dev eth0 lladdr {lladdr} {state} " for address, lladdr, state in entries)
    assert neigh.parse_neighbours(plain) == expected
