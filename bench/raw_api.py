"""The API's own state machine behind a TLS server of a few lines, which notes when each request's first byte was there.

    python -m bench.raw_api DIRECTORY ACTION_TIME_S

First line out: {"api_url", "metadata_url", "ca_file"}. Then one line a request: {"method", "path", "status", "first_ns"}, with
first_ns on CLOCK_MONOTONIC: the moment when the first decrypted byte was handed over. "reset" on stdin: the IP is Droplet
1's again; answered by {"reset": true}.

The metadata service always says that no reserved IP is here: so the daemon need not wait for its next look between
two rounds. It is a hint, and the truth is read from the API.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import ssl
import sys
import time
from copy import deepcopy
from pathlib import Path
from urllib.parse import parse_qsl

import trustme

from do_failover.lab import metadata
from do_failover.lab.faults import NO_EFFECT
from do_failover.lab.region import Action, Droplet, Region, ReservedIp, Status
from do_failover.lab.replies import Moment, make_reply
from do_failover.lab.routes import ApiRequest, Routes

IP, TOKEN = "203.0.113.47", "dop_v1_bench"


def make_region(action_time_s: float) -> Region:
    """Two load balancers; the first owns the IP."""
    droplets = {
        number: Droplet(
            number, f"lb{number}", "nyc3", f"198.18.0.1{number}", f"10.110.0.1{number}", "198.18.0.1", f"10.17.0.{number + 4}", "10.17.0.1"
        )
        for number in (1, 2)
    }
    return Region(droplets, {IP: ReservedIp(IP, "nyc3", 1)}, action_time_s=action_time_s)


class Door(asyncio.Protocol):
    """One connection."""

    def __init__(self, region: Region, routes: Routes) -> None:
        """Nothing came yet."""
        self._region, self._routes = region, routes
        self._data, self._first_ns = b"", 0
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way back."""
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """Note the time, and answer as soon as the request is whole."""
        if not self._data:
            self._first_ns = time.monotonic_ns()
        self._data += data
        head, separator, body = self._data.partition(b"\r\n\r\n")
        if not separator:
            return
        line, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (text.partition(":") for text in lines)}
        if len(body) < int(headers.get("content-length", "0")):
            return
        self._data = b""
        self._answer(line, headers, body)

    def _answer(self, line: str, headers: dict[str, str], body: bytes) -> None:
        method, target, _ = line.split(" ")
        path, _, query = target.partition("?")
        content_type = headers.get("content-type", "application/json").partition(";")[0]
        asked = ApiRequest(
            method, path, dict(parse_qsl(query)), headers.get("authorization", ""), body, content_type=content_type, raw_query=query
        )
        begun = len(self._region.actions)
        response = self._routes.answer(self._routes.read(asked), time.monotonic())
        for action in self._region.actions[begun:]:
            asyncio.get_running_loop().call_later(self._region.action_time_s, complete, self._region, action)
        reply = make_reply(response, NO_EFFECT, Moment(secrets.token_hex(8), time.time(), 4000))
        self._transport.write(reply.head + reply.body)
        found = {"method": method, "path": path, "status": response.status, "is_unknown": response.is_unknown}
        say(found | {"first_ns": self._first_ns})


def complete(region: Region, action: Action) -> None:
    """Give an action its effect, unless a reset was first."""
    if action.status is Status.IN_PROGRESS:
        region.complete(action, time.monotonic())


def say(line: dict[str, object]) -> None:
    """Write one line."""
    print(json.dumps(line), flush=True)


async def listen_for_resets(region: Region) -> None:
    """Until stdin ends."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.readline():
        for action in region.actions:
            complete(region, action)
        region.reserved_ips[IP].droplet_id = 1
        say({"reset": True})


async def main(directory: Path, action_time_s: float) -> None:
    """Serve until stdin ends."""
    ca, context = trustme.CA(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    ca.cert_pem.write_to_path(str(directory / "ca.pem"))
    region = make_region(action_time_s)
    routes = Routes(region, {TOKEN}, wall=time.time() - time.monotonic())
    server = await asyncio.get_running_loop().create_server(lambda: Door(region, routes), "127.0.0.1", 0, ssl=context)
    async with metadata.serve(deepcopy(region), lambda _: 2) as metadata_url:
        port = server.sockets[0].getsockname()[1]
        say({"api_url": f"https://127.0.0.1:{port}/v2/", "metadata_url": metadata_url, "ca_file": str(directory / "ca.pem")})
        await listen_for_resets(region)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), float(sys.argv[2])))
