"""What peers run, run for real: by dash with iputils, and by BusyBox, on this machine's loopback."""

from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING

import pytest

from do_failover import echo, refresh
from do_failover.model import Peer

if TYPE_CHECKING:
    from pathlib import Path

HERE, NOBODY = "127.0.0.1", "127.0.0.77"
PATTERN = echo.format_pattern(echo.build_pattern(b"12345678", 3))
pytestmark = [pytest.mark.root, pytest.mark.skipif(not shutil.which("busybox"), reason="scripts/test installs busybox")]


class LocalShell:
    """Runs a peer's command here, by a given shell and PATH."""

    def __init__(self, *shell: str, path: str) -> None:
        self.shell, self.path = shell, path

    async def run(self, peer: Peer, command: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *self.shell, "-c", command, env={"PATH": self.path}, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        out, _ = await process.communicate()
        return out.decode()


@pytest.fixture
def dash() -> LocalShell:
    return LocalShell("/bin/sh", path="/usr/sbin:/usr/bin:/sbin:/bin")


@pytest.fixture
def busybox(tmp_path: Path) -> LocalShell:
    program = shutil.which("busybox")
    assert program is not None
    for applet in ("ping", "ip", "sh", "echo"):
        (tmp_path / applet).symlink_to(program)
    return LocalShell(str(tmp_path / "sh"), path=str(tmp_path))


async def test_iputils_carries_the_pattern(dash: LocalShell) -> None:
    echoes = await refresh.refresh_peer(dash, Peer(3, "here"), HERE, HERE, pattern=PATTERN)
    assert echoes == refresh.Echoes(public_answered=True, reserved_answered=True, is_marked=True)


async def test_busybox_pings_without_it(busybox: LocalShell) -> None:
    echoes = await refresh.refresh_peer(busybox, Peer(3, "here"), HERE, HERE, pattern=PATTERN)
    assert echoes == refresh.Echoes(public_answered=True, reserved_answered=True, is_marked=False)


@pytest.mark.parametrize("name", ["dash", "busybox"])
async def test_routes_and_neighbours_are_read_from_both(name: str, request: pytest.FixtureRequest) -> None:
    shell = request.getfixturevalue(name)
    view = await refresh.look_at_peer(shell, Peer(0, "here"), HERE, NOBODY)
    assert view.route_to_public is not None
    assert (view.route_to_public.is_local, view.route_to_public.device) == (True, "lo")
    assert view.route_to_reserved is not None
    assert view.route_to_reserved.address == NOBODY
    assert await refresh.read_neighbour(shell, Peer(0, "here"), "127.0.0.1") is None


@pytest.mark.parametrize("bad", ["$(id)", "1.2.3.4; id", "app1", "", "1.2.3.4\nid"])
def test_only_addresses_and_hex_get_into_a_command(bad: str) -> None:
    for make in (
        lambda: refresh.make_look_command(bad or "x", HERE),
        lambda: refresh.make_refresh_command(None, bad, PATTERN),
        lambda: refresh.make_neighbour_command(bad),
        lambda: refresh.make_refresh_command(None, HERE, bad or "zz"),
    ):
        with pytest.raises(ValueError, match="."):
            make()
