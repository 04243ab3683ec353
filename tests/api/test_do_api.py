"""The API edge against the lab's API over TLS, and against servers that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trustme

from do_failover.do_api import answers
from do_failover.do_api.client import DigitalOceanApi
from do_failover.errors import ConfigError, FailoverError, PermanentError, RefusedError, TemporaryError
from do_failover.lab.region import Names
from do_failover.model import ActionStatus
from do_failover.token import TokenSource
from tests.loopback import IP, TOKEN, serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.loopback import Loopback


def open_api(region: Loopback, token: str = TOKEN, **more: str) -> DigitalOceanApi:
    tokens = TokenSource(None, {"DIGITALOCEAN_ACCESS_TOKEN": token})
    return DigitalOceanApi(api_url=more.get("url", region.api.url), tokens=tokens, ca_file=more.get("ca_file", str(region.api.ca_file)))


async def test_the_calls_of_an_assign(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        with contextlib.closing(open_api(region)) as api:
            before = await api.read_reserved_ip(IP)
            assert (before.droplet_id, before.region, before.owner_public_address) == (1, "nyc3", "198.18.0.11")
            action = await api.post_assign(IP, 2)
            assert action.status is ActionStatus.IN_PROGRESS
            assert (await api.read_reserved_ip(IP)).is_locked
            while action.status is ActionStatus.IN_PROGRESS:
                action = await api.read_action(IP, action.id)
            after = await api.read_reserved_ip(IP)
            assert (after.droplet_id, after.is_locked) == (2, False)
            droplet = await api.read_droplet(2)
            assert (droplet.id, droplet.name, droplet.region) == (2, "lb2", "nyc3")
            assert set(droplet.public_addresses) == {"198.18.0.12", IP}
        assert [call.method for call in api.calls][:2] == ["GET", "POST"]
        assert region.calls()[:2] == [f"GET /v2/reserved_ips/{IP} 200", f"POST /v2/reserved_ips/{IP}/actions 201"]


async def test_all_pages_of_a_list_are_read(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        for number in range(3, 8):
            region.region.droplets[number] = replace(region.region.droplets[1], id=number, name=f"app{number}", tags=("web",))
        region.api.set_faults("list**:split 2")
        with contextlib.closing(open_api(region)) as api:
            found = await api.list_droplets("web")
            assert [droplet.id for droplet in found] == [3, 4, 5, 6, 7]
            assert {droplet.region for droplet in found} == {"nyc3"}
        assert len(region.calls()) == 3


async def test_by_the_old_name_alone_a_post_finds_its_way(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        region.region.names = Names.FLOATING
        with contextlib.closing(open_api(region)) as api:
            assert (await api.post_assign(IP, 2)).status is ActionStatus.IN_PROGRESS
        assert [call.rsplit(" ", 1)[0] for call in region.calls()] == [
            f"POST /v2/reserved_ips/{IP}/actions",
            f"GET /v2/reserved_ips/{IP}",
            f"GET /v2/floating_ips/{IP}",
            f"POST /v2/floating_ips/{IP}/actions",
        ]


async def test_after_a_fork_the_child_opens_a_connection_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serve(tmp_path) as region:
        with contextlib.closing(open_api(region)) as api:
            await api.read_reserved_ip(IP)
            parents = api._transport._session
            monkeypatch.setattr("os.getpid", lambda: -1)
            await api.read_reserved_ip(IP)
            assert api._transport._session is not parents
            parents.close()


async def test_a_kept_connection_that_died_costs_nothing_but_a_new_one(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        with contextlib.closing(open_api(region)) as api:
            await api.read_reserved_ip(IP)
            region.api.set_faults("ip:reset-before")
            with pytest.raises(TemporaryError):
                await api.read_reserved_ip(IP)
            assert (await api.read_reserved_ip(IP)).droplet_id == 1


async def test_one_connection_serves_all_calls(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        with contextlib.closing(open_api(region)) as api:
            for _ in range(5):
                await api.read_reserved_ip(IP)
            pools = api._transport._session.get_adapter(region.api.url).poolmanager.pools
            counts = [pools.get(key).num_connections for key in pools.keys()]  # noqa: SIM118 - urllib3's container is no mapping
        assert counts == [1]


async def test_a_wrong_token_is_refused_with_a_sentence_and_a_request_id(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        with contextlib.closing(open_api(region, "wrong")) as api, pytest.raises(RefusedError, match="does not know this token") as caught:
            await api.read_reserved_ip(IP)
    assert caught.value.exit_code == 4
    assert caught.value.request_id
    assert "wrong" not in caught.value.message


async def test_a_pending_event_may_be_tried_again(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        with contextlib.closing(open_api(region)) as api:
            await api.post_assign(IP, 2)
            with pytest.raises(TemporaryError, match="pending event") as caught:
                await api.post_assign(IP, 2)
    assert (caught.value.kind, caught.value.may_have_landed) == ("unprocessable", False)


async def test_an_unknown_certificate_is_never_accepted(tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(other)
    async with serve(tmp_path) as region:
        with contextlib.closing(open_api(region, ca_file=str(other))) as api, pytest.raises(TemporaryError, match="TLS failed") as caught:
            await api.read_reserved_ip(IP)
        assert caught.value.kind == "tls"
        assert region.calls() == []


async def test_no_token_sends_nothing(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        tokens = TokenSource(str(tmp_path / "none"), {})
        api = DigitalOceanApi(api_url=region.api.url, tokens=tokens, ca_file=str(region.api.ca_file))
        with contextlib.closing(api), pytest.raises(ConfigError, match="no API token"):
            await api.read_reserved_ip(IP)
        assert region.calls() == []


async def test_an_unknown_ip_is_tried_by_the_old_name_and_then_said(tmp_path: Path) -> None:
    with misbehaving(tmp_path, respond(404, b'{"id":"not_found","message":"gone"}')) as (api, seen):
        with pytest.raises(PermanentError, match=r"the API knows no reserved IP 203\.0\.113\.47") as caught:
            await api.read_reserved_ip(IP)
    assert caught.value.kind == "not_found"
    assert [line.split()[1] for line in seen] == [f"/v2/reserved_ips/{IP}", f"/v2/floating_ips/{IP}"]


async def test_the_old_name_serves_where_the_new_one_is_unknown(tmp_path: Path) -> None:
    old = json.dumps({"floating_ip": {"ip": IP, "droplet": {"id": 1}, "region": {"slug": "nyc3"}, "locked": False}}).encode()

    def answer(line: str, connection: ssl.SSLSocket, stop: threading.Event) -> None:
        (respond(200, old) if "floating" in line else respond(404, b"{}"))(line, connection, stop)

    with misbehaving(tmp_path, answer) as (api, seen):
        assert (await api.read_reserved_ip(IP)).droplet_id == 1
        await api.read_reserved_ip(IP)
    assert [line.split()[1] for line in seen] == [f"/v2/reserved_ips/{IP}", *[f"/v2/floating_ips/{IP}"] * 2]


Answer = Callable[[str, ssl.SSLSocket, threading.Event], None]


class _Server(threading.Thread):
    """A TLS server that answers each request as it is told, one connection at a time a thread."""

    def __init__(self, directory: Path, answer: Answer) -> None:
        super().__init__(daemon=True)
        authority = trustme.CA()
        authority.cert_pem.write_to_path(directory / "ca.pem")
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        self.listener = context.wrap_socket(socket.create_server(("127.0.0.1", 0)), server_side=True)
        self.answer, self.seen, self.stop = answer, list[str](), threading.Event()
        self.workers: list[threading.Thread] = []

    def run(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except ssl.SSLError:
                continue
            except OSError:
                return
            self.workers.append(threading.Thread(target=self.serve, args=(connection,), daemon=True))
            self.workers[-1].start()

    def serve(self, connection: ssl.SSLSocket) -> None:
        with connection, contextlib.suppress(OSError), connection.makefile("rb") as lines:
            request = lines.readline().decode().strip()
            if not request:
                return
            self.seen.append(request)
            head = list(iter(lambda: lines.readline().decode().strip().lower(), ""))
            lines.read(next((int(line.split(":")[1]) for line in head if line.startswith("content-length")), 0))
            self.answer(request, connection, self.stop)

    def close(self) -> None:
        self.stop.set()
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.join()
        for worker in self.workers:
            worker.join()


@contextlib.contextmanager
def misbehaving(directory: Path, answer: Answer, token: str = TOKEN) -> Iterator[tuple[DigitalOceanApi, list[str]]]:
    """Yield a client of such a server, and the request lines that the server saw."""
    server = _Server(directory, answer)
    server.start()
    port = server.listener.getsockname()[1]
    tokens = TokenSource(None, {"DIGITALOCEAN_ACCESS_TOKEN": token})
    api = DigitalOceanApi(api_url=f"https://127.0.0.1:{port}/v2", tokens=tokens, ca_file=str(directory / "ca.pem"))
    try:
        yield api, server.seen
    finally:
        api.close()
        server.close()


def respond(status: int, body: bytes, *headers: str) -> Answer:
    def answer(_: str, connection: ssl.SSLSocket, stop: threading.Event) -> None:
        lines = [f"HTTP/1.1 {status} x", f"Content-Length: {len(body)}", "Connection: close", *headers]
        connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    return answer


def hang(_: str, connection: ssl.SSLSocket, stop: threading.Event) -> None:
    stop.wait()


def drip(_: str, connection: ssl.SSLSocket, stop: threading.Event) -> None:
    connection.sendall(b"HTTP/1.1 200 x\r\nContent-Length: 100000\r\n\r\n{")
    while not stop.wait(0.05):
        connection.sendall(b" ")


def cut(_: str, connection: ssl.SSLSocket, stop: threading.Event) -> None:
    connection.shutdown(socket.SHUT_RDWR)


GOOD_IP = {"reserved_ip": {"ip": IP, "droplet": {"id": 1}, "region": {"slug": "nyc3"}, "locked": False}}

FAULTS = [
    # what the server does, what it means, its kind, whether a POST may have landed, the named wait
    (respond(400, b'{"id":"bad_request","message":"no"}'), PermanentError, "rejected", None, None),
    (respond(401, b'{"id":"unauthorized","message":"Unable to authenticate you"}'), RefusedError, "token", None, None),
    (respond(403, b'{"id":"forbidden","message":"You are not allowed to perform this operation"}'), RefusedError, "forbidden", None, None),
    (respond(409, b"{}"), TemporaryError, "unprocessable", False, None),
    (respond(422, b'{"message":"Droplet already has a pending event."}'), TemporaryError, "unprocessable", False, None),
    (respond(429, b'{"id":"too_many_requests"}', "Retry-After: 7"), TemporaryError, "rate_limit", False, 7.0),
    (respond(429, b"", "Retry-After: -3"), TemporaryError, "rate_limit", False, None),
    (respond(429, b"", "Retry-After: 99999999999"), TemporaryError, "rate_limit", False, None),
    (respond(429, b"", "Retry-After: soon"), TemporaryError, "rate_limit", False, None),
    (respond(500, b'{"id":"server_error","message":"oops"}'), TemporaryError, "unavailable", True, None),
    (respond(502, b"<html><h1>Bad Gateway</h1></html>"), TemporaryError, "unavailable", True, None),
    (respond(503, b""), TemporaryError, "unavailable", True, None),
    (respond(504, b"\xff\xfe\x00"), TemporaryError, "unavailable", True, None),
    (respond(302, b"", "Location: http://127.0.0.1:1/"), PermanentError, "rejected", None, None),
    (respond(201, b'{"action": {"id": 7, "stat'), TemporaryError, "garbled", True, None),
    (respond(201, b'{"action": {"id": "seven", "status": "completed"}}'), TemporaryError, "garbled", True, None),
    (respond(201, b'{"action": null}'), TemporaryError, "garbled", True, None),
    (respond(201, b"[]"), TemporaryError, "garbled", True, None),
    (respond(201, b"\xff"), TemporaryError, "garbled", True, None),
    (respond(201, b""), TemporaryError, "garbled", True, None),
    (cut, TemporaryError, "network", True, None),
    (hang, TemporaryError, "timeout", True, None),
    (drip, TemporaryError, "timeout", True, None),
]


@pytest.mark.parametrize(("server", "error", "kind", "landed", "wait_s"), FAULTS)
async def test_a_fault_of_a_post_is_the_right_error(
    tmp_path: Path,
    server: Answer,
    error: type[FailoverError],
    kind: str,
    landed: bool | None,
    wait_s: float | None,
) -> None:
    with misbehaving(tmp_path, server) as (api, seen):
        with pytest.raises(error) as caught:
            await api.post_assign(IP, 2, timeout_s=0.4)
    assert type(caught.value) is error
    assert caught.value.kind == kind
    assert seen == [f"POST /v2/reserved_ips/{IP}/actions HTTP/1.1"]
    assert TOKEN not in str(caught.value)
    if isinstance(caught.value, TemporaryError):
        assert (caught.value.may_have_landed, caught.value.retry_after_s) == (landed, wait_s)


async def test_a_refused_connection_has_not_landed(tmp_path: Path) -> None:
    with misbehaving(tmp_path, hang) as (api, _):
        pass
    with contextlib.closing(api), pytest.raises(TemporaryError) as caught:
        await api.post_assign(IP, 2, timeout_s=0.4)
    assert caught.value.kind == "network"


async def test_a_hung_request_costs_the_next_one_nothing(tmp_path: Path) -> None:
    def answer(line: str, connection: ssl.SSLSocket, stop: threading.Event) -> None:
        (drip if line.startswith("POST") else respond(200, json.dumps(GOOD_IP).encode()))(line, connection, stop)

    with misbehaving(tmp_path, answer) as (api, _):
        with pytest.raises(TemporaryError):
            await api.post_assign(IP, 2, timeout_s=0.3)
        assert (await api.read_reserved_ip(IP, timeout_s=2)).droplet_id == 1


@pytest.mark.parametrize(
    ("droplet", "owner", "is_visible"),
    [({"droplet": {"id": 5}}, 5, True), ({"droplet": None}, None, True), ({}, None, False)],
)
def test_a_hidden_owner_is_told_apart_from_none(droplet: dict[str, object], owner: int | None, is_visible: bool) -> None:
    body = json.dumps({"reserved_ip": {"ip": IP, "region": {"slug": "nyc3"}, **droplet}}).encode()
    found = answers.read_reserved_ip(body, "reserved_ip")
    assert (found.droplet_id, found.is_owner_visible) == (owner, is_visible)


def test_ipv6_shapes() -> None:
    body = b'{"reserved_ipv6":{"ip":"2001:db8::1","region_slug":"nyc3","droplet":{"id":3},"reserved_at":"x"}}'
    assert (answers.read_reserved_ip(body, "reserved_ipv6").region, answers.read_reserved_ip(body, "reserved_ipv6").droplet_id) == (
        "nyc3",
        3,
    )


@pytest.mark.parametrize(
    ("text", "status"), [("done", "completed"), ("completed", "completed"), ("errored", "errored"), ("new-word", "in-progress")]
)
def test_action_statuses(text: str, status: str) -> None:
    assert answers.read_action(json.dumps({"action": {"id": 1, "status": text}}).encode()).status == status


def test_foreign_text_is_fit_for_a_terminal() -> None:
    body = json.dumps({"message": "a\x1b[31mred\nline" + "x" * 1000, "request_id": "r\x07"}).encode()
    error = answers.read_error("GET", "x", 500, {}, body)
    assert "\x1b" not in error.message
    assert "\n" not in error.message
    assert len(error.message) < 300
    assert error.request_id == "r"


def by_token(answers: dict[str, Answer]) -> Answer:
    """Answer by the token of the request, which only the raw head knows: the n-th request gets the n-th token's answer."""
    order = iter(answers.values())

    def answer(line: str, connection: ssl.SSLSocket, stop: threading.Event) -> None:
        next(order)(line, connection, stop)

    return answer


async def test_a_limit_of_one_token_is_waited_out_though_the_other_is_dead(tmp_path: Path) -> None:
    plays = by_token({"a": respond(429, b"{}", "Retry-After: 3"), "b": respond(401, b"{}")})
    with misbehaving(tmp_path, plays, token="one,two") as (api, seen):
        with pytest.raises(TemporaryError) as caught:
            await api.post_assign(IP, 2, timeout_s=2)
        assert (caught.value.kind, caught.value.retry_after_s) == ("rate_limit", 3.0)
        assert len(seen) == 2


async def test_a_call_that_was_given_up_does_not_go_on_with_the_next_token(tmp_path: Path) -> None:
    may_answer = threading.Event()

    def late(line: str, connection: ssl.SSLSocket, stop: threading.Event) -> None:
        may_answer.wait(10)
        respond(401, b"{}")(line, connection, stop)

    with misbehaving(tmp_path, by_token({"a": late, "b": respond(201, b"{}")}), token="one,two") as (api, seen):
        before = set(threading.enumerate())
        with pytest.raises(TemporaryError):
            await _give_up_at_once(api, seen)
        workers = [thread for thread in threading.enumerate() if thread.name == "beside-the-loop" and thread not in before]
        api.close()  # its thread ends with the call that it is in
        may_answer.set()
        for worker in workers:
            await asyncio.to_thread(worker.join)
        assert len(seen) == 1


async def _give_up_at_once(api: DigitalOceanApi, seen: list[str]) -> None:
    """The read time-out is the request's own: only the call as a whole is given up here."""
    transport = api._transport
    async with asyncio.timeout(5):
        task = asyncio.ensure_future(transport.call(lambda: transport.send("POST", "x", {}), 3.0))
        while not seen:
            await asyncio.sleep(0)
        transport._abandoned.set()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    msg = "given up"
    raise TemporaryError(msg)
