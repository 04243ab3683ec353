"""DigitalOcean's state machine, and the routes to it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from do_failover.lab import region as r
from do_failover.lab.region import Droplet, Refusal, Region, ReservedIp, Status
from do_failover.lab.routes import ApiRequest, ApiResponse, Routes

IP = "203.0.113.47"
OTHER_IP = "203.0.113.48"


def droplet(number: int, *, region: str = "nyc3", tags: tuple[str, ...] = ()) -> Droplet:
    return Droplet(number, f"d{number}", region, f"198.18.0.{number}", f"10.110.0.{number}", "198.18.0.1", tags=tags)


def make_region() -> Region:
    droplets = {n: droplet(n, tags=("web",) if n < 3 else ()) for n in (1, 2, 3)} | {9: droplet(9, region="ams3")}
    return Region(droplets, {IP: ReservedIp(IP, "nyc3", 1), OTHER_IP: ReservedIp(OTHER_IP, "nyc3", None)}, action_time_s=2.0)


def ask(region: Region, method: str, path: str, body: object = None, *, now: float = 0.0, **more: Any) -> ApiResponse:
    path, _, words = path.partition("?")
    query = dict(word.split("=") for word in words.split("&") if word)
    raw = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else b""
    request = ApiRequest(method, path, query, more.get("authorization", "Bearer t"), raw, url=f"https://api{path}")
    return Routes(region, "t", wall=1_600_000_000.0).answer(request, now)


def assign(region: Region, to: int, now: float = 0.0, ip: str = IP) -> ApiResponse:
    return ask(region, "POST", f"/v2/reserved_ips/{ip}/actions", {"type": "assign", "droplet_id": to}, now=now)


def test_an_assign_takes_its_time_and_moves_the_ip_at_its_end() -> None:
    region = make_region()
    posted = assign(region, 2, now=10.0)
    action = posted.body["action"]
    assert (posted.status, action["status"], action["type"], action["completed_at"]) == (201, "in-progress", "assign_ip", None)
    assert ask(region, "GET", f"/v2/reserved_ips/{IP}").body["reserved_ip"]["locked"] is True
    assert region.due(11.9) == []
    (due,) = region.due(12.0)
    assert ask(region, "GET", f"/v2/reserved_ips/{IP}").body["reserved_ip"]["droplet"]["id"] == 1
    region.complete(due, 12.0)
    ip = ask(region, "GET", f"/v2/reserved_ips/{IP}").body["reserved_ip"]
    assert (ip["droplet"]["id"], ip["locked"]) == (2, False)
    for path in (f"/v2/actions/{action['id']}", f"/v2/reserved_ips/{IP}/actions/{action['id']}"):
        seen = ask(region, "GET", path).body["action"]
        assert (seen["status"], seen["started_at"], seen["completed_at"]) == ("completed", "2020-09-13T12:26:50Z", "2020-09-13T12:26:52Z")
    assert action["resource_id"] == 3405803823


def test_refusals_are_digitaloceans() -> None:
    region = make_region()
    for response, message in (
        (assign(region, 1), r.OWNS_THIS_ALREADY),
        (assign(region, 1, ip=OTHER_IP), r.OWNS_ANOTHER),
        (assign(region, 9), r.OTHER_REGION),
    ):
        assert (response.status, response.body["id"], response.body["message"]) == (422, "unprocessable_entity", message)
    assign(region, 2)
    assert assign(region, 3).body["message"] == "The floating IP already has a pending event."
    assert assign(region, 2, ip=OTHER_IP).body["message"] == "Droplet already has a pending event."
    for response in (assign(region, 77, ip=OTHER_IP), assign(region, 3, ip="203.0.113.1"), ask(region, "GET", "/v2/actions/5")):
        assert (response.status, response.body["id"], response.is_unknown) == (404, "not_found", False)


def test_unassign_leaves_nobody() -> None:
    region = make_region()
    assert ask(region, "POST", f"/v2/reserved_ips/{IP}/actions", {"type": "unassign"}).status == 201
    region.complete(region.due(2.0)[0], 2.0)
    assert ask(region, "GET", f"/v2/reserved_ips/{IP}").body["reserved_ip"]["droplet"] is None


def test_a_wrong_token_comes_before_everything() -> None:
    for authorization in ("", "Bearer wrong", "t"):
        response = ask(make_region(), "GET", "/v2/nonsense", authorization=authorization)
        assert (response.status, response.is_unknown) == (401, False)
        assert response.body == {"id": "unauthorized", "message": "Unable to authenticate you"}


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v2/nonsense", None),
        ("GET", f"/v2/floating_ips/{IP}", None),
        ("POST", f"/v2/reserved_ips/{IP}/actions/", {"type": "assign", "droplet_id": 2}),
        ("GET", "/v2/droplets/", None),
        ("GET", "/v2//droplets", None),
        ("DELETE", f"/v2/reserved_ips/{IP}", None),
        ("POST", f"/v2/reserved_ips/{IP}/actions", {"type": "assign", "droplet_id": "2"}),
        ("POST", f"/v2/reserved_ips/{IP}/actions", {"type": "assign", "droplet_id": True}),
        ("POST", f"/v2/reserved_ips/{IP}/actions", {"type": "assign"}),
        ("POST", f"/v2/reserved_ips/{IP}/actions", {"type": "assign", "droplet_id": 2, "force": True}),
        ("POST", f"/v2/reserved_ips/{IP}/actions", {"type": "move", "droplet_id": 2}),
        ("POST", f"/v2/reserved_ips/{IP}/actions", b"type=assign&droplet_id=2"),
        ("POST", f"/v2/reserved_ips/{IP}/actions", [1]),
        ("GET", "/v2/droplets?tag=web", None),
        ("GET", "/v2/droplets?page=0", None),
        ("GET", f"/v2/reserved_ips/{IP}?page=1", None),
    ],
)
def test_what_the_published_api_does_not_have_is_unknown_and_changes_nothing(method: str, path: str, body: object) -> None:
    region = make_region()
    response = ask(region, method, path, body)
    assert response.is_unknown
    assert 400 <= response.status < 500
    assert region.actions == []


def test_droplets_come_in_pages_and_by_tag() -> None:
    region = make_region()
    first = ask(region, "GET", "/v2/droplets?per_page=3").body
    assert [d["id"] for d in first["droplets"]] == [1, 2, 3]
    assert first["meta"] == {"total": 4}
    assert first["links"]["pages"]["next"] == "https://api/v2/droplets?page=2&per_page=3"
    second = ask(region, "GET", "/v2/droplets?per_page=3&page=2").body
    assert [d["id"] for d in second["droplets"]] == [9]
    assert "next" not in second["links"]["pages"]
    tagged = ask(region, "GET", "/v2/droplets?tag_name=web").body
    assert [d["id"] for d in tagged["droplets"]] == [1, 2]
    assert tagged["links"] == {}


def test_a_droplets_reserved_ip_is_one_more_public_address() -> None:
    networks = ask(make_region(), "GET", "/v2/droplets/1").body["droplet"]["networks"]["v4"]
    assert [(n["type"], n["ip_address"]) for n in networks] == [("public", "198.18.0.1"), ("private", "10.110.0.1"), ("public", IP)]


@given(st.lists(st.tuples(st.sampled_from(["assign", "unassign", "wait"]), st.sampled_from([IP, OTHER_IP]), st.sampled_from([1, 2, 3, 9]))))
def test_whatever_is_asked_one_droplet_has_one_ip_and_locks_match_actions(steps: list[tuple[str, str, int]]) -> None:
    region, now = make_region(), 0.0
    for what, ip, to in steps:
        now += 0.7
        try:
            if what == "assign":
                region.assign(ip, to, now)
            elif what == "unassign":
                region.unassign(ip, now)
        except Refusal as refusal:
            assert refusal.status == 422
        for action in region.due(now):
            region.complete(action, now)
        running = [a for a in region.actions if a.status is Status.IN_PROGRESS]
        assert sorted(a.reserved_ip for a in running) == sorted(i.address for i in region.reserved_ips.values() if i.is_locked)
        owners = [i.droplet_id for i in region.reserved_ips.values() if i.droplet_id is not None]
        assert len(owners) == len(set(owners))
        assert 9 not in owners
