"""With peers.probe the key line also opens one port of each address of the list, and no more."""

from __future__ import annotations

from dataclasses import replace

from do_failover.cli.peers_authorize import PROGRAM, Authorization, _find_nits

SOURCES, ALLOWED = ("10.110.0.11",), ("203.0.113.47", "fd00:18::12", "198.18.0.0/24")


def test_the_line_with_and_without_a_probe() -> None:
    command = f'from="10.110.0.11",command="{PROGRAM} --allow {",".join(ALLOWED)}" KEY'
    assert Authorization("u", "KEY", SOURCES, ALLOWED).line == f"restrict,{command}"
    opened = 'permitopen="203.0.113.47:443",permitopen="[fd00:18::12]:443",permitlisten="localhost:1"'
    assert Authorization("u", "KEY", SOURCES, ALLOWED, 443).line == f"restrict,port-forwarding,{opened},{command}"
    assert "port-forwarding" not in Authorization("u", "KEY", SOURCES, ("198.18.0.0/24",), 443).line


def test_what_the_line_can_not_take_away_is_said() -> None:
    given = Authorization("ping", "KEY", ("10.110.0.11", "10.110.0.12"), ALLOWED, 443)
    (nit,) = _find_nits(given, "ping")
    assert "`Match User ping` and `AllowStreamLocalForwarding no`" in nit
    assert list(_find_nits(replace(given, probe_port=None), "ping")) == []
