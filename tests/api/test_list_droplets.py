"""The Droplets of a tag, all or an error: a list that is not whole must never become the peers of a failover."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from do_failover.do_api import answers, routes
from do_failover.errors import FailoverError, RefusedError, TemporaryError
from do_failover.lab import shapes
from do_failover.lab.routes import ApiRequest, Routes
from do_failover.model import Droplet
from tests.api.test_do_api import drip, misbehaving, open_api, respond
from tests.loopback import TOKEN, serve

if TYPE_CHECKING:
    import ssl
    import threading
    from pathlib import Path

LINK = "https://api.digitalocean.com/v2/droplets?"


def page(*droplets: dict[str, Any], following: object = None) -> bytes:
    links = {"pages": {"next": following}} if following is not None else {}
    return json.dumps({"droplets": droplets, "links": links, "meta": {"total": 9}}).encode()


def networks(*v4: tuple[str, str], v6: str = "") -> dict[str, Any]:
    return {
        "v4": [{"ip_address": address, "netmask": "255.255.0.0", "gateway": None, "type": kind} for address, kind in v4],
        "v6": [{"ip_address": v6, "netmask": 64, "gateway": "2001:db8::1", "type": "public"}] if v6 else [],
    }


async def test_addresses_of_every_kind(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        web = replace(region.region.droplets[1], name="web", tags=("web", "db"))
        region.region.droplets |= {
            3: replace(web, id=3, public_v6="2001:db8:0::3"),
            4: replace(web, id=4, private="", status="off", region="sfo3"),
            5: replace(web, id=5, tags=("db",)),
        }
        with contextlib.closing(open_api(region)) as api:
            found = await api.list_droplets("web")
    assert found == (
        Droplet(3, "web", "nyc3", ("198.18.0.11",), ("10.110.0.11",), ("2001:db8::3",), "active"),
        Droplet(4, "web", "sfo3", ("198.18.0.11",), (), (), "off"),
    )


def test_a_droplet_of_few_words() -> None:
    raw = [
        {"id": 1, "name": "new", "status": "new", "networks": {"v4": [], "v6": []}},
        {"id": 2, "name": "\x1b[2J"},
        {"id": 3, "name": "odd", "region": None, "networks": None},
        {
            "id": 4,
            "name": "lies",
            "networks": networks(("127.0.0.1", "private"), ("2001:db8::1", "private"), ("-oX=y", "public"), v6="10.0.0.1"),
        },
    ]
    found = answers.read_droplets(page(*raw))
    assert found == (
        Droplet(1, "new", None, (), status="new"),
        Droplet(2, "[2J", None, ()),
        Droplet(3, "odd", None, ()),
        Droplet(4, "lies", None, ()),
    )


@pytest.mark.parametrize("raw", [{"id": "1", "name": "x"}, {"name": "x"}, {"id": 1, "name": "x", "networks": {"v4": [{}]}}, [], None, 7])
def test_a_wrong_shape_is_garbled(raw: Any) -> None:
    with pytest.raises(TemporaryError, match="not what it publishes") as caught:
        answers.read_droplets(page(raw))
    assert caught.value.kind == "garbled"


@pytest.mark.parametrize(
    ("following", "number"),
    [(f"{LINK}page=2", 2), (f"{LINK}per_page=200&page=12&tag_name=web", 12), (f"{LINK}tag_name=page&page=3&per_page=20", 3), (None, None)],
)
def test_the_next_page(following: object, number: int | None) -> None:
    assert answers.read_next_page(page(following=following)) == number


def test_an_answer_without_links_is_the_last_page() -> None:
    assert answers.read_next_page(b'{"droplets":[]}') is None
    assert answers.read_next_page(b'{"links":{"pages":{}}}') is None


@pytest.mark.parametrize(
    "following", [7, "", "https://x/", f"{LINK}page=two", f"{LINK}page=2&page=3", f"{LINK}per_page=2", f"{LINK}page=-2"]
)
def test_an_odd_link_is_not_the_last_page(following: object) -> None:
    with pytest.raises(TemporaryError) as caught:
        answers.read_next_page(page(following=following))
    assert caught.value.kind == "garbled"


@pytest.mark.parametrize("body", [b'{"links":7}', b'{"links":{"pages":[]}}', b"[]", b"<html>", b""])
def test_odd_links_are_not_the_last_page(body: bytes) -> None:
    with pytest.raises(TemporaryError) as caught:
        answers.read_next_page(body)
    assert caught.value.kind == "garbled"


async def test_a_link_that_lost_the_tag_does_not_lead_to_every_droplet_of_the_account(tmp_path: Path) -> None:
    def answer(line: str, connection: ssl.SSLSocket, stop: threading.Event) -> None:
        first = page({"id": 1, "name": "a"}, following=f"{LINK}page=2")
        respond(200, first if line.split()[1].endswith("&page=1") else page({"id": 2, "name": "b"}))(line, connection, stop)

    with misbehaving(tmp_path, answer) as (api, seen):
        assert [droplet.id for droplet in await api.list_droplets("env:web")] == [1, 2]
    assert [line.split()[1] for line in seen] == [f"/v2/droplets?tag_name=env%3Aweb&per_page=200&page={number}" for number in (1, 2)]


@pytest.mark.parametrize("following", [1, 3, 900])
async def test_pages_that_do_not_follow_each_other_are_not_believed(tmp_path: Path, following: int) -> None:
    body = page({"id": 1, "name": "a"}, following=f"{LINK}page={following}")
    with misbehaving(tmp_path, respond(200, body)) as (api, seen):
        with pytest.raises(TemporaryError, match="don't follow each other"):
            await api.list_droplets("web")
    assert len(seen) == 1


async def test_a_list_without_end_is_given_up(tmp_path: Path) -> None:
    def answer(line: str, connection: ssl.SSLSocket, stop: threading.Event) -> None:
        number = int(line.split()[1].rpartition("=")[2])
        respond(200, page({"id": number, "name": "a"}, following=f"{LINK}page={number + 1}"))(line, connection, stop)

    with misbehaving(tmp_path, answer) as (api, seen):
        with pytest.raises(TemporaryError, match="more than 100"):
            await api.list_droplets("web")
    assert len(seen) == 100


async def test_a_droplet_that_moved_to_the_next_page_meanwhile_is_listed_once(tmp_path: Path) -> None:
    def answer(line: str, connection: ssl.SSLSocket, stop: threading.Event) -> None:
        a, b, c = ({"id": number, "name": "x"} for number in (1, 2, 3))
        body = page(a, b, following=f"{LINK}page=2") if line.split()[1].endswith("page=1") else page(b, c)
        respond(200, body)(line, connection, stop)

    with misbehaving(tmp_path, answer) as (api, _):
        assert [droplet.id for droplet in await api.list_droplets("web")] == [1, 2, 3]


async def test_the_time_is_for_all_pages_together(tmp_path: Path) -> None:
    with misbehaving(tmp_path, drip) as (api, seen):
        with pytest.raises(TemporaryError) as caught:
            await api.list_droplets("web", 0.2)
        assert caught.value.kind == "timeout"
        with pytest.raises(TemporaryError, match="took all the time"):
            await api.list_droplets("web", 0)
    assert len(seen) == 1


@pytest.mark.parametrize("fault", ["truncated", "cut-body", "503", "wrong-types", "bare", "empty", "html"])
async def test_a_later_page_that_fails_fails_the_list(tmp_path: Path, fault: str) -> None:
    async with serve(tmp_path) as region:
        for number in (3, 4, 5):
            region.region.droplets[number] = replace(region.region.droplets[1], id=number, tags=("web",))
        region.api.set_faults(f"list:split 2; list**:{fault}")
        with contextlib.closing(open_api(region)) as api, pytest.raises(FailoverError):
            await api.list_droplets("web")
        assert len(region.calls()) == 2


async def test_a_token_that_may_not_read_tags_is_told_what_it_lacks(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        region.api.set_faults("list**:403")
        with contextlib.closing(open_api(region)) as api, pytest.raises(RefusedError, match="tag:read as well") as caught:
            await api.list_droplets("web")
    assert (caught.value.kind, bool(caught.value.request_id)) == ("forbidden", True)
    async with serve(tmp_path) as region:
        with contextlib.closing(open_api(region, "wrong")) as api, pytest.raises(RefusedError) as caught:
            await api.list_droplets("web")
    assert "tag:read" not in caught.value.message


async def test_the_labs_api_lists_no_private_network_where_there_is_none(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        for private, kinds in (("10.110.0.11", ["public", "private"]), ("", ["public"])):
            written = shapes.droplet_json(replace(region.region.droplets[2], private=private), region.region)
            assert [network["type"] for network in written["networks"]["v4"]] == kinds


async def test_the_labs_api_lists_by_tag_or_by_name_and_not_by_both(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        known = Routes(region.region, {TOKEN}, 0.0)
        for query, is_known in (({"tag_name": "web"}, True), ({"name": "lb1"}, True), ({"tag_name": "web", "name": "lb1"}, False)):
            read = known.read(ApiRequest("GET", "/v2/droplets", query, f"Bearer {TOKEN}", b""))
            assert (read.refusal is None) is is_known
    assert routes.make_droplets_path("a&b", 2) == "droplets?tag_name=a%26b&per_page=200&page=2"
