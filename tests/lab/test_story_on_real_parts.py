"""The commands of the on-call engineer, in a lab that stands: real API over TLS, real sshd, real ARP, real packets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import asyncssh
import pytest

from do_failover.lab.handle import LabHandle, standing_lab
from do_failover.lab.options import Fault, LabOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.root

COMMAND = (sys.executable, "-m", "do_failover", "-c", "/run/lab/config.toml")


@dataclass
class Ended:
    code: int
    report: dict[str, Any]

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        return {row["host"]: row for row in self.report["peers"]}

    @property
    def outcomes(self) -> set[str]:
        return {row["outcome"] for row in self.report["peers"]}


async def do(lab: LabHandle, node: str, *arguments: str, through: tuple[str, ...] = ()) -> Ended:
    """Run `do-failover ... -o json` in a node."""
    argv = await lab.enter(node, *through, *COMMAND, *arguments, "-o", "json")
    process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    out, err = await process.communicate()
    assert process.returncode is not None
    assert out, err.decode()
    return Ended(process.returncode, json.loads(out))


async def droplet_of(lab: LabHandle, node: str) -> int:
    text = await lab.run(
        node, sys.executable, "-c", "import urllib.request as u; print(u.urlopen('http://169.254.169.254/metadata/v1/id').read().decode())"
    )
    return int(text)


def all_answered_by(node: str) -> Any:
    return lambda state: set(state.answers.values()) == {node}


async def test_an_answered_ping_is_no_proof() -> None:
    async with standing_lab(LabOptions(peers=3, action_time_s=0.2)) as lab:
        moved = await do(lab, "lb2", "assign", "--no-refresh")
        assert (moved.code, moved.outcomes) == (0, {"skipped"})
        state = await lab.wait_for(lambda s: s.answers["client"] == "lb2", "the far client follows the owner")
        assert {state.answers[f"app{n}"] for n in (1, 2, 3)} == {"lb1"}  # lb1 is alive: it serves, and answers pings
        await lab.run("app1", "ping", "-c", "1", "-W", "2", state.reserved_ip)

        announced = await do(lab, "lb2", "announce")
        assert announced.code == 0
        looked = await do(lab, "lb2", "verify")
        assert (looked.code, looked.outcomes) == (10, {"stale"})
        assert all("the old owner answers" in row["error"] and not row["witnessed"] for row in looked.report["peers"])

        refreshed = await do(lab, "lb2", "refresh")
        assert (refreshed.code, refreshed.outcomes) == (0, {"healed"})
        again = await do(lab, "lb2", "verify")
        assert (again.code, again.outcomes) == (0, {"healed"})
        await lab.wait_for(all_answered_by("lb2"), "everybody reaches lb2")

        for step in ("announce", "refresh", "verify"):
            refused = await do(lab, "lb1", step)
            assert (refused.code, refused.report["error"]["kind"]) == (7, "not_owner")


async def test_on_the_link_the_announcement_heals_and_peers_acknowledge() -> None:
    async with standing_lab(LabOptions(peers=3, fault=Fault.ON_LINK, action_time_s=0.2)) as lab:
        moved = await do(lab, "lb2", "assign")
        assert (moved.code, moved.outcomes) == (0, {"healed"})
        for row in moved.report["peers"]:
            assert row["on_link"] is True
            assert row["acknowledged"] is True
            assert row["neighbour"]["address"] == (await lab.state()).reserved_ip
        link = json.loads(await lab.run("lb2", "ip", "-j", "link", "show", "dev", "eth0"))[0]["address"]
        assert {row["neighbour"]["lladdr"] for row in moved.report["peers"]} == {link}
        await lab.wait_for(all_answered_by("lb2"), "everybody reaches lb2")

        # A permanent entry of the old owner ignores everything: it is reported, not healed.
        old = json.loads(await lab.run("lb1", "ip", "-j", "link", "show", "dev", "eth0"))[0]["address"]
        reserved_ip = (await lab.state()).reserved_ip
        await lab.run("app2", "ip", "neigh", "replace", reserved_ip, "lladdr", old, "dev", "eth0", "nud", "permanent")
        stuck = await do(lab, "lb2", "refresh")
        assert (stuck.code, stuck.rows["app2"]["outcome"], stuck.rows["app1"]["outcome"]) == (10, "stale", "healed")
        assert "permanent" in stuck.rows["app2"]["error"]


async def test_each_bad_peer_is_a_row_and_harms_no_other() -> None:
    async with standing_lab(LabOptions(peers=6, action_time_s=0.5)) as lab:
        await lab.stop("app1", "sshd")
        (lab.files("app2") / "lab/authorized_keys").write_text("")
        known = lab.files("lb2") / "lab/known_hosts"
        other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode().strip()
        lines = [f"{line.split()[0]} {other}" if line.startswith("app3,") else line for line in known.read_text().splitlines()]
        known.write_text("\n".join(line for line in lines if not line.startswith("app4,")) + "\n")
        async with mute(lab, "app5"):
            ended = await do(lab, "lb2", "assign")
        rows = ended.rows
        assert (ended.code, ended.report["outcome"], ended.report["owner_after"]) == (10, "partial", await droplet_of(lab, "lb2"))
        assert {host: row["outcome"] for host, row in rows.items()} == {
            "app1": "unreachable",
            "app2": "refused",
            "app3": "refused",
            "app4": "refused",
            "app5": "unreachable",
            "app6": "healed",
        }
        assert rows["app6"]["duration_s"] < rows["app5"]["duration_s"]
        assert all(row["error"] for host, row in rows.items() if host != "app6")
        (warning,) = ended.report["warnings"]
        assert warning.startswith("VRRP says that INSTANCE VI_1 is BACKUP on this node")


@contextlib.asynccontextmanager
async def mute(lab: LabHandle, node: str) -> AsyncIterator[None]:
    """A peer that accepts TCP and never speaks."""
    await lab.stop(node, "sshd")
    code = "import socket, sys; s = socket.create_server(('0.0.0.0', 22)); print('up', flush=True); sys.stdin.read()"
    argv = await lab.enter(node, sys.executable, "-c", code)
    process = await asyncio.create_subprocess_exec(*argv, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    assert await process.stdout.readline() == b"up\n"
    try:
        yield
    finally:
        await process.communicate(b"")  # the end of its input ends it


async def test_keepalived_restarted_while_the_action_runs() -> None:
    async with standing_lab(LabOptions(peers=3, action_time_s=3.0)) as lab:
        before = len(await lab.reports("lb2"))
        await lab.kill("lb1", "haproxy")
        await lab.wait_for(lambda s: any(r["method"] == "POST" and r["node"] == "lb2" for r in s.requests), "lb2 did not POST")
        await lab.restart("lb2", "keepalived")
        state = await lab.wait_for(all_answered_by("lb2"), "everybody reaches lb2", limit_s=40)
        assert state.owner == "lb2"
        reports: list[dict[str, Any]] = []
        async with asyncio.timeout(20):
            while not reports or reports[-1]["outcome"] != "done":
                reports = (await lab.reports("lb2"))[before:]
        first, last = reports[0], reports[-1]
        assert first["outcome"] == "superseded"
        assert first["owner_after"] == await droplet_of(lab, "lb2")  # the POST was followed to its end
        assert last["decision"] == "already_owner"
        assert {row["outcome"] for row in last["peers"]} == {"healed"}
        posts = [r for r in (await lab.state()).requests if r["method"] == "POST" and r["node"] == "lb2"]
        assert len(posts) == 1


async def test_cap_net_raw_is_all_that_is_needed_and_without_it_the_peers_are_refreshed_all_the_same() -> None:
    async with standing_lab(LabOptions(peers=2, action_time_s=0.2)) as lab:
        bare = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
        poor = await do(lab, "lb2", "assign", through=bare)
        assert (poor.code, poor.outcomes) == (10, {"unproven"})
        assert any("CAP_NET_RAW" in warning for warning in poor.report["warnings"])
        await lab.wait_for(all_answered_by("lb2"), "the peers were refreshed")
        refused = await do(lab, "lb2", "verify", through=bare)
        assert (refused.code, refused.report["error"]["kind"]) == (4, "capability")
        raw = ("setpriv", "--bounding-set=-all,+net_raw", "--inh-caps=-all")
        enough = await do(lab, "lb2", "refresh", through=raw)
        assert (enough.code, enough.outcomes) == (0, {"healed"})


async def test_the_token_is_in_no_file_log_or_process_list() -> None:
    async with standing_lab(LabOptions(peers=2, action_time_s=2.0)) as lab:
        token = (await lab.state()).token.encode()
        await lab.kill("lb1", "haproxy")
        await lab.wait_for(lambda s: any(r["method"] == "POST" and r["node"] == "lb2" for r in s.requests), "lb2 did not POST")
        listed = await lab.run("lb2", "sh", "-c", "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n'")
        assert "do_failover" in listed
        assert token.decode() not in listed
        await lab.wait_for(all_answered_by("lb2"), "everybody reaches lb2")
        for node in ("lb1", "lb2"):
            files = [path for path in lab.files(node).rglob("*") if path.is_file() and path.name != "token"]
            assert any("log" in str(path) for path in files)
            for path in files:
                assert token not in path.read_bytes(), path


async def test_icmp_filtered_on_the_load_balancer_hides_nothing_from_the_witness() -> None:
    async with standing_lab(LabOptions(peers=2, action_time_s=0.2)) as lab:
        rules = "table ip t { chain c { type filter hook input priority 0; icmp type echo-request drop; }; }"
        await lab.run("lb2", "nft", "-f", "-", stdin=rules)
        ended = await do(lab, "lb2", "assign")
        assert (ended.code, ended.outcomes) == (0, {"healed"})
