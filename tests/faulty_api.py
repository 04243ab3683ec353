"""The lab's API with faults on loopback, and a plain client for it."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import ssl
import urllib.parse
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from do_failover.lab import api
from do_failover.lab.region import Droplet, Region, ReservedIp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

IP, IP6 = "203.0.113.47", "2001:db8:47::1"
ACTIONS = f"reserved_ips/{IP}/actions"
ASSIGN = {"type": "assign", "droplet_id": 2}
PATIENT_S, IMPATIENT_S = 10.0, 0.15


def make_region(action_time_s: float = 0.0) -> Region:
    droplets = {
        n: Droplet(n, f"lb{n}", "nyc3", f"198.18.0.1{n}", f"10.110.0.1{n}", "198.18.0.1", f"10.17.0.{n}", "10.17.0.1") for n in (1, 2)
    }
    return Region(droplets, {ip: ReservedIp(ip, "nyc3", 1) for ip in (IP, IP6)}, action_time_s=action_time_s)


@dataclass
class Seen:
    """What a client saw: an answer, or the exception that came instead."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    error: type[BaseException] | None = None

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """http.client on one kept connection, as a stranger's tool would use it. It waits long, except where a hang is expected."""

    def __init__(self, server: api.ApiServer) -> None:
        url = urllib.parse.urlsplit(server.url)
        context = ssl.create_default_context(cafile=server.ca_file)
        self.connection = http.client.HTTPSConnection(url.hostname or "", url.port, timeout=PATIENT_S, context=context)

    async def ask(self, method: str, path: str, body: object = None, *, connect_s: float = PATIENT_S, answer_s: float = PATIENT_S) -> Seen:
        return await asyncio.to_thread(self._ask, method, path, body, connect_s, answer_s)

    def _ask(self, method: str, path: str, body: object, connect_s: float, answer_s: float) -> Seen:
        headers = {"Authorization": "Bearer t", "Content-Type": "application/json"}
        seen, self.connection.timeout = Seen(), connect_s
        try:
            if self.connection.sock is None:
                self.connection.connect()
            self.connection.sock.settimeout(answer_s)
            self.connection.request(method, f"/v2/{path}", json.dumps(body) if body is not None else None, headers)
            answer = self.connection.getresponse()
            seen.status, seen.headers = answer.status, {key.lower(): value for key, value in answer.getheaders()}
            while answer.length:
                part = answer.read1()
                if not part:
                    raise http.client.IncompleteRead(seen.body)
                seen.body += part
            answer.read()
        except (OSError, http.client.HTTPException) as error:
            seen.error = type(error)
            self.connection.close()
        return seen

    async def get(self, *, connect_s: float = PATIENT_S, answer_s: float = PATIENT_S) -> Seen:
        return await self.ask("GET", f"reserved_ips/{IP}", connect_s=connect_s, answer_s=answer_s)

    async def assign(self, *, answer_s: float = PATIENT_S) -> Seen:
        return await self.ask("POST", ACTIONS, ASSIGN, answer_s=answer_s)


@dataclass
class Stage:
    server: api.ApiServer
    client: Client
    region: Region

    def log(self) -> list[tuple[str, int, str]]:
        return [(exchange.method, exchange.status, exchange.fault) for exchange in self.server.requests]

    async def is_logged(self, count: int = 1) -> None:
        async with asyncio.timeout(PATIENT_S):
            while len(self.server.requests) < count:
                await asyncio.sleep(0)

    async def owner_becomes(self, owner: int) -> None:
        async with asyncio.timeout(PATIENT_S):
            while self.region.reserved_ips[IP].droplet_id != owner or self.region.reserved_ips[IP].is_locked:
                await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def stage(directory: Path, faults: str, *, action_time_s: float = 0.0) -> AsyncIterator[Stage]:
    region = make_region(action_time_s)
    async with api.serve(region, token="t", directory=directory, faults=faults) as server:
        client = Client(server)
        try:
            yield Stage(server, client, region)
        finally:
            client.connection.close()
    for _ in range(20):
        await asyncio.sleep(0)
