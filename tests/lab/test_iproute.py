"""Asking the kernel by the real `ip`, in a namespace."""

from __future__ import annotations

import asyncio
import os
from ipaddress import IPv4Address, IPv6Address, ip_interface
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from two_hosts import Link, open_link, until

from do_failover import iproute, neigh
from do_failover.errors import MissingProgramError, PermanentError, TemporaryError

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def link() -> Iterator[Link]:
    with open_link() as made:
        made.ours.ip("route", "add", "default", "via", str(made.peer.address))
        yield made


async def test_routes_are_read_as_the_kernel_has_them(link: Link) -> None:
    with link.ours.inside():
        peers = neigh.parse_route(await iproute.read_route(link.peer.address))
        peers6 = neigh.parse_route(await iproute.read_route(link.peer.address6))
        own = neigh.parse_route(await iproute.read_route(link.ours.address))
        far = neigh.parse_route(await iproute.read_route(IPv4Address("203.0.113.9")))
    source, source6 = str(link.ours.address), str(link.ours.address6)
    assert peers == neigh.Route(str(link.peer.address), is_on_link=True, device="eth0", source=source, is_local=False)
    assert peers6 == neigh.Route(str(link.peer.address6), is_on_link=True, device="eth0", source=source6, is_local=False)
    assert own == neigh.Route(source, is_on_link=False, device="lo", source=source, is_local=True)
    assert far == neigh.Route("203.0.113.9", is_on_link=False, device="eth0", source=source, is_local=False)


async def test_plain_output_says_the_same(link: Link) -> None:
    for address in (link.peer.address, link.peer.address6, link.ours.address, link.ours.address6, "203.0.113.9"):
        plain = neigh.parse_route(link.ours.ip("route", "get", str(address)))
        assert plain == neigh.parse_route(link.ours.ip("-j", "route", "get", str(address)))
    link.ours.reaches(link.peer.address)
    found = neigh.parse_neighbours(link.ours.ip("-j", "neigh", "show"))
    until(lambda: neigh.parse_neighbours(link.ours.ip("neigh", "show")) == neigh.parse_neighbours(link.ours.ip("-j", "neigh")), "same")
    assert str(link.peer.address) in [entry.address for entry in found]


async def test_addresses_have_their_prefix_lengths(link: Link) -> None:
    with link.ours.inside():
        found = await iproute.read_addresses("eth0")
        assert await iproute.read_addresses("lo") == (ip_interface("127.0.0.1/8"), ip_interface("::1/128"))
    assert found[:2] == (ip_interface("198.18.0.10/24"), ip_interface("fd00:18::a/64"))


async def test_what_the_kernel_refuses_is_named(link: Link) -> None:
    with link.ours.inside():
        with pytest.raises(PermanentError, match=r"unreachable.*by hand") as no_route:
            await iproute.read_route(IPv6Address("2001:db8::1"))
        with pytest.raises(PermanentError, match=r"eth7") as no_interface:
            await iproute.read_addresses("eth7")
    assert (no_route.value.kind, no_interface.value.kind) == ("no_route", "no_interface")


def put_ip(place: Path, script: str) -> None:
    """Write another `ip` program."""
    program = place / "ip"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


@pytest.mark.parametrize("text", ["no json", "{}x", "[1]", '[{"addr_info":[{"local":"x","prefixlen":1}]}]', '[{"addr_info":[{}]}]', "7"])
async def test_another_ip_program_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    put_ip(tmp_path, f"echo '{text}'")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(PermanentError, match=r"iproute2 4\.16") as refusal:
        await iproute.read_addresses("eth0")
    assert refusal.value.kind == "ip_output"


def read_pid(place: Path) -> int | None:
    """Return what the other `ip` wrote, once it has."""
    written = (place / "pid").read_text() if (place / "pid").exists() else ""
    return int(written) if written.endswith("\n") else None


def is_running(pid: int | None) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_an_ip_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_ip(tmp_path, f"echo $$ > {tmp_path}/pid; exec sleep 3600")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    asking = asyncio.create_task(iproute.read_route(IPv4Address("203.0.113.9")))
    await asyncio.to_thread(until, lambda: read_pid(tmp_path) is not None, "the program runs")
    first = read_pid(tmp_path)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert not is_running(first)
    with pytest.raises(TemporaryError, match="did not end within") as late:
        await iproute.read_route(IPv4Address("203.0.113.9"), timeout_s=0.5)
    assert read_pid(tmp_path) != first
    assert not is_running(read_pid(tmp_path))
    assert late.value.kind == "timeout"


async def test_without_ip_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(iproute, "_MORE_PLACES", str(tmp_path))
    with pytest.raises(MissingProgramError, match="iproute2"):
        await iproute.read_route(IPv4Address("203.0.113.9"))


async def test_a_path_without_sbin_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert neigh.parse_route(await iproute.read_route(IPv4Address("127.0.0.1"))).is_local
