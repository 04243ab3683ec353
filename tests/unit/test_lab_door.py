"""The API's faults on the connection itself, below and before TLS; and the other hands on its region."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import urllib.parse
from pathlib import Path

import pytest

from do_failover.lab import api
from do_failover.lab import region as r
from tests.faulty_api import IMPATIENT_S, IP, PATIENT_S, stage


def _ask_below_tls(server: api.ApiServer) -> bytes:
    """Send a request over TLS and read the TCP connection itself to its end."""
    url = urllib.parse.urlsplit(server.url)
    context = ssl.create_default_context(cafile=server.ca_file)
    with (
        socket.create_connection((url.hostname, url.port), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname=url.hostname) as tls,
    ):
        tls.sendall(b"GET /v2/account HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer t\r\n\r\n")
        with socket.socket(fileno=os.dup(tls.fileno())) as below:
            below.settimeout(5)
            return b"".join(iter(lambda: below.recv(65536), b""))


@pytest.mark.parametrize("fault", ["reset-before", "reset-after", "hang-before 0", "hang-mid-body 0"])
async def test_a_reset_is_a_reset(tmp_path: Path, fault: str) -> None:
    async with stage(tmp_path, f"*:{fault}; *:cut-body") as s:
        with pytest.raises(ConnectionResetError):
            await asyncio.to_thread(_ask_below_tls, s.server)
        assert await asyncio.to_thread(_ask_below_tls, s.server)


def _connect(server: api.ApiServer) -> type[BaseException] | None:
    """Connect without TLS: what comes of it within a moment (None: it is connected)."""
    url = urllib.parse.urlsplit(server.url)
    try:
        with socket.create_connection((url.hostname, url.port), timeout=IMPATIENT_S):
            return None
    except OSError as error:
        return type(error)


async def test_a_hang_in_connect_is_one(tmp_path: Path) -> None:
    async with stage(tmp_path, "*:hang-connect 1000") as s:
        for _ in range(3):
            assert await asyncio.to_thread(_connect, s.server) is TimeoutError
        assert s.log() == [("connection", 0, "*:hang-connect 1000")]
        s.server.set_faults("")
        assert (await s.client.get()).status == 200


async def test_a_hang_in_connect_ends_by_itself(tmp_path: Path) -> None:
    async with stage(tmp_path, "*:hang-connect 0.1") as s:
        async with asyncio.timeout(PATIENT_S):
            while await asyncio.to_thread(_connect, s.server) is not None:
                pass
        assert (await s.client.get()).status == 200


async def test_a_hang_in_the_handshake(tmp_path: Path) -> None:
    async with stage(tmp_path, "**2:hang-tls; GET:404") as s:
        assert await asyncio.to_thread(_connect, s.server) is None
        assert (await s.client.get(connect_s=IMPATIENT_S)).error is TimeoutError
        assert (await s.client.get()).status == 404
        assert s.log() == [("connection", 0, "**2:hang-tls"), ("connection", 0, "**2:hang-tls"), ("GET", 404, "GET:404")]


async def test_a_hang_in_the_handshake_can_end_with_a_reset(tmp_path: Path) -> None:
    async with stage(tmp_path, "*:hang-tls 0.02; *:reset-connect") as s:
        for _ in range(2):
            assert (await s.client.get()).error in {ConnectionResetError, ssl.SSLEOFError, ssl.SSLZeroReturnError, BrokenPipeError}
        assert (await s.client.get()).status == 200


async def test_a_kept_connection_meets_a_connections_fault_too(tmp_path: Path) -> None:
    async with stage(tmp_path, "") as s:
        assert (await s.client.get()).status == 200
        s.server.set_faults("*:hang-tls")
        assert (await s.client.get(connect_s=IMPATIENT_S)).error is not None
        s.server.set_faults("GET:503; *:hang-tls; GET:404")
        seen = await s.client.get()
        assert (seen.status, seen.headers.get("connection")) == (503, "close")
        assert (await s.client.get(connect_s=IMPATIENT_S)).error is TimeoutError
        assert (await s.client.get()).status == 404


async def test_a_hang_in_connect_in_the_middle_of_a_script(tmp_path: Path) -> None:
    async with stage(tmp_path, "GET:503; *:hang-connect 1000; GET:404") as s:
        assert (await s.client.get()).status == 503
        assert (await s.client.get(connect_s=IMPATIENT_S)).error is TimeoutError
        assert [entry[2] for entry in s.log()] == ["GET:503", "*:hang-connect 1000"]
        s.server.set_faults("*:hang-connect 1000; GET:404")
        assert await asyncio.to_thread(_connect, s.server) is TimeoutError


async def test_a_droplet_is_made_busy(tmp_path: Path) -> None:
    async with stage(tmp_path, "") as s:
        s.server.make_busy(2, "snapshot", time_s=1000)
        assert (await s.client.assign()).json["message"] == r.DROPLET_IS_PENDING
        (busy,) = (await s.client.ask("GET", "droplets/2/actions")).json["actions"]
        assert (busy["type"], busy["status"]) == ("snapshot", "in-progress")


async def test_a_busy_droplet_becomes_free_in_time(tmp_path: Path) -> None:
    async with stage(tmp_path, "") as s:
        s.server.make_busy(2, "snapshot", time_s=0.02)
        async with asyncio.timeout(PATIENT_S):
            while (await s.client.assign()).status != 201:
                pass
        await s.owner_becomes(2)


async def test_somebody_else_moves_the_ip(tmp_path: Path) -> None:
    async with stage(tmp_path, "", action_time_s=1000) as s:
        s.server.assign(IP, 2)
        assert (await s.client.assign()).json["message"] == r.IP_IS_PENDING
    async with stage(tmp_path, "") as s:
        s.server.assign(IP, 2)
        await s.owner_becomes(2)


async def test_a_second_token_is_known_when_it_is_added(tmp_path: Path) -> None:
    async with stage(tmp_path, "") as s:
        s.server.tokens.remove("t")
        assert (await s.client.get()).status == 401
        s.server.tokens.add("t")
        assert (await s.client.get()).status == 200
