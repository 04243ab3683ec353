"""The API and the metadata service on loopback, without namespaces, as tests of the runtime use them."""

from __future__ import annotations

import asyncio
import json
import ssl
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from do_failover.lab import api, metadata
from do_failover.lab.region import Droplet, Region, ReservedIp

if TYPE_CHECKING:
    from pathlib import Path

IP = "203.0.113.47"


def make_region(action_time_s: float) -> Region:
    droplets = {
        n: Droplet(n, f"lb{n}", "nyc3", f"198.18.0.1{n}", f"10.110.0.1{n}", "198.18.0.1", f"10.17.0.{n}", "10.17.0.1") for n in (1, 2)
    }
    return Region(droplets, {IP: ReservedIp(IP, "nyc3", 1)}, action_time_s=action_time_s)


def fetch(server: api.ApiServer, path: str, body: object = None, token: str = "t") -> tuple[int, dict[str, Any], Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        server.url + path, data=data, headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=5, context=ssl.create_default_context(cafile=server.ca_file)) as response:
            return response.status, json.load(response), response.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error), error.headers


async def test_completed_is_never_read_before_the_effect(tmp_path: Path) -> None:
    region, effects, gate = make_region(0.0), [], asyncio.Event()

    async def take_effect(ip: str, droplet_id: int | None) -> None:
        await gate.wait()
        effects.append((ip, droplet_id))

    async with api.serve(region, token="t", directory=tmp_path, on_owner=take_effect) as server:
        status, body, _ = await asyncio.to_thread(fetch, server, f"reserved_ips/{IP}/actions", {"type": "assign", "droplet_id": 2})
        assert status == 201
        path = f"actions/{body['action']['id']}"
        assert (await asyncio.to_thread(fetch, server, path))[1]["action"]["status"] == "in-progress"
        gate.set()
        while (await asyncio.to_thread(fetch, server, path))[1]["action"]["status"] != "completed":
            assert region.reserved_ips[IP].droplet_id == 1
        assert effects == [(IP, 2)]
        assert region.reserved_ips[IP].droplet_id == 2


async def test_refusals_carry_a_request_id_and_unknown_requests_are_kept(tmp_path: Path) -> None:
    async with api.serve(make_region(1.0), token="t", directory=tmp_path) as server:
        status, body, headers = await asyncio.to_thread(fetch, server, "account", token="wrong")
        assert (status, body["id"], body["message"]) == (401, "unauthorized", "Unable to authenticate you")
        assert headers["x-request-id"] == body["request_id"]
        assert server.unknown == []
        status, _, headers = await asyncio.to_thread(fetch, server, "account")
        assert (status, headers["ratelimit-limit"]) == (200, "5000")
        assert (await asyncio.to_thread(fetch, server, "droplets/"))[0] == 404
        assert [(e.method, e.path, e.status) for e in server.unknown] == [("GET", "/v2/droplets/", 404)]
        assert len(server.requests) == 3


async def test_a_client_without_the_labs_ca_is_not_served(tmp_path: Path) -> None:
    async with api.serve(make_region(1.0), token="t", directory=tmp_path) as server:
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            await asyncio.to_thread(urllib.request.urlopen, server.url + "account", None, 5)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("id", "1"),
        ("region", "nyc3"),
        ("hostname", "lb1"),
        ("interfaces/public/0/ipv4/address", "198.18.0.11"),
        ("interfaces/public/0/anchor_ipv4/address", "10.17.0.1"),
        ("interfaces/private/0/ipv4/address", "10.110.0.11"),
        ("reserved_ip/ipv4/active", "true"),
        ("reserved_ip/ipv4/ip_address", IP),
        ("floating_ip/ipv4/active", "true"),
        ("reserved_ip/ipv6/active", "false"),
        ("interfaces/public/1/ipv4/address", None),
        ("interfaces", None),
        ("", None),
    ],
)
def test_metadata_leaves(path: str, text: str | None) -> None:
    region = make_region(1.0)
    assert metadata.answer(f"/metadata/v1/{path}", region.droplets[1], region) == text


async def test_metadata_follows_the_owner() -> None:
    region = make_region(1.0)

    def get(url: str) -> str:
        with urllib.request.urlopen(url, timeout=5) as response:
            return str(response.read().decode())

    async with metadata.serve(region, lambda _: 2) as url:
        assert await asyncio.to_thread(get, f"{url}/reserved_ip/ipv4/active") == "false"
        region.reserved_ips[IP].droplet_id = 2
        assert await asyncio.to_thread(get, f"{url}/reserved_ip/ipv4/active") == "true"
        document = json.loads(await asyncio.to_thread(get, f"{url}.json"))
        assert document["droplet_id"] == 2
        here = {"active": True, "ip_address": IP}
        assert document["reserved_ip"] == {"ipv4": here, "ipv6": {"active": False}}
        assert document["floating_ip"] == {"ipv4": here}
