"""From one HTTP request to one HTTP response of the API, without HTTP: exactly the published routes. Pure.

    read      which route it is, and whether the request has the published shape
    answer    what the region answers to it

Anything else (another route, method, query word, body type, content type, a trailing slash) is answered with a 4xx
*and* marked `is_unknown`: a client that sends it would not work with DigitalOcean, so a lab run fails.

A reserved IPv6 has no list of its actions and no actions below its own path (the published description has
neither): GET /v2/actions/{id} follows them.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from typing import TYPE_CHECKING

from do_failover.lab import shapes
from do_failover.lab.region import HEALTHY, Names, Refusal, Region

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from do_failover.lab.region import Action, Course, ReservedIp
    from do_failover.lab.shapes import Json

MAX_PER_PAGE = 200
JSON_TYPE = "application/json"


class Kind(StrEnum):
    """What a request asks for. OTHER is none of the published routes."""

    IP = "ip"
    POST = "post"
    ACTION = "action"
    LIST = "list"
    DROPLET = "droplet"
    ACCOUNT = "account"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class ApiRequest:
    """What matters of an HTTP request. `url` is scheme, host and path, for links."""

    method: str
    path: str
    query: Mapping[str, str]
    authorization: str
    body: bytes
    url: str = ""
    content_type: str = JSON_TYPE
    raw_query: str = ""


@dataclass(frozen=True, slots=True)
class ApiResponse:
    """Status and JSON body (without `request_id`, which belongs to the wire)."""

    status: int
    body: Json
    is_unknown: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """A request that was read: its kind, and either how to answer it or what is wrong with it."""

    request: ApiRequest
    kind: Kind
    parts: Mapping[str, str]
    droplet_id: int | None = None
    route: _Route | None = None
    refusal: ApiResponse | None = None


class _UnknownError(Exception):
    """A request that the published API does not have: why, and the status to answer."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


@dataclass(frozen=True, slots=True)
class _Route:
    """One published route. `words` are its query words; the paged ones have page and per_page too."""

    method: str
    pattern: re.Pattern[str]
    kind: Kind
    answer: Callable[[_Asked], ApiResponse]
    words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Family:
    """One of the API's names for reserved IPs."""

    plural: str
    single: str
    version: int
    names: frozenset[Names]


_FAMILIES = {
    "reserved_ips": _Family("reserved_ips", "reserved_ip", 4, frozenset({Names.RESERVED, Names.BOTH})),
    "floating_ips": _Family("floating_ips", "floating_ip", 4, frozenset({Names.FLOATING, Names.BOTH})),
    "reserved_ipv6": _Family("reserved_ipv6s", "reserved_ipv6", 6, frozenset(Names)),
}


class Routes:
    """Answers requests out of a Region. `wall` is the epoch time of the Region's clock's zero."""

    def __init__(self, region: Region, tokens: set[str], wall: float) -> None:
        """Keep the state that is asked; the tokens are only compared, and may change."""
        self._region = region
        self._tokens = tokens
        self._wall = wall
        v4, every = "(?P<of>reserved_ips|floating_ips)", "(?P<of>reserved_ips|floating_ips|reserved_ipv6)"
        ip, number = "(?P<ip>[^/]+)", r"(?P<id>\d+)"
        paged = ("page", "per_page")
        self._table = [
            _Route(method, re.compile(f"/v2/{path}"), kind, answer, words)
            for method, path, kind, answer, words in (
                ("GET", every, Kind.LIST, self._list_reserved_ips, paged),
                ("GET", f"{every}/{ip}", Kind.IP, self._get_reserved_ip, ()),
                ("POST", f"{every}/{ip}/actions", Kind.POST, self._post_action, ()),
                ("GET", f"{v4}/{ip}/actions", Kind.LIST, self._list_ip_actions, paged),
                ("GET", f"{v4}/{ip}/actions/{number}", Kind.ACTION, self._get_action, ()),
                ("GET", "actions", Kind.LIST, self._list_actions, paged),
                ("GET", f"actions/{number}", Kind.ACTION, self._get_action, ()),
                ("GET", "droplets", Kind.LIST, self._list_droplets, ("tag_name", "name", *paged)),
                ("GET", f"droplets/{number}", Kind.DROPLET, self._get_droplet, ()),
                ("GET", f"droplets/{number}/actions", Kind.LIST, self._list_droplet_actions, paged),
                ("GET", "account", Kind.ACCOUNT, self._get_account, ()),
            )
        ]

    def read(self, request: ApiRequest) -> Call:
        """Read a request. Authentication comes before everything, as with DigitalOcean."""
        is_known_token = request.authorization.startswith("Bearer ") and request.authorization[7:] in self._tokens
        unauthorized = ApiResponse(401, {"id": "unauthorized", "message": "Unable to authenticate you"})
        try:
            route, parts = self._find(request)
            _check_query(request, route.words)
            droplet_id = _read_order(request) if route.kind is Kind.POST else None
        except _UnknownError as unknown:
            id_ = "not_found" if unknown.status == HTTPStatus.NOT_FOUND else "unprocessable_entity"
            refusal = ApiResponse(unknown.status, {"id": id_, "message": unknown.message}, is_unknown=True)
            return Call(request, Kind.OTHER, {}, refusal=refusal if is_known_token else unauthorized)
        return Call(request, route.kind, parts, droplet_id, route, None if is_known_token else unauthorized)

    def answer(self, call: Call, now: float, course: Course = HEALTHY, per_page: int | None = None) -> ApiResponse:
        """Answer at `now`. An action that begins takes that course; lists come in pages of `per_page` at most."""
        if call.refusal is not None or call.route is None:
            return call.refusal or ApiResponse(404, {})
        family = _FAMILIES.get(call.parts.get("of", ""))
        try:
            if family is not None and self._region.names not in family.names:
                raise Refusal.not_found()
            return call.route.answer(_Asked(call, family, now, course, min(per_page or MAX_PER_PAGE, MAX_PER_PAGE)))
        except Refusal as refusal:
            return ApiResponse(refusal.status, {"id": refusal.id, "message": refusal.message})

    def _find(self, request: ApiRequest) -> tuple[_Route, dict[str, str]]:
        methods = []
        for route in self._table:
            match = route.pattern.fullmatch(request.path)
            if match and route.method == request.method:
                return route, match.groupdict()
            methods += [route.method] if match else []
        if methods:
            message = f"{request.path} has no {request.method}, only {', '.join(methods)}"
            raise _UnknownError(message, 405)
        message = f"there is no {request.path}"
        raise _UnknownError(message, 404)

    def _list_reserved_ips(self, asked: _Asked) -> ApiResponse:
        family = asked.the_family
        mine = [ip for ip in self._region.reserved_ips.values() if ip.version == family.version]
        return asked.page(family.plural, [self._ip_json(ip) for ip in mine])

    def _get_reserved_ip(self, asked: _Asked) -> ApiResponse:
        return ApiResponse(200, {asked.the_family.single: self._ip_json(self._ip(asked))})

    def _post_action(self, asked: _Asked) -> ApiResponse:
        address, droplet_id = self._ip(asked).address, asked.call.droplet_id
        if droplet_id is None:
            action = self._region.unassign(address, asked.now, asked.course)
        else:
            action = self._region.assign(address, droplet_id, asked.now, asked.course)
        return ApiResponse(201, {"action": self._action_json(action, asked)})

    def _get_action(self, asked: _Asked) -> ApiResponse:
        address = self._ip(asked).address if asked.family else None
        action = self._region.action(int(asked.call.parts["id"]), address)
        return ApiResponse(200, {"action": self._action_json(action, asked)})

    def _list_ip_actions(self, asked: _Asked) -> ApiResponse:
        return self._actions(asked, self._region.newest_actions(reserved_ip=self._ip(asked).address))

    def _list_actions(self, asked: _Asked) -> ApiResponse:
        return self._actions(asked, self._region.newest_actions())

    def _list_droplet_actions(self, asked: _Asked) -> ApiResponse:
        droplet = self._region.droplet(int(asked.call.parts["id"]))
        return self._actions(asked, self._region.newest_actions(droplet_id=droplet.id))

    def _list_droplets(self, asked: _Asked) -> ApiResponse:
        query = asked.call.request.query
        droplets = list(self._region.droplets.values())
        if "tag_name" in query:
            droplets = [d for d in droplets if query["tag_name"] in d.tags]
        if "name" in query:
            droplets = [d for d in droplets if query["name"] == d.name]
        return asked.page("droplets", [shapes.droplet_json(droplet, self._region) for droplet in droplets])

    def _get_droplet(self, asked: _Asked) -> ApiResponse:
        droplet = self._region.droplet(int(asked.call.parts["id"]))
        return ApiResponse(200, {"droplet": shapes.droplet_json(droplet, self._region)})

    def _get_account(self, _asked: _Asked) -> ApiResponse:
        return ApiResponse(200, {"account": shapes.account_json()})

    def _ip(self, asked: _Asked) -> ReservedIp:
        """Find the reserved IP of the path; one of the other family is a 404."""
        ip = self._region.reserved_ip(asked.call.parts["ip"])
        if ip.version != asked.the_family.version:
            raise Refusal.not_found()
        return ip

    def _ip_json(self, ip: ReservedIp) -> Json:
        write = shapes.reserved_ip_json if ip.version == 4 else shapes.reserved_ipv6_json  # noqa: PLR2004  the family
        return write(ip, self._region)

    def _actions(self, asked: _Asked, actions: list[Action]) -> ApiResponse:
        return asked.page("actions", [self._action_json(action, asked) for action in actions])

    def _action_json(self, action: Action, asked: _Asked) -> Json:
        is_old = asked.family is _FAMILIES["floating_ips"] or self._region.names is Names.FLOATING
        return shapes.action_json(action, self._wall, "floating_ip" if is_old else "reserved_ip")


@dataclass(frozen=True, slots=True)
class _Asked:
    """A call on its route, with what the answer depends on."""

    call: Call
    family: _Family | None
    now: float
    course: Course
    max_per_page: int

    @property
    def the_family(self) -> _Family:
        """The family, on the routes that name one."""
        return _FAMILIES[self.call.parts["of"]]

    def page(self, key: str, items: list[Json]) -> ApiResponse:
        """Answer the page of `items` that the query asks for."""
        query = self.call.request.query
        page, per_page = int(query.get("page", "1")), min(int(query.get("per_page", "20")), self.max_per_page)
        kept = "&".join(f"{word}={value}" for word, value in query.items() if word not in {"page", "per_page"})
        url = f"{self.call.request.url}?{kept}" if kept else self.call.request.url
        return ApiResponse(200, shapes.page_json(key, items, page, per_page, url))


def _check_query(request: ApiRequest, known: tuple[str, ...]) -> None:
    """Refuse query words that the route does not have, and pages that are no positive number."""
    odd = sorted(set(request.query) - set(known))
    if odd:
        message = f"{request.path} takes no query {', '.join(odd)}"
        raise _UnknownError(message, 422)
    if {"tag_name", "name"} <= set(request.query):
        message = "tag_name can not be combined with name"
        raise _UnknownError(message, 422)
    for word in ("page", "per_page"):
        text = request.query.get(word, "1")
        if not (text.isascii() and text.isdigit() and int(text) > 0):
            message = f"{word} must be a positive number, not {text!r}"
            raise _UnknownError(message, 422)


def _read_order(request: ApiRequest) -> int | None:
    """Read an assign's Droplet out of the body; None is an unassign."""
    if request.content_type != JSON_TYPE:
        message = f"the content type must be {JSON_TYPE}, not {request.content_type!r}"
        raise _UnknownError(message, 415)
    try:
        body = json.loads(request.body)
    except ValueError:
        body = None
    match body:
        case {"type": "assign", "droplet_id": int(droplet_id), **more} if not more and not isinstance(droplet_id, bool):
            return droplet_id
        case {"type": "unassign", **more} if not more:
            return None
        case _:
            message = 'the body must be {"type": "assign", "droplet_id": an integer} or {"type": "unassign"}'
            raise _UnknownError(message, 422)
