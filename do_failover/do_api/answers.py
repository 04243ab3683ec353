"""Turns an HTTP answer of the API into a value, or into the error that it means. Pure.

    status                     error                              again?
    401                        RefusedError  token                no, in this round
    403                        RefusedError  forbidden            no
    404                        PermanentError not_found           no
    400, 405, other 4xx        PermanentError rejected            no
    409, 422                   TemporaryError unprocessable       after reading the owner: some pass with time
    429                        TemporaryError rate_limit          after retry-after, else back-off
    408, 5xx                   TemporaryError unavailable         back-off; a POST may have landed
    2xx that is not the shape  TemporaryError garbled             back-off; a POST may have landed

A body is read leniently (HTML, empty, truncated): the status alone decides, the body explains.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from do_failover.errors import FailoverError, PermanentError, RefusedError, TemporaryError
from do_failover.model import Action, ActionStatus, ReservedIp

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T")

LONGEST_WAIT_S = 3600.0  # the hourly limit's window: a longer retry-after is absurd
_TEXT_LIMIT = 200


class _Region(msgspec.Struct, frozen=True):
    slug: str


class _Network(msgspec.Struct, frozen=True):
    ip_address: str
    type: str


class _Networks(msgspec.Struct, frozen=True):
    v4: list[_Network] = []


class _Owner(msgspec.Struct, frozen=True):
    id: int
    networks: _Networks | None = None


class _ReservedIp(msgspec.Struct, frozen=True):
    ip: str
    droplet: _Owner | msgspec.UnsetType | None = msgspec.UNSET
    region: _Region | None = None
    region_slug: str | None = None
    locked: bool = False


class _Action(msgspec.Struct, frozen=True):
    id: int
    status: str


def read_reserved_ip(body: bytes, key: str) -> ReservedIp:
    """Read the object under `key`. A missing `droplet` is a hidden owner, null is unassigned."""
    raw = _decode(body, key, _ReservedIp)
    owner = raw.droplet
    visible = owner is not msgspec.UNSET
    droplet = owner if isinstance(owner, _Owner) else None
    return ReservedIp(
        address=raw.ip,
        region=raw.region.slug if raw.region is not None else raw.region_slug,
        droplet_id=droplet.id if droplet is not None else None,
        is_owner_visible=visible,
        is_locked=raw.locked,
        owner_public_address=_find_public(droplet, raw.ip),
    )


def read_action(body: bytes) -> Action:
    """Read an action; an unknown status reads as in progress: the owner decides anyway."""
    raw = _decode(body, "action", _Action)
    status = {"completed": ActionStatus.COMPLETED, "done": ActionStatus.COMPLETED, "errored": ActionStatus.ERRORED}
    return Action(raw.id, status.get(raw.status, ActionStatus.IN_PROGRESS))


def read_error(method: str, path: str, status: int, headers: Mapping[str, str], body: bytes) -> FailoverError:
    """Return the error that a failed answer means (the table above)."""
    said = _read_problem(body)
    request_id = _clean(said.get("request_id")) or _clean(headers.get("x-request-id"))
    message = _clean(said.get("message")) or "no explanation in its body"
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
    return seconds if 0.0 <= seconds <= LONGEST_WAIT_S else None


def _decode(body: bytes, key: str, kind: type[T]) -> T:
    try:
        document = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        return msgspec.json.decode(document[key], type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, KeyError) as error:
        reason = f"no {key} in it" if isinstance(error, KeyError) else str(error)
        msg = f"the API's answer is not what it publishes: {reason}"
        raise TemporaryError(msg, kind="garbled", may_have_landed=True) from None


def _find_public(owner: _Owner | None, reserved_ip: str) -> str | None:
    """Return the owner's own public address: its reserved IP may stand in the same list."""
    if owner is None or owner.networks is None:
        return None
    return next((net.ip_address for net in owner.networks.v4 if net.type == "public" and net.ip_address != reserved_ip), None)


def _read_problem(body: bytes) -> dict[str, Any]:
    try:
        document = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return {}
    return document if isinstance(document, dict) else {}


def _clean(value: object) -> str | None:
    """Make foreign text fit for a terminal: printable, one line, bounded."""
    if not isinstance(value, str) or not value:
        return None
    return "".join(char if char.isprintable() else " " for char in value[:_TEXT_LIMIT]).strip() or None
