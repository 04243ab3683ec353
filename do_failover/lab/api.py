"""The API over TLS, with a CA of its own: the HTTP skin around Routes and Region. Also for tests, on loopback.

    async with serve(region, token="t", directory=tmp_path) as api:
        ...  # api.url, api.ca_file, api.requests, api.unknown, api.region

When an action's time is up, `on_owner(reserved_ip, droplet_id)` is awaited first and the action completes
after it: nobody reads `completed` before the effect is real.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING

import trustme
from aiohttp import web

from do_failover.lab.routes import ApiRequest, Routes

if TYPE_CHECKING:
    from pathlib import Path

    from do_failover.lab.region import Action, Region

RATE_LIMIT = 5000
HTTPS_PORT = 443

OnOwner = Callable[[str, int | None], Awaitable[None]]
OnRequest = Callable[["Exchange"], None]


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request as it was answered. `at` is `time.monotonic()` at its arrival; `address` is the caller's."""

    at: float
    address: str
    method: str
    path: str
    status: int
    message: str
    is_unknown: bool
    request_id: str


@dataclass(slots=True)
class ApiServer:
    """A running API."""

    region: Region
    url: str
    ca_file: Path
    requests: list[Exchange] = field(default_factory=list)

    @property
    def unknown(self) -> list[Exchange]:
        """Requests that the published API does not have."""
        return [request for request in self.requests if request.is_unknown]


async def _no_effect(_reserved_ip: str, _droplet_id: int | None) -> None:
    """Move nothing but the API's own idea."""


@contextlib.asynccontextmanager
async def serve(  # noqa: PLR0913  keyword-only, all but three have defaults
    region: Region,
    *,
    token: str,
    directory: Path,
    host: str = "127.0.0.1",
    port: int = 0,
    on_owner: OnOwner = _no_effect,
    on_request: OnRequest | None = None,
) -> AsyncIterator[ApiServer]:
    """Serve the region on `https://host:port/v2/` (port 0: any); `ca.pem` goes into `directory`."""
    ca = trustme.CA()
    ca_file = directory / "ca.pem"
    ca.cert_pem.write_to_path(ca_file)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert(host).configure_cert(context)
    server = ApiServer(region, url="", ca_file=ca_file)
    skin = _Skin(server, token, on_owner, on_request)
    runner = web.AppRunner(skin.application(), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, ssl_context=context).start()
        server.url = f"https://{host}:{runner.addresses[0][1]}/v2/"
        if port == HTTPS_PORT:
            server.url = f"https://{host}/v2/"
        yield server
    finally:
        await skin.close()
        await runner.cleanup()


class _Skin:
    """aiohttp's side: reads requests, writes responses, and lets time complete actions."""

    def __init__(self, server: ApiServer, token: str, on_owner: OnOwner, on_request: OnRequest | None) -> None:
        self._server = server
        self._routes = Routes(server.region, token, wall=time.time() - time.monotonic())
        self._on_owner = on_owner
        self._on_request = on_request
        self._timers: set[asyncio.Task[None]] = set()

    def application(self) -> web.Application:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._handle)
        return application

    async def close(self) -> None:
        for timer in self._timers:
            timer.cancel()
        await asyncio.gather(*self._timers, return_exceptions=True)

    async def _handle(self, request: web.Request) -> web.Response:
        at = time.monotonic()
        asked = ApiRequest(
            request.method,
            request.raw_path.partition("?")[0],
            request.query,
            request.headers.get("Authorization", ""),
            await request.read(),
            url=str(request.url.with_query(None)),
        )
        actions = len(self._server.region.actions)
        response = self._routes.answer(asked, time.monotonic())
        if len(self._server.region.actions) > actions:
            self._wind_up()
        exchange = Exchange(
            at,
            request.remote or "",
            request.method,
            request.raw_path,
            response.status,
            str(response.body.get("message", "")),
            response.is_unknown,
            secrets.token_hex(16),
        )
        self._server.requests.append(exchange)
        if self._on_request is not None:
            self._on_request(exchange)
        is_refused = response.status >= HTTPStatus.BAD_REQUEST
        body = {**response.body, "request_id": exchange.request_id} if is_refused else response.body
        return web.json_response(body, status=response.status, headers=self._headers(exchange.request_id))

    def _headers(self, request_id: str) -> dict[str, str]:
        return {
            "ratelimit-limit": str(RATE_LIMIT),
            "ratelimit-remaining": str(max(0, RATE_LIMIT - len(self._server.requests))),
            "ratelimit-reset": str(int(time.time()) + 3600),
            "x-request-id": request_id,
        }

    def _wind_up(self) -> None:
        timer = asyncio.create_task(self._complete_in_time(self._server.region.actions[-1]))
        self._timers.add(timer)
        timer.add_done_callback(self._timers.discard)

    async def _complete_in_time(self, action: Action) -> None:
        await asyncio.sleep(max(0.0, action.due_at - time.monotonic()))
        await self._on_owner(action.reserved_ip, action.droplet_id)
        self._server.region.complete(action, time.monotonic())
