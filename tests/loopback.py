"""A DigitalOcean region on loopback: the lab's own API and metadata service, without namespaces."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from do_failover.lab import api, metadata
from do_failover.lab.region import Droplet, Region, ReservedIp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

IP, TOKEN = "203.0.113.47", "dop_v1_canary_0123456789abcdef"


@dataclass
class Loopback:
    """Where it is, and what a configuration for Droplet 2 looks like."""

    api: api.ApiServer
    metadata_url: str
    directory: Path
    region: Region

    @property
    def config(self) -> Path:
        return self.directory / "config.toml"

    def calls(self) -> list[str]:
        return [f"{request.method} {request.path} {request.status}" for request in self.api.requests]

    def write_config(self, **more: str) -> Path:
        token = self.directory / "token"
        token.write_text(TOKEN + "\n")
        token.chmod(0o600)
        (self.directory / "peers").write_text(more.get("peers", ""))
        self.config.write_text(f"""
[digitalocean]
token_file = "{token}"
api_url = "{more.get("api_url", self.api.url)}"
metadata_url = "{self.metadata_url}"
ca_file = "{self.api.ca_file}"
{more.get("digitalocean", "")}
[[failover]]
reserved_ip = "{IP}"
instance = "VI_1"
interface = "{more.get("interface", "lo")}"
deadline_s = {more.get("deadline_s", "10")}
[peers]
file = "{self.directory}/peers"
known_hosts = "{self.directory}/known_hosts"
connect_timeout_s = 1
[paths]
run_dir = "{self.directory}/run"
history_dir = "{self.directory}/history"
{more.get("rest", "")}
""")
        return self.config

    def command(self, *arguments: str) -> tuple[str, ...]:
        return (sys.executable, "-m", "do_failover", *arguments)

    @staticmethod
    def environment() -> dict[str, str]:
        return {key: value for key, value in os.environ.items() if not key.startswith(("DO_FAILOVER", "DIGITALOCEAN"))}


@contextlib.asynccontextmanager
async def serve(directory: Path, *, action_time_s: float = 0.3) -> AsyncIterator[Loopback]:
    """Droplet 1 owns the reserved IP, Droplet 2 asks."""
    droplets = {
        number: Droplet(
            number, f"lb{number}", "nyc3", f"198.18.0.1{number}", f"10.110.0.1{number}", "198.18.0.1", f"10.17.0.{number + 4}", "10.17.0.1"
        )
        for number in (1, 2)
    }
    region = Region(droplets, {IP: ReservedIp(IP, "nyc3", 1)}, action_time_s=action_time_s)
    async with api.serve(region, token=TOKEN, directory=directory) as server, metadata.serve(region, lambda _: 2) as url:
        yield Loopback(server, url, directory, region)
        assert server.unknown == [], "a request that the published API doesn't have"
    await settle()


async def settle() -> None:
    """Let closed TLS connections end: asyncio takes several turns of its loop for one."""
    for _ in range(20):
        await asyncio.sleep(0)
