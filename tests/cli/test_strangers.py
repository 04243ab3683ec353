"""What somebody else on this machine, or an answer from outside, can't do: the claims of docs/security.md that no other test has."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from do_failover.daemon.local_socket import LocalSocket
from tests.cli.test_odd_world import answering, change, say
from tests.cli_process import run
from tests.daemon_process import configure, running
from tests.loopback import serve

if TYPE_CHECKING:
    from do_failover.model import FailoverReport

NOBODY = 65534
ASK = """
import socket, sys
with socket.socket(socket.AF_UNIX) as client:
    client.connect(sys.argv[1])
    client.settimeout(10)
    try:
        client.sendall(b'{"op":"status"}\\n{"op":"order","reserved_ip":"203.0.113.47","steps":["assign"]}\\n')
        print(client.recv(1000).decode())
    except ConnectionError:
        print("")
"""


@pytest.mark.root
async def test_another_user_is_not_heard_even_where_the_sockets_mode_lets_him_in() -> None:
    asked: list[str] = []

    def show() -> dict[str, Any]:
        asked.append("status")
        return {"pid": 1}

    async def obey(*order: object) -> FailoverReport:
        asked.append("order")
        raise AssertionError

    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        door = LocalSocket(Path(directory) / "socket", {0}, obey=obey, show=show)
        await door.open()
        try:
            assert stat.S_IMODE((Path(directory) / "socket").stat().st_mode) == 0o660
            (Path(directory) / "socket").chmod(0o666)
            said = {}
            for user in (NOBODY, 0):
                argv = ["/usr/bin/python3", "-c", ASK, f"{directory}/socket"]
                client = await asyncio.create_subprocess_exec(*argv, user=user, group=user, extra_groups=[], stdout=subprocess.PIPE)
                said[user] = (await client.communicate())[0].decode().strip()
                if user == NOBODY:
                    assert asked == []
        finally:
            await door.close()
    assert "status" not in said[NOBODY]
    assert '"pid":1' in said[0]
    assert asked[0] == "status"


async def test_nothing_that_the_daemon_and_its_failover_leave_is_for_others(tmp_path: Path) -> None:
    os.umask(0)
    async with serve(tmp_path) as region:
        configure(region, peers="127.0.0.1:1\n")
        async with running(region) as daemon:
            daemon.say(b'INSTANCE "VI_1" MASTER 150\n')
            await daemon.wait_for_report()
            left = [path for place in ("run", "history") for path in (tmp_path / place, *(tmp_path / place).rglob("*"))]
            modes = {str(path.relative_to(tmp_path)): stat.S_IMODE(path.lstat().st_mode) for path in left}
    assert [mode for name, mode in modes.items() if name in {"run", "history"}] == [0o750, 0o750]
    assert len(modes) > 4
    assert {name: oct(mode) for name, mode in modes.items() if mode & 0o007} == {}


async def test_a_metadata_answer_can_not_turn_the_ip_to_another_droplet_where_this_one_is_configured(tmp_path: Path) -> None:
    lie = json.dumps({"droplet_id": 1, "region": "ams3", "interfaces": {"public": [{"ipv4": {"ip_address": "8.8.8.8"}}]}}).encode()
    async with serve(tmp_path) as region:
        with answering(say(b"HTTP/1.1 200 OK\r\n\r\n" + lie)) as url:
            config = change(region.write_config(digitalocean='droplet_id = 2\nregion = "nyc3"'), region.metadata_url, url)
            ended = await run(region, "assign", "-c", config, "-o", "json")
    assert (ended.code, ended.json()["droplet_id"], ended.json()["owner_after"]) == (0, 2, 2)
