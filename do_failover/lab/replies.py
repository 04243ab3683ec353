"""The bytes of an answer, healthy or as a fault wants it. Pure; time and request id are passed in."""

from __future__ import annotations

import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from do_failover.lab.faults import Effect, ErrorAnswer, Form, Mangle

if TYPE_CHECKING:
    from do_failover.lab.routes import ApiResponse

RATE_LIMIT = 5000
_JSON = "application/json; charset=utf-8"
_HTML = "text/html; charset=UTF-8"


@dataclass(frozen=True, slots=True)
class Reply:
    """What goes over the wire. `message` is the error's, for the log."""

    status: int
    headers: dict[str, str]
    body: bytes
    message: str

    @property
    def head(self) -> bytes:
        """The status line and headers, for a whole body."""
        lines = [f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}", f"content-length: {len(self.body)}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join([*lines, "", ""]).encode("ascii")


@dataclass(frozen=True, slots=True)
class Moment:
    """What an answer says of itself: its id, the wall-clock time (epoch, s), and how many requests the token has left."""

    request_id: str
    now: float
    remaining: int


def make_reply(response: ApiResponse, effect: Effect, moment: Moment) -> Reply:
    """Write the machine's `response`, or the effect's error instead of it, mangled and with the effect's headers."""
    error = effect.error or ErrorAnswer(response.status, Form.JSON, response.body)
    content_type, body = _write(error, moment.request_id)
    if effect.error is None and effect.mangle is not None:
        content_type, body = _mangle(effect.mangle, response, content_type, body)
    headers = {
        "content-type": content_type,
        "ratelimit-limit": str(RATE_LIMIT),
        "ratelimit-remaining": str(moment.remaining),
        "ratelimit-reset": str(int(moment.now + (3600.0 if effect.reset_s is None else effect.reset_s))),
        "x-request-id": moment.request_id,
    }
    message = str(error.body.get("message", "")) if error.form in {Form.JSON, Form.MESSAGE} else ""
    return Reply(error.status, headers | dict(effect.headers), body, message)


def _write(answer: ErrorAnswer, request_id: str) -> tuple[str, bytes]:
    match answer.form:
        case Form.EMPTY:
            return _JSON, b""
        case Form.HTML:
            return _HTML, _page(answer.status)
        case Form.MESSAGE:
            return _JSON, _dump({"message": answer.body["message"]})
        case Form.JSON:
            is_error = answer.status >= HTTPStatus.BAD_REQUEST
            return _JSON, _dump({**answer.body, "request_id": request_id} if is_error else answer.body)


def _mangle(mangle: Mangle, response: ApiResponse, content_type: str, body: bytes) -> tuple[str, bytes]:
    match mangle:
        case Mangle.TRUNCATED:
            return content_type, body[: len(body) // 2]
        case Mangle.WRONG_TYPES:
            return content_type, _dump(_swap_types(response.body))
        case Mangle.NO_DROPLET:
            hidden = {
                key: {k: v for k, v in value.items() if k != "droplet"} if isinstance(value, dict) else value
                for key, value in response.body.items()
            }
            return content_type, _dump(hidden)
        case Mangle.BARE:
            return content_type, _dump(next(iter(response.body.values()), None))
        case Mangle.HTML:
            return _HTML, _page(response.status)
        case Mangle.EMPTY:
            return content_type, b""


def _swap_types(value: Any) -> Any:  # noqa: ANN401  JSON
    """Give every value another type than it has; objects stay, so that the wrong types are inside them."""
    match value:
        case dict():
            return {key: _swap_types(inner) for key, inner in value.items()}
        case list():
            return {str(number): _swap_types(inner) for number, inner in enumerate(value)}
        case str():
            return len(value)
        case None:
            return ""
        case _:
            return str(value)


def _page(status: int) -> bytes:
    title = f"{status} {HTTPStatus(status).phrase}"
    return (
        f"<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n<center><h1>{title}</h1></center>\r\n"
        f"<hr><center>cloudflare</center>\r\n</body>\r\n</html>\r\n"
    ).encode()


def _dump(value: object) -> bytes:
    return json.dumps(value).encode()
