"""Who is refreshed: the list, the tag, and who is left out and why."""

from __future__ import annotations

import socket
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from do_failover.config import Config, Router, parse_config
from do_failover.discovery import Discovery, locate_discovery, save_discovery
from do_failover.fanout import FoundPeers, find_peers, is_own_address, merge_peers
from do_failover.model import Droplet, Identity, Peer
from do_failover.peerlist import parse_peers

if TYPE_CHECKING:
    from pathlib import Path

AT = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
RESERVED = "203.0.113.47"
ME = Identity(droplet_id=2, region="nyc3", hostname="lb2", public_address="198.18.0.12")


def make_droplet(number: int, **more: object) -> Droplet:
    whole = Droplet(number, f"web{number}", "nyc3", (f"198.18.1.{number}",), (f"10.110.1.{number}",), (f"2001:db8::{number}",), "active")
    return replace(whole, **more)


def merge(text: str, *droplets: Droplet, me: Identity | None = ME, routers: tuple[Router, ...] = (), own: str = "") -> FoundPeers:
    found = Discovery("web", AT.isoformat(), droplets, 2, "nyc3", "lb2")
    return merge_peers(parse_peers(text, "f"), found, me=me, routers=routers, reserved={RESERVED}, is_own=lambda address: address == own)


def test_a_tagged_droplet_is_reached_by_its_private_address_and_known_by_its_public_ones() -> None:
    found = merge("", make_droplet(5))
    assert found.peers == (Peer(0, "10.110.1.5", None, 22, 5, "web5", ("198.18.1.5", "2001:db8::5")),)
    assert found.sources == ("tag web",)
    assert (found.skipped, found.nits) == ((), ())


@pytest.mark.parametrize("address", ["10.110.1.5", "198.18.1.5", "2001:DB8:0::5"])
def test_a_listed_address_of_a_tagged_droplet_is_that_droplet(address: str) -> None:
    found = merge(
        f"app1\ndeploy@[{address}]:2222\n" if ":" in address else f"app1\ndeploy@{address}:2222\n", make_droplet(5), make_droplet(6)
    )
    assert [(peer.number, peer.host, peer.user, peer.port, peer.droplet_id) for peer in found.peers] == [
        (0, "app1", None, 22, None),
        (1, address, "deploy", 2222, 5),
        (2, "10.110.1.6", None, 22, 6),
    ]
    assert found.peers[1].public_addresses[0] == "198.18.1.5"
    assert found.sources == ("file f:1", "file f:2, tag web", "tag web")


def test_two_listed_addresses_of_one_droplet_are_one_peer_unless_their_ports_differ() -> None:
    found = merge("10.110.1.5\n198.18.1.5\n198.18.1.5:2222\n", make_droplet(5))
    assert [(peer.number, peer.host, peer.port) for peer in found.peers] == [(0, "10.110.1.5", 22), (1, "198.18.1.5", 2222)]
    assert found.nits == ("file f:2: 198.18.1.5 is listed twice: it is Droplet 5 (web5), as 10.110.1.5 is",)


def test_without_a_private_address_the_public_one_and_without_any_it_is_skipped() -> None:
    found = merge(
        "", make_droplet(5, private_addresses=()), make_droplet(6, private_addresses=(), public_addresses=()), bare := make_bare(7)
    )
    assert [peer.host for peer in found.peers] == ["198.18.1.5", "2001:db8::6"]
    assert [(skip.host, skip.reason) for skip in found.skipped] == [
        (bare.name, "Droplet 7 (web7) has no address that it could be reached at")
    ]


def make_bare(number: int) -> Droplet:
    return make_droplet(number, private_addresses=(), public_addresses=(), public_addresses_v6=())


@pytest.mark.parametrize(
    ("droplet", "me", "own", "reason"),
    [
        (make_droplet(2), ME, "", "Droplet 2 (web2) is this very Droplet"),
        (make_droplet(9, public_addresses=("198.18.0.12",)), ME, "", "Droplet 9 (web9) is this very Droplet"),
        (make_droplet(9), Identity(), "10.110.1.9", "Droplet 9 (web9) is this very Droplet"),
        (make_droplet(9, region="sfo3"), ME, "", "Droplet 9 (web9) is in sfo3, this Droplet in nyc3"),
        (make_droplet(9, status="off"), ME, "", f"Droplet 9 (web9) was off when the API was asked ({AT.isoformat()})"),
        (make_droplet(1), ME, "", "Droplet 1 (web1) is the other load balancer (failover.routers)"),
        (make_droplet(9, private_addresses=("10.110.0.11",)), ME, "", "Droplet 9 (web9) is the other load balancer (failover.routers)"),
    ],
)
def test_a_tagged_droplet_that_is_skipped(droplet: Droplet, me: Identity, own: str, reason: str) -> None:
    found = merge("", droplet, make_droplet(5), me=me, own=own, routers=(Router(1, "10.110.0.11"), Router(2, "10.110.0.12")))
    assert [(peer.number, peer.droplet_id) for peer in found.peers] == [(0, 5)]
    assert [(skip.host, skip.reason) for skip in found.skipped] == [(droplet.private_addresses[0], reason)]


def test_a_listed_host_is_meant_even_when_it_is_off_or_the_other_load_balancer() -> None:
    off, router = make_droplet(5, status="off"), make_droplet(1)
    found = merge("10.110.1.5\n10.110.1.1\n", off, router, routers=(Router(1, "10.110.0.11"),))
    assert [peer.droplet_id for peer in found.peers] == [5, 1]
    assert found.skipped == ()


def test_a_listed_host_that_is_known_to_be_elsewhere_is_skipped_and_named_once() -> None:
    found = merge("198.18.1.5\n", make_droplet(5, region="sfo3"))
    assert found.peers == ()
    assert [(skip.host, skip.reason) for skip in found.skipped] == [("198.18.1.5", "Droplet 5 (web5) is in sfo3, this Droplet in nyc3")]


@pytest.mark.parametrize("host", ["198.18.0.12", "lb2", "LB2", "10.110.1.2", "172.16.0.9"])
def test_this_very_droplet_is_skipped_however_it_is_listed(host: str) -> None:
    found = merge(f"{host}\napp1\n", make_droplet(2), own="172.16.0.9")
    assert [(peer.number, peer.host) for peer in found.peers] == [(0, "app1")]
    assert found.skipped[0].host == host
    assert "this very Droplet" in found.skipped[0].reason


def test_names_that_are_not_this_droplets() -> None:
    me = replace(ME, hostname="lb2.example.com")
    found = merge("lb2\nlb2.example.com\nlb2.example.org\nlocalhost\n", me=me)
    assert [peer.host for peer in found.peers] == ["lb2.example.org", "localhost"]


def test_localhost_may_be_a_tunnel_whatever_this_machine_calls_itself() -> None:
    found = merge("localhost:2222\n", me=replace(ME, hostname="localhost"))
    assert [peer.host for peer in found.peers] == ["localhost"]


def test_of_an_unknown_region_everybody_is_a_peer() -> None:
    found = merge("", make_droplet(5, region="sfo3"), make_droplet(6, region=None), me=None)
    assert [peer.droplet_id for peer in found.peers] == [5, 6]


def test_a_reserved_ip_is_nobodys_own_address() -> None:
    owner = make_droplet(5, private_addresses=(), public_addresses=(RESERVED, "198.18.1.5"))
    found = merge(f"{RESERVED}\n", owner)
    assert [(peer.host, peer.droplet_id) for peer in found.peers] == [(RESERVED, None), ("198.18.1.5", 5)]
    assert RESERVED not in found.peers[1].public_addresses


def test_without_a_discovery_the_list_is_all() -> None:
    found = merge_peers(parse_peers("app[1-2]\n", "f"), None, me=None, routers=())
    assert [peer.host for peer in found.peers] == ["app1", "app2"]
    assert found.sources == ("file f:1", "file f:1")


def test_no_more_peers_than_a_witness_pattern_can_number() -> None:
    text = "".join(f"r{number}-[1-5000]\n" for number in range(13)) + "s[1-535]\n"
    found = merge(text, make_droplet(5), make_droplet(6))
    assert (len(found.peers), len(found.sources)) == (65536, 65536)
    assert [peer.number for peer in found.peers] == list(range(65536))
    assert "there are 65537 peers" in found.nits[-1]


# What a failover does: everything from the disk.


def make_config(tmp_path: Path, **peers: object) -> Config:
    failover = [{"reserved_ip": RESERVED, "instance": "VI_1"}]
    return parse_config({"failover": failover, "peers": peers, "paths": {"history_dir": f"{tmp_path}/history"}}, "config.toml")


def keep(config: Config, *droplets: Droplet, tag: str = "web", **more: object) -> None:
    found = Discovery(tag, AT.isoformat(), droplets, 2, "nyc3", socket.gethostname())
    save_discovery(locate_discovery(config), replace(found, **more))


def find(config: Config, age: timedelta = timedelta(0), **more: object) -> FoundPeers:
    return find_peers(config, now=AT + age, **more)


def test_all_sources_together(tmp_path: Path) -> None:
    (tmp_path / "peers").write_text("app[1-2]\n")
    config = make_config(tmp_path, file=f"{tmp_path}/peers", hosts=["10.110.1.5", "app3"], tag="web")
    keep(config, make_droplet(2), make_droplet(5), make_droplet(6), make_droplet(7, region="sfo3"))
    found = find(config)
    assert list(zip((peer.host for peer in found.peers), found.sources, strict=True)) == [
        ("app1", f"file {tmp_path}/peers:1"),
        ("app2", f"file {tmp_path}/peers:1"),
        ("10.110.1.5", "hosts[0], tag web"),
        ("app3", "hosts[1]"),
        ("10.110.1.6", "tag web"),
    ]
    assert [skip.host for skip in found.skipped] == ["10.110.1.2", "10.110.1.7"]
    assert found.nits == ()


def test_a_tag_that_was_never_asked_for_is_a_nit_that_says_what_to_run(tmp_path: Path) -> None:
    config = make_config(tmp_path, hosts=["app1"], tag="web")
    found = find(config)
    assert [peer.host for peer in found.peers] == ["app1"]
    (nit,) = found.nits
    assert "tag web are not known yet" in nit
    assert "do-failover peers --refresh" in nit
    keep(config, make_droplet(5), tag="db")
    (nit,) = find(config).nits
    assert "(those of tag db are)" in nit


def test_without_a_tag_a_kept_discovery_is_not_used(tmp_path: Path) -> None:
    config = make_config(tmp_path, hosts=["app1"])
    keep(config, make_droplet(5))
    assert [peer.host for peer in find(config).peers] == ["app1"]


@pytest.mark.parametrize("tag", ["", "a b"])
def test_a_tag_that_is_none_is_a_nit(tmp_path: Path, tag: str) -> None:
    config = make_config(tmp_path, hosts=["app1"], tag=tag)
    keep(config, make_droplet(5), tag=tag)
    found = find(config)
    assert [peer.host for peer in found.peers] == ["app1"]
    assert "is not a Droplet tag" in found.nits[0]


def test_a_kept_discovery_that_is_garbage_is_a_nit(tmp_path: Path) -> None:
    config = make_config(tmp_path, hosts=["app1"], tag="web")
    locate_discovery(config).write_text("{")
    found = find(config)
    assert [peer.host for peer in found.peers] == ["app1"]
    assert "can't be used" in found.nits[0]


def test_an_old_or_empty_discovery_is_used_and_said(tmp_path: Path) -> None:
    config = make_config(tmp_path, tag="web")
    keep(config, make_droplet(5))
    assert find(config, timedelta(hours=23)).nits == ()
    old = find(config, timedelta(hours=25))
    assert [peer.droplet_id for peer in old.peers] == [5]
    assert "were last asked for at 2026-03-01T12:00:00+00:00" in old.nits[0]
    keep(config)
    nits = find(config).nits
    assert "no Droplet carried the tag web" in nits[0]
    assert "the fan-out list is empty" in nits[1]


def test_who_this_is_when_another_machine_made_the_kept_discovery(tmp_path: Path) -> None:
    config = make_config(tmp_path, tag="web")
    keep(config, make_droplet(2), make_droplet(7, region="sfo3"), hostname="the-original")
    found = find(config)
    assert [peer.droplet_id for peer in found.peers] == [2, 7], "a copy believes nothing about itself"
    assert "the region of this Droplet isn't known" in found.nits[0]
    known = find(config, me=Identity(droplet_id=9, region="sfo3"))
    assert [peer.droplet_id for peer in known.peers] == [7]
    assert known.nits == ()


def test_the_configuration_says_who_this_is_before_the_kept_discovery(tmp_path: Path) -> None:
    config = make_config(tmp_path, tag="web")
    config = replace(config, digitalocean=replace(config.digitalocean, droplet_id=5, region="sfo3"))
    keep(config, make_droplet(5, region="sfo3"), make_droplet(2, region="sfo3"), make_droplet(6))
    assert [peer.droplet_id for peer in find(config).peers] == [2]


def test_a_discovery_in_the_hand_counts_before_the_kept_one(tmp_path: Path) -> None:
    config = make_config(tmp_path, tag="web")
    keep(config, make_droplet(5))
    fresh = Discovery("web", AT.isoformat(), (make_droplet(6),), 2, "nyc3", socket.gethostname())
    assert [peer.droplet_id for peer in find(config, fresh=fresh).peers] == [6]


@pytest.mark.parametrize(("name", "reason"), [("none", "No such file"), (".", "not a file"), ("binary", "not text")])
def test_a_list_that_cannot_be_read_is_a_nit(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    found = find(make_config(tmp_path, file=f"{tmp_path}/{name}", hosts=["app1"]))
    assert [peer.host for peer in found.peers] == ["app1"]
    assert reason in found.nits[0]


def test_which_addresses_are_this_machines() -> None:
    assert not any(
        map(is_own_address, ("127.0.0.1", "::1", "192.0.2.1", "2001:db8::1", "app1", "", "300.1.1.1", "fe80::1%nosuch", "0.0.0.0"))
    )


@pytest.mark.root
def test_an_address_of_an_interface_is_this_machines(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "from do_failover.fanout import is_own_address as own; "
        "print(*map(own, ('10.110.0.12', '10.110.0.13', '2001:db8::12', '2001:db8::13')))"
    )
    script = f"""set -e
ip link set lo up; ip link add e0 type veth peer name e1; ip link set e0 up; ip link set e1 up
ip address add 10.110.0.12/24 dev e0; ip address add 2001:db8::12/64 dev e0 nodad
exec {sys.executable} -c "{code}" """
    done = subprocess.run(["unshare", "--net", "sh", "-c", script], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("True False True False\n", "")
