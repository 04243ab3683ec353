"""The metadata service: what 169.254.169.254 tells a Droplet about itself. `document` and `answer` are pure.

`active` follows the API's owner at once. Plain http, as the real one. On loopback, for tests:

    async with serve(region, lambda address: 2) as url:   # whoever asks is Droplet 2
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from aiohttp import web

if TYPE_CHECKING:
    from do_failover.lab.region import Droplet, Region

WhoIs = Callable[[str], int | None]
"""From a caller's address to its Droplet id; None: nobody whom the service knows."""


def document(droplet: Droplet, region: Region) -> dict[str, Any]:
    """Write the whole of /metadata/v1.json for one Droplet."""
    reserved = {f"ipv{version}": _holding(region.reserved_ip_of(droplet.id, version)) for version in (4, 6)}
    public: dict[str, Any] = {
        "ipv4": {"ip_address": droplet.public, "netmask": droplet.netmask, "gateway": droplet.public_gateway},
        "mac": "04:01:2a:0f:2a:01",
        "type": "public",
    }
    if droplet.public_v6:
        public["ipv6"] = {"ip_address": droplet.public_v6, "cidr": 64, "gateway": droplet.public_v6_gateway}
    if droplet.anchor:
        public["anchor_ipv4"] = {
            "ip_address": droplet.anchor,
            "netmask": droplet.netmask,
            "gateway": droplet.anchor_gateway,
        }
    private = {
        "ipv4": {"ip_address": droplet.private, "netmask": droplet.netmask, "gateway": "0.0.0.0"},  # noqa: S104  as published
        "mac": "04:01:2a:0f:2a:02",
        "type": "private",
    }
    return {
        "droplet_id": droplet.id,
        "hostname": droplet.name,
        "user_data": "",
        "vendor_data": "",
        "public_keys": [],
        "auth_key": "",
        "region": droplet.region,
        "interfaces": {"public": [public], "private": [private]},
        "reserved_ip": reserved,
        "floating_ip": {"ipv4": reserved["ipv4"]},
        "dns": {"nameservers": ["67.207.67.2", "67.207.67.3"]},
        "tags": list(droplet.tags),
        "features": {"dhcp_enabled": False},
    }


def _holding(address: str | None) -> dict[str, Any]:
    """Write whether a reserved IP of one family is here, and which."""
    return {"active": False} if address is None else {"active": True, "ip_address": address}


def answer(path: str, droplet: Droplet, region: Region) -> str | None:
    """Return the text of one leaf below /metadata/v1/, or None where there is none. Booleans are true and false."""
    node: Any = document(droplet, region)
    node["id"] = node.pop("droplet_id")
    for part in path.removeprefix("/metadata/v1/").split("/"):
        key: Any = {"address": "ip_address"}.get(part, part)
        if isinstance(node, list):
            key = int(part) if part.isdigit() and int(part) < len(node) else None
        try:
            node = node[key]
        except (KeyError, TypeError):
            return None
    if isinstance(node, dict | list):
        return None
    return str(node).lower() if isinstance(node, bool) else str(node)


@contextlib.asynccontextmanager
async def serve(region: Region, who_is: WhoIs, *, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """Serve the metadata of whoever asks; yields the URL that ends in /metadata/v1."""

    async def handle(request: web.Request) -> web.Response:
        droplet = region.droplets.get(who_is(request.remote or "") or 0)
        if droplet is None:
            return web.Response(status=404, text="not found")
        if request.path == "/metadata/v1.json":
            return web.json_response(document(droplet, region))
        text = answer(request.path, droplet, region)
        return web.Response(status=404, text="not found") if text is None else web.Response(text=text)

    application = web.Application()
    application.router.add_get("/{path:.*}", handle)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        yield f"http://{host}:{runner.addresses[0][1]}/metadata/v1"
    finally:
        await runner.cleanup()
