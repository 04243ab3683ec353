"""What a plain client sees of each fault of a request, over real TLS, and what the region made of the request."""

from __future__ import annotations

import asyncio
import http.client
import json
import time
from pathlib import Path

import pytest

from do_failover.lab import fault_text as ft
from do_failover.lab import region as r
from tests.faulty_api import ACTIONS, ASSIGN, IMPATIENT_S, IP, IP6, PATIENT_S, stage


@pytest.mark.parametrize(
    ("fault", "status", "body"),
    [
        ("400", 400, {"id": "bad_request"}),
        ("401", 401, {"id": "unauthorized", "message": "Unable to authenticate you"}),
        ("403", 403, {"id": "forbidden", "message": "You are not authorized to perform this operation"}),
        ("403 unpaid", 403, {"id": "forbidden", "message": "You are not allowed to perform this operation"}),
        ("404", 404, {"id": "not_found"}),
        ("409", 409, {"id": "conflict"}),
        ("422", 422, {"id": "unprocessable_entity"}),
        ("422 locked", 422, {"message": "The floating IP already has a pending event."}),
        ("422 busy", 422, {"message": "Droplet already has a pending event."}),
        ("422 owns-this", 422, {"message": r.OWNS_THIS_ALREADY}),
        ("422 owns-another", 422, {"message": r.OWNS_ANOTHER}),
        ("422 other-region", 422, {"message": r.OTHER_REGION}),
        ("422 no-anchor", 422, {"message": r.NO_ANCHOR}),
        ("429", 429, {"id": "too_many_requests", "message": "API rate limit exceeded."}),
        ("500", 500, {"id": "server_error"}),
        ("503 json", 503, {"id": "service_unavailable"}),
    ],
)
async def test_an_error_in_json(tmp_path: Path, fault: str, status: int, body: dict[str, str]) -> None:
    async with stage(tmp_path, f"POST:{fault}") as s:
        seen = await s.client.assign()
        assert (seen.status, seen.json | body) == (status, seen.json)
        assert seen.json["request_id"] == seen.headers["x-request-id"]
        assert (s.region.actions, s.log()) == ([], [("POST", status, f"POST:{fault}")])
        assert (await s.client.assign()).status == 201


@pytest.mark.parametrize(
    ("fault", "status", "start"),
    [
        ("502", 502, b"<html>"),
        ("503", 503, b""),
        ("504", 504, b"<html>"),
        ("500 empty", 500, b""),
        ("422 message", 422, b'{"message": "The request could not be processed."}'),
        ("html", 200, b"<html>"),
        ("empty", 200, b""),
    ],
)
async def test_an_answer_that_is_not_the_apis_json(tmp_path: Path, fault: str, status: int, start: bytes) -> None:
    async with stage(tmp_path, f"ip:{fault}") as s:
        seen = await s.client.get()
        assert (seen.status, seen.body[: max(len(start), 1)]) == (status, start)
        assert seen.headers["content-type"].startswith("text/html" if start == b"<html>" else "application/json")
        assert (await s.client.get()).json["reserved_ip"]["ip"] == IP


@pytest.mark.parametrize(
    "fault", ["504 landed", "500 landed", "reset-after", "hang-after", "hang-body", "hang-mid-body", "cut-body", "truncated"]
)
async def test_a_post_that_lands_all_the_same(tmp_path: Path, fault: str) -> None:
    async with stage(tmp_path, f"POST:{fault}") as s:
        seen = await s.client.assign(answer_s=IMPATIENT_S if "hang" in fault else PATIENT_S)
        assert seen.status != 201 or seen.error or not _is_json(seen.body)
        await s.owner_becomes(2)
        assert (await s.client.get()).json["reserved_ip"]["droplet"]["id"] == 2


@pytest.mark.parametrize("fault", ["504", "reset-before", "hang-before", "503", "429"])
async def test_a_post_that_does_not_get_through(tmp_path: Path, fault: str) -> None:
    async with stage(tmp_path, f"POST:{fault}") as s:
        await s.client.assign(answer_s=IMPATIENT_S if "hang" in fault else PATIENT_S)
        await s.is_logged()
        assert s.region.actions == []
        assert s.server.requests[0].fault == f"POST:{fault}"
        assert (await s.client.assign()).status == 201


def _is_json(body: bytes) -> bool:
    try:
        json.loads(body)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(
    ("fault", "error", "status"),
    [
        ("reset-before", ConnectionResetError, 0),
        ("reset-after", ConnectionResetError, 0),
        ("hang-before", TimeoutError, 0),
        ("hang-after", TimeoutError, 0),
        ("hang-body", TimeoutError, 200),
        ("hang-mid-body", TimeoutError, 200),
        ("cut-body", http.client.IncompleteRead, 200),
        ("hang-after 0.02", ConnectionResetError, 0),
        ("hang-body 0.02", http.client.IncompleteRead, 200),
    ],
)
async def test_an_answer_that_does_not_arrive(tmp_path: Path, fault: str, error: type[BaseException], status: int) -> None:
    async with stage(tmp_path, f"ip:{fault}") as s:
        seen = await s.client.get(answer_s=IMPATIENT_S if error is TimeoutError else PATIENT_S)
        await s.is_logged()
        assert (seen.error and issubclass(seen.error, error), seen.status) == (True, status)
        assert len(seen.body) == (int(seen.headers["content-length"]) // 2 if fault in {"hang-mid-body", "cut-body"} else 0)
        assert s.log() == [("GET", status, f"ip:{fault}")]
        assert (await s.client.get()).status == 200


@pytest.mark.parametrize(
    ("fault", "retry_after", "remaining", "reset_from_now"),
    [
        ("429", "1", None, (3500, 3700)),
        ("429 burst retry-after=7", "7", None, (3500, 3700)),
        ("429 retry-after=soon", "soon", None, (3500, 3700)),
        ("429 hourly", None, "0", (1700, 1900)),
        ("429 hourly reset=past", None, "0", (-3700, -3500)),
        ("429 hourly reset=ahead", None, "0", (ft.YEARS_S - 100, ft.YEARS_S + 100)),
        ("429 hourly reset=600", None, "0", (500, 700)),
        ("429 hourly reset=garbage", None, "0", None),
        ("ok remaining=400", None, "400", (3500, 3700)),
        ("ok remaining=many reset=past", None, "many", (-3700, -3500)),
    ],
)
async def test_the_rate_limits_headers(
    tmp_path: Path, fault: str, retry_after: str | None, remaining: str | None, reset_from_now: tuple[float, float] | None
) -> None:
    clock = time.time()
    async with stage(tmp_path, f"*:{fault}") as s:
        seen = await s.client.get()
        assert seen.headers.get("retry-after") == retry_after
        assert seen.headers["ratelimit-remaining"] == (remaining or "4999")
        if reset_from_now is None:
            assert seen.headers["ratelimit-reset"] == "soon"
        else:
            assert reset_from_now[0] < int(seen.headers["ratelimit-reset"]) - clock < reset_from_now[1]


async def test_latency_is_before_the_effect_and_ends_with_the_server(tmp_path: Path) -> None:
    async with stage(tmp_path, "POST:latency 1000; GET:503 after=0.01") as s:
        assert (await s.client.assign(answer_s=IMPATIENT_S)).error is TimeoutError
        assert (s.region.actions, s.log()) == ([], [])
        assert (await s.client.get()).status == 503
    assert s.region.actions == []


async def test_an_answer_after_its_latency_is_the_usual_one(tmp_path: Path) -> None:
    async with stage(tmp_path, "POST:latency 0.02") as s:
        assert (await s.client.assign()).status == 201
        await s.owner_becomes(2)


async def test_a_truncated_answer_is_a_whole_body_of_half_a_json(tmp_path: Path) -> None:
    async with stage(tmp_path, "ip:truncated") as s:
        seen = await s.client.get()
        assert (seen.status, seen.error, int(seen.headers["content-length"])) == (200, None, len(seen.body))
        assert seen.body.startswith(b'{"reserved_ip": {')
        assert not _is_json(seen.body)


async def test_wrong_types_a_missing_droplet_and_a_bare_object(tmp_path: Path) -> None:
    async with stage(tmp_path, "ip:wrong-types; ip:no-droplet; ip:bare") as s:
        wrong = (await s.client.get()).json["reserved_ip"]
        assert (wrong["ip"], wrong["locked"], wrong["droplet"]["id"]) == (len(IP), "False", "1")
        hidden = (await s.client.get()).json["reserved_ip"]
        assert (hidden["ip"], "droplet" in hidden) == (IP, False)
        assert (await s.client.get()).json["ip"] == IP
        assert (await s.client.get()).json["reserved_ip"]["droplet"]["id"] == 1


@pytest.mark.parametrize(
    ("fault", "owner", "status"),
    [
        ("errored", 1, "errored"),
        ("no-effect", 1, "completed"),
        ("effect-errored", 2, "errored"),
        ("done", 2, "done"),
        ("vanish", 2, None),
        ("slow 0.05", 2, "completed"),
    ],
)
async def test_the_course_of_an_action(tmp_path: Path, fault: str, owner: int, status: str | None) -> None:
    async with stage(tmp_path, f"POST:{fault}") as s:
        posted = await s.client.assign()
        assert (posted.status, posted.json["action"]["status"]) == (201, "in-progress")
        await s.owner_becomes(owner)
        seen = await s.client.ask("GET", f"actions/{posted.json['action']['id']}")
        assert (seen.status, seen.json.get("action", {}).get("status")) == ((404, None) if status is None else (200, status))


async def test_a_slow_action_takes_its_own_time(tmp_path: Path) -> None:
    async with stage(tmp_path, "POST:slow 5000") as s:
        posted = await s.client.assign()
        assert s.region.actions[0].due_at - s.region.actions[0].started_at == pytest.approx(5000)
        assert (await s.client.get()).json["reserved_ip"]["locked"] is True
        assert (await s.client.ask("GET", f"{ACTIONS}/{posted.json['action']['id']}")).json["action"]["status"] == "in-progress"


async def test_an_endless_action_moves_the_ip_and_keeps_it_locked(tmp_path: Path) -> None:
    async with stage(tmp_path, "POST:endless") as s:
        posted = await s.client.assign()
        async with asyncio.timeout(PATIENT_S):
            while (await s.client.get()).json["reserved_ip"]["droplet"]["id"] != 2:
                pass
        assert (await s.client.ask("GET", f"actions/{posted.json['action']['id']}")).json["action"]["status"] == "in-progress"
        assert (await s.client.ask("POST", ACTIONS, {"type": "assign", "droplet_id": 1})).json["message"] == r.IP_IS_PENDING


async def test_split_pages_whatever_is_asked(tmp_path: Path) -> None:
    async with stage(tmp_path, "list**:split 1") as s:
        seen = await s.client.ask("GET", "droplets?per_page=200")
        assert ([d["id"] for d in seen.json["droplets"]], seen.json["meta"]) == ([1], {"total": 2})
        following = seen.json["links"]["pages"]["next"].removeprefix(s.server.url)
        seen = await s.client.ask("GET", following)
        assert ([d["id"] for d in seen.json["droplets"]], "next" in seen.json["links"]["pages"]) == ([2], False)


async def test_ipv6_meets_the_same_faults(tmp_path: Path) -> None:
    async with stage(tmp_path, "ip:no-droplet; POST:504 landed") as s:
        assert set((await s.client.ask("GET", f"reserved_ipv6/{IP6}")).json["reserved_ipv6"]) == {"ip", "reserved_at", "region_slug"}
        assert (await s.client.ask("POST", f"reserved_ipv6/{IP6}/actions", ASSIGN)).status == 504
        assert [action.reserved_ip for action in s.region.actions] == [IP6]


async def test_no_fault_hides_an_unknown_request(tmp_path: Path) -> None:
    async with stage(tmp_path, "***:503") as s:
        assert (await s.client.ask("POST", f"{ACTIONS}/", ASSIGN)).status == 404
        assert (await s.client.ask("POST", ACTIONS, {"type": "assign", "droplet_id": "2"})).status == 422
        assert (await s.client.assign()).status == 503
        assert [exchange.fault for exchange in s.server.unknown] == ["", ""]


async def test_faults_of_a_running_server_are_replaced(tmp_path: Path) -> None:
    async with stage(tmp_path, "***:503") as s:
        assert (await s.client.get()).status == 503
        with pytest.raises(ValueError, match="there is no fault"):
            s.server.set_faults("*:nonsense")
        assert (await s.client.get()).status == 503
        s.server.set_faults("")
        assert (await s.client.get()).status == 200


async def test_faults_that_cannot_be_read_stop_the_start(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no fault"):
        async with stage(tmp_path, "*:nonsense"):
            pass
