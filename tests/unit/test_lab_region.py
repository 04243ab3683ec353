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
IP6 = "2001:db8:47::1"
OTHER_IP6 = "2001:db8:47::2"


def droplet(number: int, *, region: str = "nyc3", tags: tuple[str, ...] = ()) -> Droplet:
    return Droplet(number, f"d{number}", region, f"198.18.0.{number}", f"10.110.0.{number}", "198.18.0.1", f"10.17.0.{number}", tags=tags)


def make_region() -> Region:
    droplets = {n: droplet(n, tags=("web",) if n < 3 else ()) for n in (1, 2, 3)} | {9: droplet(9, region="ams3")}
    owners = {IP: 1, OTHER_IP: None, IP6: 1, OTHER_IP6: None}
    return Region(droplets, {ip: ReservedIp(ip, "nyc3", owner) for ip, owner in owners.items()}, action_time_s=2.0)


def ask(region: Region, method: str, path: str, body: object = None, *, now: float = 0.0, **more: Any) -> ApiResponse:
    path, _, words = path.partition("?")
    query = dict(word.split("=") for word in words.split("&") if word)
    raw = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else b""
    request = ApiRequest(method, path, query, more.get("authorization", "Bearer t"), raw, url=f"https://api{path}")
    routes = Routes(region, {"t"}, wall=1_600_000_000.0)
    return routes.answer(routes.read(request), now)


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
        ("GET", f"/v2/reserved_ipv6/{IP6}/actions", None),
        ("GET", f"/v2/reserved_ipv6/{IP6}/actions/1", None),
        ("GET", f"/v2/reserved_ipv6s/{IP6}", None),
        ("POST", f"/v2/reserved_ipv6/{IP6}/actions", {"type": "assign", "droplet_id": "2"}),
        ("POST", f"/v2/floating_ips/{IP}/actions/", {"type": "assign", "droplet_id": 2}),
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


def test_a_reserved_ipv6_is_as_published() -> None:
    region = make_region()
    seen = ask(region, "GET", f"/v2/reserved_ipv6/{IP6}").body["reserved_ipv6"]
    assert set(seen) == {"ip", "reserved_at", "region_slug", "droplet"}
    assert (seen["ip"], seen["region_slug"], seen["droplet"]["id"]) == (IP6, "nyc3", 1)
    assert ask(region, "GET", f"/v2/reserved_ipv6/{OTHER_IP6}").body["reserved_ipv6"]["droplet"] is None
    listed = ask(region, "GET", "/v2/reserved_ipv6").body
    assert [ip["ip"] for ip in listed["reserved_ipv6s"]] == [IP6, OTHER_IP6]
    assert [ip["ip"] for ip in ask(region, "GET", "/v2/reserved_ips").body["reserved_ips"]] == [IP, OTHER_IP]
    for path in (f"/v2/reserved_ipv6/{IP}", f"/v2/reserved_ips/{IP6}"):
        assert ask(region, "GET", path).status == 404


def test_an_assign_of_a_reserved_ipv6_is_followed_account_wide() -> None:
    region = make_region()
    path = f"/v2/reserved_ipv6/{IP6}/actions"
    posted = ask(region, "POST", path, {"type": "assign", "droplet_id": 2}, now=10.0)
    action = posted.body["action"]
    assert (posted.status, action["type"], action["resource_type"]) == (201, "assign_ip", "reserved_ipv6")
    assert (action["region"], action["region_slug"], "project_id" in action) == (None, "nyc3", False)
    assert ask(region, "POST", path, {"type": "assign", "droplet_id": 3}, now=11.0).body["message"] == r.IP_IS_PENDING
    (due,) = region.due(12.0)
    region.complete(due, 12.0)
    assert ask(region, "GET", f"/v2/actions/{action['id']}").body["action"]["status"] == "completed"
    assert ask(region, "GET", f"/v2/reserved_ipv6/{IP6}").body["reserved_ipv6"]["droplet"]["id"] == 2
    assert ask(region, "POST", path, {"type": "assign", "droplet_id": 9}).body["message"] == r.OTHER_REGION
    assert region.reserved_ips[IP].droplet_id == 1


def test_a_droplet_owns_one_of_each_family_and_needs_an_anchor_ip_for_ipv4_only() -> None:
    region = make_region()
    region.droplets[5] = Droplet(5, "d5", "nyc3", "198.18.0.5", "10.110.0.5", "198.18.0.1")
    assert (assign(region, 5).status, assign(region, 5).body["message"]) == (422, r.NO_ANCHOR)
    assert ask(region, "POST", f"/v2/reserved_ipv6/{IP6}/actions", {"type": "assign", "droplet_id": 5}).status == 201
    (action,) = region.due(2.0)
    region.complete(action, 2.0)
    assert assign(region, 3, now=3.0, ip=OTHER_IP).status == 201


def test_a_busy_droplet_is_named_in_its_own_list() -> None:
    region = make_region()
    busy = region.begin_on_droplet(2, "snapshot", 1.0, 5.0)
    assert assign(region, 2, now=1.0).body["message"] == r.DROPLET_IS_PENDING
    assert assign(region, 3, now=1.0, ip=OTHER_IP).status == 201
    (listed,) = ask(region, "GET", "/v2/droplets/2/actions").body["actions"]
    assert (listed["type"], listed["status"], listed["resource_type"], listed["resource_id"]) == ("snapshot", "in-progress", "droplet", 2)
    assert (listed["completed_at"], listed["region"]["slug"]) == (None, "nyc3")
    assert ask(region, "GET", "/v2/droplets/3/actions").body["actions"] == []
    assert ask(region, "GET", "/v2/droplets/77/actions").status == 404
    region.complete(busy, 6.0)
    assert assign(region, 2, now=6.0).status == 201


def test_lists_of_actions_begin_with_the_newest() -> None:
    region = make_region()
    for number, to in enumerate((2, 1, 3)):
        assign(region, to, now=number * 10.0)
        region.complete(region.due(number * 10.0 + 5)[0], number * 10.0 + 5)
    assign(region, 2, now=40.0, ip=OTHER_IP)
    newest = region.first_action_id + 3
    assert [a["id"] for a in ask(region, "GET", f"/v2/reserved_ips/{IP}/actions").body["actions"]] == [newest - 1, newest - 2, newest - 3]
    assert [a["id"] for a in ask(region, "GET", "/v2/actions?per_page=2").body["actions"]] == [newest, newest - 1]


def test_the_old_names_have_the_same_shapes_under_their_own_key() -> None:
    region = make_region()
    region.names = r.Names.FLOATING
    gone = ask(region, "GET", f"/v2/reserved_ips/{IP}")
    assert (gone.status, gone.body["id"], gone.is_unknown) == (404, "not_found", False)
    assert ask(region, "POST", f"/v2/reserved_ips/{IP}/actions", {"type": "assign", "droplet_id": 2}).status == 404
    assert ask(region, "GET", f"/v2/floating_ips/{IP}").body["floating_ip"]["droplet"]["id"] == 1
    posted = ask(region, "POST", f"/v2/floating_ips/{IP}/actions", {"type": "assign", "droplet_id": 2})
    assert (posted.status, posted.body["action"]["resource_type"]) == (201, "floating_ip")
    number = posted.body["action"]["id"]
    for path in (f"floating_ips/{IP}/actions/{number}", f"actions/{number}"):
        assert ask(region, "GET", f"/v2/{path}").body["action"]["resource_type"] == "floating_ip"
    assert ask(region, "GET", f"/v2/floating_ips/{IP}/actions").body["actions"][0]["id"] == number
    assert ask(region, "GET", f"/v2/reserved_ipv6/{IP6}").status == 200
    region.names = r.Names.RESERVED
    assert ask(region, "GET", f"/v2/floating_ips/{IP}").status == 404
    region.names = r.Names.BOTH
    assert (
        ask(region, "GET", f"/v2/floating_ips/{IP}").body["floating_ip"] == ask(region, "GET", f"/v2/reserved_ips/{IP}").body["reserved_ip"]
    )


def test_a_body_of_another_content_type_is_unknown() -> None:
    request = ApiRequest("POST", f"/v2/reserved_ips/{IP}/actions", {}, "Bearer t", b'{"type": "unassign"}', content_type="text/plain")
    region = make_region()
    routes = Routes(region, {"t"}, wall=0.0)
    response = routes.answer(routes.read(request), 0.0)
    assert (response.status, response.is_unknown, region.actions) == (415, True, [])


@pytest.mark.parametrize(
    ("course", "owner", "status", "is_locked"),
    [
        (r.HEALTHY, 2, "completed", False),
        (r.Course(status=Status.ERRORED, takes_effect=False), 1, "errored", False),
        (r.Course(takes_effect=False), 1, "completed", False),
        (r.Course(status=Status.ERRORED), 2, "errored", False),
        (r.Course(status=Status.DONE), 2, "done", False),
        (r.Course(ends=False), 2, "in-progress", True),
        (r.Course(is_visible=False), 2, None, False),
    ],
)
def test_the_course_of_an_action(course: r.Course, owner: int, status: str | None, is_locked: bool) -> None:
    region = make_region()
    action = region.assign(IP, 2, 0.0, course)
    (due,) = region.due(2.0)
    region.complete(due, 2.0)
    assert region.due(1e12) == []
    seen = ask(region, "GET", f"/v2/actions/{action.id}").body.get("action", {"status": None})
    assert (region.reserved_ips[IP].droplet_id, seen["status"], region.reserved_ips[IP].is_locked) == (owner, status, is_locked)
    assert len(ask(region, "GET", f"/v2/reserved_ips/{IP}/actions").body["actions"]) == (0 if status is None else 1)


_STEPS = st.lists(
    st.tuples(st.sampled_from(["assign", "unassign", "busy", "wait"]), st.sampled_from([IP, OTHER_IP, IP6]), st.sampled_from([1, 2, 3, 9])),
)


@given(_STEPS)
def test_whatever_is_asked_one_droplet_has_one_ip_and_locks_match_actions(steps: list[tuple[str, str, int]]) -> None:
    region, now = make_region(), 0.0
    for what, ip, to in steps:
        now += 0.7
        try:
            if what == "assign":
                region.assign(ip, to, now)
            elif what == "unassign":
                region.unassign(ip, now)
            elif what == "busy":
                region.begin_on_droplet(to, "snapshot", now, 1.0)
        except Refusal as refusal:
            assert refusal.status == 422
        for action in region.due(now):
            region.complete(action, now)
        running = [a for a in region.actions if a.status is Status.IN_PROGRESS]
        assert sorted(a.reserved_ip for a in running if a.reserved_ip) == sorted(
            i.address for i in region.reserved_ips.values() if i.is_locked
        )
        for version in (4, 6):
            owners = [i.droplet_id for i in region.reserved_ips.values() if i.droplet_id is not None and i.version == version]
            assert len(owners) == len(set(owners))
            assert 9 not in owners
        pending = [a.droplet_id for a in running if a.droplet_id is not None]
        assert len(pending) == len(set(pending))
