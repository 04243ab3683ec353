"""`preflight` and `status` as commands, beside the loopback region."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests import cli_process
from tests.daemon_process import configure, running
from tests.loopback import IP, TOKEN, serve


async def test_preflight_finds_what_would_fail_and_keeps_the_token_to_itself(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        config = configure(region, peers="127.0.0.1:1\n", interface="eth-none")
        config.write_text(config.read_text().replace("[peers]\n", '[peers]\nprobe = "tcp:443"\n'))
        region.region.droplets[2] = replace(region.region.droplets[2], anchor="192.0.2.6", anchor_gateway="192.0.2.1")
        ended = await cli_process.run(region, "preflight", "-c", str(config), "-o", "json")
        checks = {check["name"]: check for check in ended.json()["checks"]}
        assert ended.code == ended.json()["exit_code"] == 6
        assert checks[f"API {IP}"]["result"] == "good"
        assert checks["interface eth-none"]["result"] == "bad"
        assert checks["peer 127.0.0.1"]["result"] == "bad"
        assert checks["daemon"]["result"] == "warn"
        assert checks["logins"]["result"] == "good"
        assert "192.0.2.6, where peers' connections arrive, is not an address of this Droplet" in checks["probe tcp:443"]["sentence"]
        assert TOKEN not in ended.out + ended.err
        assert not [call for call in region.calls() if not call.startswith("GET")]
        shown = await cli_process.run(region, "preflight", "-c", str(config), "--no-peers")
        assert shown.out.startswith("NOT READY")
        assert "peer 127.0.0.1" not in shown.out


async def test_status_tells_owner_claim_and_odds_with_and_without_a_daemon(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        config = configure(region, peers="127.0.0.1:1\n")
        alone = await cli_process.run(region, "status", "-c", str(config))
        assert alone.code == 7
        assert "no daemon runs here" in alone.out
        assert not (tmp_path / "run").exists(), "looking makes nothing"
        async with running(region) as daemon:
            daemon.say(b'INSTANCE "VI_1" MASTER 150\n')
            await daemon.wait_for_report()
            owner = await cli_process.run(region, "status", "-c", str(config))
            assert owner.code == 0, owner.out
            assert "owner: this Droplet  VRRP VI_1: MASTER" in owner.out
            assert "0 of 1 are armed" in owner.out
            region.region.reserved_ips[IP].droplet_id = 1
            odds = await cli_process.run(region, "status", "-c", str(config), "-o", "json")
            assert odds.code == 7
            assert "VRRP says MASTER here, and the API names Droplet 1" in odds.json()["failovers"][0]["at_odds"]
            peers = await cli_process.run(region, "peers", "-c", str(config), "-o", "json")
            assert "known_hosts" in peers.json()["peers"][0]["armed"], "why it is not armed"
