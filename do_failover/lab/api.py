"""The API over TLS, with a CA of its own: the HTTP skin around Routes and Region. Also for tests, on loopback.

    async with serve(region, token="t", directory=tmp_path, faults="POST:503; action**:404") as api:
        ...  # api.url, api.ca_file, api.requests, api.unknown, api.region
        await api.set_faults("")          # health
        api.make_busy(2, "snapshot", time_s=0.5)

When an action's time is up, `on_owner(reserved_ip, droplet_id)` is awaited first and the action completes
after it: nobody reads `completed` before the effect is real.

A server error is the lab's only with a fault. Faults: fault_text.py for the words, faults.py for their meaning.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

import trustme
from aiohttp import web

from do_failover.lab.fault_text import parse_faults
from do_failover.lab.faults import FOR_EVER, NO_EFFECT, Delivery, Effect, Fault, FaultScript
from do_failover.lab.listener import Listener, reset
from do_failover.lab.replies import RATE_LIMIT, Moment, Reply, make_reply
from do_failover.lab.routes import ApiRequest, ApiResponse, Call, Routes

if TYPE_CHECKING:
    from pathlib import Path

    from do_failover.lab.region import Action, Region

HTTPS_PORT = 443
NO_ANSWER = 0

OnOwner = Callable[[str, int | None], Awaitable[None]]
OnRequest = Callable[["Exchange"], None]


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request as it was answered. `at` is `time.monotonic()` at its arrival; `address` is the caller's.

    `fault` is the text of the fault that it met. `status` is NO_ANSWER where the fault lets no status line through.
    A connection that met a fault before any request stands here too, with the method "connection" and no path.
    """

    at: float
    address: str
    method: str
    path: str
    status: int
    message: str
    is_unknown: bool
    request_id: str
    fault: str = ""


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
    faults: str = "",
) -> AsyncIterator[ApiServer]:
    """Serve the region on `https://host:port/v2/` (port 0: any); `ca.pem` goes into `directory`.

    ValueError for faults that can't be read; OSError when the address can't be had.
    """
    script = parse_faults(faults)
    ca = trustme.CA()
    ca_file = directory / "ca.pem"
    ca.cert_pem.write_to_path(ca_file)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert(host).configure_cert(context)
    server = ApiServer(region, {token}, ca_file, on_owner, on_request)
    await server.open(host, port, context)
    try:
        server.use(script)
        yield server
    finally:
        await server.close()


class ApiServer:
    """A running API. `tokens` are those that it knows, and may be changed at any time, as the region may."""

    def __init__(self, region: Region, tokens: set[str], ca_file: Path, on_owner: OnOwner, on_request: OnRequest | None) -> None:
        """Use `serve`."""
        self.region = region
        self.tokens = tokens
        self.ca_file = ca_file
        self.url = ""
        self.requests: list[Exchange] = []
        self._routes = Routes(region, tokens, wall=time.time() - time.monotonic())
        self._on_owner = on_owner
        self._on_request = on_request
        self._script = FaultScript()
        self._timers: set[asyncio.Task[None]] = set()
        self._closing = asyncio.Event()
        self._busy: set[asyncio.Transport] = set()
        self._listener: Listener
        self._runner: web.AppRunner

    @property
    def unknown(self) -> list[Exchange]:
        """Requests that the published API does not have."""
        return [request for request in self.requests if request.is_unknown]

    def set_faults(self, text: str) -> None:
        """Replace all faults, also those half used; "" is health. In force on return. ValueError as in fault_text.py.

        What already hangs keeps hanging, except a door that hangs in connect. Must be called on the server's event loop.
        """
        self.use(parse_faults(text))

    def use(self, faults: tuple[Fault, ...]) -> None:
        """Do as `set_faults`, with faults as data."""
        self._script = FaultScript(faults)
        if self._script.doorstep_next is not None:
            self._drop_idle_connections()
        self._listener.follow(self._script)

    def make_busy(self, droplet_id: int, type_: str = "snapshot", *, time_s: float = 1.0) -> Action:
        """Begin another action on a Droplet: for `time_s` it has a pending event. Refusal when it has one."""
        return self._wind_up(self.region.begin_on_droplet(droplet_id, type_, time.monotonic(), time_s))

    def assign(self, address: str, droplet_id: int) -> Action:
        """Begin an assign as somebody else would, without a request. Refusal as for a request."""
        return self._wind_up(self.region.assign(address, droplet_id, time.monotonic()))

    async def open(self, host: str, port: int, context: ssl.SSLContext) -> None:
        """Bind and accept. For `serve`."""
        self._listener = Listener(host, port, context, self._note_connection)
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        if self._runner.server is not None:
            self._listener.start(self._runner.server)
        where = host if port == HTTPS_PORT else f"{host}:{self._listener.port}"
        self.url = f"https://{where}/v2/"

    async def close(self) -> None:
        """End what runs and hangs. For `serve`."""
        self._closing.set()
        for timer in self._timers:
            timer.cancel()
        await asyncio.gather(*self._timers, return_exceptions=True)
        await self._listener.close()
        await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        at, transport = time.monotonic(), request.transport
        asked = await _read(request)
        if transport is None:
            return web.Response()
        self._busy.add(transport)
        try:
            call = self._routes.read(asked)
            fault = self._script.meet(request.method, call.kind)
            effect = fault.effect if fault else NO_EFFECT
            if effect.delay_s and await self._is_closing_within(effect.delay_s):
                return web.Response()
            reply, exchange = self._answer(call, effect, at, request.remote or "")
            self._note(exchange if fault is None else dataclasses.replace(exchange, fault=fault.text))
            self._take_turn()
            if effect.delivery is Delivery.WHOLE:
                return await self._send(request, reply)
            await self._send_part(transport, reply, effect)
            return web.Response()
        finally:
            self._busy.discard(transport)

    def _answer(self, call: Call, effect: Effect, at: float, address: str) -> tuple[Reply, Exchange]:
        """Carry the request out if the effect lets it, and write down what happened."""
        response = ApiResponse(HTTPStatus.OK, {})
        if effect.is_carried_out or call.refusal is not None:
            begun = len(self.region.actions)
            response = self._routes.answer(call, time.monotonic(), effect.course, effect.per_page)
            if len(self.region.actions) > begun:
                self._wind_up(self.region.actions[-1])
        remaining = max(0, RATE_LIMIT - len(self.requests) - 1)
        moment = Moment(secrets.token_hex(16), time.time(), remaining)
        reply = make_reply(response, effect, moment)
        is_silent = effect.delivery in {Delivery.HANG, Delivery.RESET}
        status = NO_ANSWER if is_silent else reply.status
        path = call.request.path + (f"?{call.request.raw_query}" if call.request.raw_query else "")
        message = "" if is_silent else reply.message
        return reply, Exchange(at, address, call.request.method, path, status, message, response.is_unknown, moment.request_id)

    async def _send(self, request: web.Request, reply: Reply) -> web.StreamResponse:
        response = web.Response(status=reply.status, body=reply.body, headers=reply.headers)
        if self._listener.is_hanging or self._script.doorstep_next is not None:
            response.force_close()
        await response.prepare(request)
        await response.write_eof()
        return response

    async def _send_part(self, transport: asyncio.Transport, reply: Reply, effect: Effect) -> None:
        """Send what the delivery lets through, past aiohttp, and end the connection, at once or after the hang."""
        half = len(reply.body) // 2
        match effect.delivery:
            case Delivery.HANG_BODY:
                transport.write(reply.head)
            case Delivery.HANG_MID_BODY | Delivery.CUT_BODY:
                transport.write(reply.head + reply.body[:half])
        if effect.delivery is Delivery.CUT_BODY:
            transport.abort()
        elif effect.delivery is Delivery.RESET or not await self._is_closing_within(effect.hang_s):
            reset(transport)
        else:
            transport.abort()

    def _take_turn(self) -> None:
        """Let the next connection meet its fault, if it is a connection's turn."""
        if self._script.doorstep_next is not None:
            self._drop_idle_connections()
            self._listener.take_turn()

    def _drop_idle_connections(self) -> None:
        """End kept connections at once, so that their clients see it before they send."""
        server = self._runner.server
        for connection in server.connections if server is not None else ():
            transport = connection.transport
            if transport is not None and transport not in self._busy:
                with contextlib.suppress(OSError):
                    transport.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
                transport.abort()

    def _note(self, exchange: Exchange) -> None:
        self.requests.append(exchange)
        if self._on_request is not None:
            self._on_request(exchange)

    def _note_connection(self, address: str, fault: Fault) -> None:
        self._note(Exchange(time.monotonic(), address, "connection", "", NO_ANSWER, "", is_unknown=False, request_id="", fault=fault.text))

    async def _is_closing_within(self, seconds: float) -> bool:
        """Wait; True as soon as the server closes."""
        try:
            async with asyncio.timeout(None if seconds == FOR_EVER else seconds):
                await self._closing.wait()
        except TimeoutError:
            return False
        return True

    def _wind_up(self, action: Action) -> Action:
        timer = asyncio.create_task(self._complete_in_time(action))
        self._timers.add(timer)
        timer.add_done_callback(self._timers.discard)
        return action

    async def _complete_in_time(self, action: Action) -> None:
        await asyncio.sleep(max(0.0, action.due_at - time.monotonic()))
        if action.reserved_ip and action.course.takes_effect:
            await self._on_owner(action.reserved_ip, action.droplet_id)
        self.region.complete(action, time.monotonic())


async def _read(request: web.Request) -> ApiRequest:
    path, _, query = request.raw_path.partition("?")
    return ApiRequest(
        request.method,
        path,
        request.query,
        request.headers.get("Authorization", ""),
        await request.read(),
        url=str(request.url.with_query(None)),
        content_type=request.content_type,
        raw_query=query,
    )
