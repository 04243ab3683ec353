"""From one HTTP request to one HTTP response of the API, without HTTP: exactly the published routes. Pure.

Anything else (another route, method, query word, body type, a trailing slash) is answered with a 4xx
*and* marked `is_unknown`: a client that sends it would not work with DigitalOcean, so a lab run fails.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from do_failover.lab import shapes
from do_failover.lab.region import Refusal, Region

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from do_failover.lab.shapes import Json

MAX_PER_PAGE = 200


@dataclass(frozen=True, slots=True)
class ApiRequest:
    """What matters of an HTTP request. `url` is scheme, host and path, for links."""

    method: str
    path: str
    query: Mapping[str, str]
    authorization: str
    body: bytes
    url: str = ""


@dataclass(frozen=True, slots=True)
class ApiResponse:
    """Status and JSON body (without `request_id`, which belongs to the wire)."""

    status: int
    body: Json
    is_unknown: bool = False


class _UnknownError(Exception):
    """A request that the published API does not have: why, and the status to answer."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


class Routes:
    """Answers requests out of a Region. `wall` is the epoch time of the Region's clock's zero."""

    def __init__(self, region: Region, token: str, wall: float) -> None:
        """Keep the state that is asked; the token is only compared."""
        self._region = region
        self._authorization = f"Bearer {token}"
        self._wall = wall
        ip, number = r"(?P<ip>[^/]+)", r"(?P<id>\d+)"
        self._table: list[tuple[str, re.Pattern[str], Callable[[_Call], ApiResponse]]] = [
            (method, re.compile(f"/v2/{path}"), answer)
            for method, path, answer in (
                ("GET", "reserved_ips", self._list_reserved_ips),
                ("GET", f"reserved_ips/{ip}", self._get_reserved_ip),
                ("POST", f"reserved_ips/{ip}/actions", self._post_action),
                ("GET", f"reserved_ips/{ip}/actions", self._list_actions),
                ("GET", f"reserved_ips/{ip}/actions/{number}", self._get_action),
                ("GET", f"actions/{number}", self._get_action),
                ("GET", "droplets", self._list_droplets),
                ("GET", f"droplets/{number}", self._get_droplet),
                ("GET", "account", self._get_account),
            )
        ]

    def answer(self, request: ApiRequest, now: float) -> ApiResponse:
        """Answer one request at `now`. Authentication comes before everything, as with DigitalOcean."""
        if request.authorization != self._authorization:
            return ApiResponse(401, {"id": "unauthorized", "message": "Unable to authenticate you"})
        try:
            return self._dispatch(request, now)
        except Refusal as refusal:
            return ApiResponse(refusal.status, {"id": refusal.id, "message": refusal.message})
        except _UnknownError as unknown:
            id_ = "not_found" if unknown.status == HTTPStatus.NOT_FOUND else "unprocessable_entity"
            return ApiResponse(unknown.status, {"id": id_, "message": unknown.message}, is_unknown=True)

    def _dispatch(self, request: ApiRequest, now: float) -> ApiResponse:
        methods = []
        for method, pattern, answer in self._table:
            match = pattern.fullmatch(request.path)
            if match and method == request.method:
                return answer(_Call(request, match.groupdict(), now))
            methods += [method] if match else []
        if methods:
            message = f"{request.path} has no {request.method}, only {', '.join(methods)}"
            raise _UnknownError(message, 405)
        message = f"there is no {request.path}"
        raise _UnknownError(message, 404)

    def _list_reserved_ips(self, call: _Call) -> ApiResponse:
        items = [shapes.reserved_ip_json(ip, self._region) for ip in self._region.reserved_ips.values()]
        return call.page("reserved_ips", items)

    def _get_reserved_ip(self, call: _Call) -> ApiResponse:
        call.take_query()
        ip = self._region.reserved_ip(call.parts["ip"])
        return ApiResponse(200, {"reserved_ip": shapes.reserved_ip_json(ip, self._region)})

    def _post_action(self, call: _Call) -> ApiResponse:
        body = call.json_object()
        match body:
            case {"type": "assign", "droplet_id": int(droplet_id), **more} if not more and not isinstance(droplet_id, bool):
                action = self._region.assign(call.parts["ip"], droplet_id, call.now)
            case {"type": "unassign", **more} if not more:
                action = self._region.unassign(call.parts["ip"], call.now)
            case _:
                message = 'the body must be {"type": "assign", "droplet_id": an integer} or {"type": "unassign"}'
                raise _UnknownError(message, 422)
        return ApiResponse(201, {"action": shapes.action_json(action, self._wall)})

    def _list_actions(self, call: _Call) -> ApiResponse:
        ip = self._region.reserved_ip(call.parts["ip"])
        mine = [action for action in reversed(self._region.actions) if action.reserved_ip == ip.address]
        return call.page("actions", [shapes.action_json(action, self._wall) for action in mine])

    def _get_action(self, call: _Call) -> ApiResponse:
        call.take_query()
        action = self._region.action(int(call.parts["id"]), call.parts.get("ip"))
        return ApiResponse(200, {"action": shapes.action_json(action, self._wall)})

    def _list_droplets(self, call: _Call) -> ApiResponse:
        droplets = list(self._region.droplets.values())
        if "tag_name" in call.request.query:
            droplets = [d for d in droplets if call.request.query["tag_name"] in d.tags]
        if "name" in call.request.query:
            droplets = [d for d in droplets if call.request.query["name"] == d.name]
        items = [shapes.droplet_json(droplet, self._region) for droplet in droplets]
        return call.page("droplets", items, "tag_name", "name")

    def _get_droplet(self, call: _Call) -> ApiResponse:
        call.take_query()
        droplet = self._region.droplet(int(call.parts["id"]))
        return ApiResponse(200, {"droplet": shapes.droplet_json(droplet, self._region)})

    def _get_account(self, call: _Call) -> ApiResponse:
        call.take_query()
        return ApiResponse(200, {"account": shapes.account_json()})


@dataclass(frozen=True, slots=True)
class _Call:
    """A request on its route: the path's parts, and the time."""

    request: ApiRequest
    parts: dict[str, str]
    now: float

    def take_query(self, *known: str) -> None:
        """Refuse query words that this route does not have."""
        odd = sorted(set(self.request.query) - set(known))
        if odd:
            message = f"{self.request.path} takes no query {', '.join(odd)}"
            raise _UnknownError(message, 422)

    def page(self, key: str, items: list[Json], *known: str) -> ApiResponse:
        """Answer the page of `items` that the query asks for."""
        self.take_query("page", "per_page", *known)
        page = self._count("page", 1)
        per_page = min(self._count("per_page", 20), MAX_PER_PAGE)
        kept = "&".join(f"{word}={self.request.query[word]}" for word in known if word in self.request.query)
        url = f"{self.request.url}?{kept}" if kept else self.request.url
        return ApiResponse(200, shapes.page_json(key, items, page, per_page, url))

    def json_object(self) -> dict[str, Any]:
        """Return the body as a JSON object."""
        self.take_query()
        try:
            body = json.loads(self.request.body)
        except ValueError:
            body = None
        if not isinstance(body, dict):
            message = "the body must be a JSON object"
            raise _UnknownError(message, 422)
        return body

    def _count(self, word: str, default: int) -> int:
        text = self.request.query.get(word, str(default))
        if not (text.isascii() and text.isdigit() and int(text) > 0):
            message = f"{word} must be a positive number, not {text!r}"
            raise _UnknownError(message, 422)
        return int(text)
