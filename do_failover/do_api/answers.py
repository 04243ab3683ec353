"""Turns an HTTP answer of the API into a value, or into the error that it means. Pure.

    status                     error                              again?
    401                        RefusedError  token                no, in this round
    403                        RefusedError  forbidden            no
    404                        PermanentError not_found           no
    400, 405, other 4xx        PermanentError rejected            no
    409, 422                   TemporaryError unprocessable       after reading the owner: some pass with time
    429                        TemporaryError rate_limit          after retry-after or a near reset, else back-off
    408, 5xx                   TemporaryError unavailable         back-off; a POST may have landed
    2xx that is not the shape  TemporaryError garbled             back-off; a POST may have landed

A body is read leniently (HTML, empty, truncated): the status alone decides, the body explains.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from do_failover.errors import FailoverError, PermanentError, RefusedError, TemporaryError
from do_failover.foreign import clean_text, parse_unicast
from do_failover.model import Action, ActionStatus, Droplet, ReservedIp

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T")

_NEAR_RESET_S = 30.0
_PAGE_NUMBER = re.compile(r"[?&]page=([0-9]{1,9})(?=&|$)", re.ASCII)
LONGEST_WAIT_S = 3600.0  # the hourly limit's window: a longer retry-after is absurd


class _Region(msgspec.Struct, frozen=True):
    slug: str


class _Network(msgspec.Struct, frozen=True):
    ip_address: str
    type: str


class _Networks(msgspec.Struct, frozen=True):
    v4: list[_Network] = []
    v6: list[_Network] = []


class _Owner(msgspec.Struct, frozen=True):
    id: int
    networks: _Networks | None = None
    status: str | None = None


class _ReservedIp(msgspec.Struct, frozen=True):
    ip: str
    droplet: _Owner | msgspec.UnsetType | None = msgspec.UNSET
    region: _Region | None = None
    region_slug: str | None = None
    locked: bool = False


class _Action(msgspec.Struct, frozen=True):
    id: int
    status: str
    type: str | None = None
    started_at: str | None = None


def read_reserved_ip(body: bytes, key: str) -> ReservedIp:
    """Read the object under `key`. A missing `droplet` is a hidden owner, null is unassigned."""
    raw = _decode(body, key, _ReservedIp)
    owner = raw.droplet
    visible = owner is not msgspec.UNSET
    droplet = owner if isinstance(owner, _Owner) else None
    return ReservedIp(
        address=raw.ip,
        region=clean_text(raw.region.slug if raw.region is not None else raw.region_slug),
        droplet_id=droplet.id if droplet is not None else None,
        is_owner_visible=visible,
        is_locked=raw.locked,
        owner_public_address=_find_public(droplet, raw.ip),
        owner_status=clean_text(droplet.status) if droplet is not None else None,
    )


def read_action(body: bytes) -> Action:
    """Read an action; an unknown status reads as in progress: the owner decides anyway."""
    return _make_action(_decode(body, "action", _Action))


def read_newest_action(body: bytes) -> Action | None:
    """Read a list of actions and return the newest: the one with the highest id."""
    found = _decode(body, "actions", list[_Action])
    return _make_action(max(found, key=lambda action: action.id)) if found else None


def read_running_actions(body: bytes) -> tuple[Action, ...]:
    """Read a list of actions and return those that are in progress."""
    found = map(_make_action, _decode(body, "actions", list[_Action]))
    return tuple(action for action in found if action.status is ActionStatus.IN_PROGRESS)


class _Pages(msgspec.Struct, frozen=True):
    next: str | None = None


class _Links(msgspec.Struct, frozen=True):
    pages: _Pages = _Pages()


class _Page(msgspec.Struct, frozen=True):
    links: _Links = _Links()


class _Droplet(msgspec.Struct, frozen=True):
    id: int
    name: str
    region: _Region | None = None
    networks: _Networks | None = None
    status: str | None = None


def read_next_query(body: bytes) -> str | None:
    """Return the query of a list's next page; None at the last."""
    try:
        following = msgspec.json.decode(body, type=_Page).links.pages.next
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return following.partition("?")[2] or None if following is not None else None


def read_next_page(body: bytes) -> int | None:
    """Return the number of a list's next page; None at the last. Stricter than read_next_query: odd links are garbled.

    Only the number is taken: a link that lost the list's filter on its way would lead to every Droplet of the account.
    """
    try:
        following = msgspec.json.decode(body, type=_Page).links.pages.next
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        msg = f"the API's answer is not what it publishes: its links: {error}"
        raise TemporaryError(msg, kind="garbled") from None
    if following is None:
        return None
    numbers = _PAGE_NUMBER.findall(following)
    if len(numbers) != 1:
        msg = "the API's answer is not what it publishes: the link to a list's next page names no page"
        raise TemporaryError(msg, kind="garbled")
    return int(numbers[0])


def read_droplets(body: bytes) -> tuple[Droplet, ...]:
    """Read a list of Droplets. A Droplet that is new or has no private network has fewer addresses, or none."""
    return tuple(_make_droplet(raw) for raw in _decode(body, "droplets", list[_Droplet]))


def _make_droplet(raw: _Droplet) -> Droplet:
    networks = raw.networks or _Networks()
    return Droplet(
        id=raw.id,
        name=clean_text(raw.name) or str(raw.id),
        region=clean_text(raw.region.slug) if raw.region is not None else None,
        public_addresses=_find_addresses(networks.v4, "public", 4),
        private_addresses=_find_addresses(networks.v4, "private", 4),
        public_addresses_v6=_find_addresses(networks.v6, "public", 6),
        status=clean_text(raw.status),
    )


def _find_addresses(networks: list[_Network], kind: str, version: int) -> tuple[str, ...]:
    found = (parse_unicast(net.ip_address, version) for net in networks if net.type == kind)
    return tuple(address for address in found if address is not None)


def read_holdings(body: bytes, key: str) -> dict[str, int | None]:
    """Read a list of reserved IPs: which Droplet each belongs to."""
    found = _decode(body, key, list[_ReservedIp])
    return {raw.ip: raw.droplet.id if isinstance(raw.droplet, _Owner) else None for raw in found}


def _make_action(raw: _Action) -> Action:
    status = {"completed": ActionStatus.COMPLETED, "done": ActionStatus.COMPLETED, "errored": ActionStatus.ERRORED}
    known = status.get(raw.status, ActionStatus.IN_PROGRESS)
    return Action(raw.id, known, clean_text(raw.type), clean_text(raw.started_at))


def read_error(  # noqa: PLR0913 - an answer has that many parts
    method: str, path: str, status: int, headers: Mapping[str, str], body: bytes, *, now: float | None = None
) -> FailoverError:
    """Return the error that a failed answer means (the table above). `now` is the time of day, for ratelimit-reset."""
    said = _read_problem(body)
    request_id = clean_text(said.get("request_id")) or clean_text(headers.get("x-request-id"))
    message = clean_text(said.get("message")) or "no explanation in its body"
    what = f"{method} {path} answered {status}: {message}"
    if status == 401:  # noqa: PLR2004 - HTTP
        advice = "the API does not know this token; write a valid one to the token file"
        return RefusedError(f"{what}. {advice}", kind="token", request_id=request_id)
    if status == 403:  # noqa: PLR2004 - HTTP
        advice = (
            "the token may not do this: it needs reserved_ip:update and reserved_ip, droplet, regions, sizes, actions, "
            "image :read; an unpaid bill forbids it too"
        )
        return RefusedError(f"{what}. {advice}", kind="forbidden", request_id=request_id)
    if status == 404:  # noqa: PLR2004 - HTTP
        return PermanentError(what, kind="not_found", request_id=request_id)
    may_have_landed = method != "GET"
    if status in {409, 422}:
        return TemporaryError(what, kind="unprocessable", request_id=request_id)
    if status == 429:  # noqa: PLR2004 - HTTP
        wait_s = read_retry_after(headers.get("retry-after"))
        if wait_s is None:
            wait_s = read_reset(headers.get("ratelimit-reset"), now)
        return TemporaryError(what, kind="rate_limit", request_id=request_id, retry_after_s=wait_s)
    if status == 408 or status >= 500:  # noqa: PLR2004 - HTTP
        return TemporaryError(what, kind="unavailable", request_id=request_id, may_have_landed=may_have_landed)
    return PermanentError(what, kind="rejected", request_id=request_id)


def read_retry_after(text: str | None) -> float | None:
    """Return the seconds of a retry-after header; None where it is absent or absurd."""
    try:
        seconds = float(text) if text is not None else -1.0
    except ValueError:
        return None
    return seconds if 0.0 < seconds <= LONGEST_WAIT_S else None


def read_reset(text: str | None, now: float | None) -> float | None:
    """Return the seconds until a ratelimit-reset (Unix time); None where it is absent, past, or absurd.

    It has been seen in the past, and the limit slides: a reset that is far off is not waited for, but
    tried again with back-off, for calls get free one by one.
    """
    try:
        seconds = float(text) - (time.time() if now is None else now) if text is not None else -1.0
    except ValueError:
        return None
    return seconds if 0.0 < seconds <= _NEAR_RESET_S else None


def _decode(body: bytes, key: str, kind: type[T]) -> T:
    try:
        document = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        return msgspec.json.decode(document[key], type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, KeyError, RecursionError) as error:
        reason = f"no {key} in it" if isinstance(error, KeyError) else str(error)
        msg = f"the API's answer is not what it publishes: {reason}"
        raise TemporaryError(msg, kind="garbled", may_have_landed=True) from None


def _find_public(owner: _Owner | None, reserved_ip: str) -> str | None:
    """Return the owner's own public address: its reserved IP may stand in the same list."""
    if owner is None or owner.networks is None:
        return None
    version = 6 if ":" in reserved_ip else 4
    networks = owner.networks.v6 if ":" in reserved_ip else owner.networks.v4
    found = (parse_unicast(net.ip_address, version) for net in networks if net.type == "public")
    return next((address for address in found if address not in {None, reserved_ip}), None)


def _read_problem(body: bytes) -> dict[str, Any]:
    try:
        document = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}
