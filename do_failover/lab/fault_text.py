"""Faults of the API as text, for `--api-fault` and for tests. Pure; what they mean is in faults.py.

    script = fault { (";" | newline) fault }
    fault  = which [ "*" times ] ":" what { " " word }
    which  = "*" | "any" | method [ " " kind ] | kind      method = GET | POST
                                                           kind   = ip | post | action | list | droplet | account
    times  = a number, or "*" for ever; once when absent

    what                                       words of its own
    ok                                         as usual: for the words that all have
    latency S                                  as usual, S seconds later
    hang-connect S | hang-tls [S] | reset-connect      to a connection, so only with "*"
    hang-before [S] | reset-before             the request does not get through; no answer
    hang-after [S] | reset-after               it is carried out; no answer
    hang-body [S] | hang-mid-body [S]          carried out; headers only, or half of the body
    cut-body                                   carried out; half of the body, then the connection ends
    400 401 404 409 500 502 503 504            form: json html empty message
    403                                        form; unpaid
    422                                        form; locked busy owns-this owns-another other-region no-anchor
    429                                        form; burst (with retry-after; the default) or hourly (without)
    truncated wrong-types bare html empty      carried out; its answer garbled
    no-droplet                                 only ip: a token without droplet:read
    slow S | errored | no-effect | effect-errored | done | vanish | endless
                                               only POST: the course of the action that it begins
    split N                                    only list: N items a page, whatever is asked

    words of all but those to a connection: after=S  retry-after=TEXT  reset=past|ahead|garbage|SECONDS  remaining=TEXT
    word of every status: landed (the request is carried out all the same)

A default form is json; html for 502 and 504, empty for 503: so they were seen.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from do_failover.lab import region as r
from do_failover.lab.faults import Delivery, Doorstep, Effect, ErrorAnswer, Fault, Form, Mangle
from do_failover.lab.region import Course, Status
from do_failover.lab.routes import Kind

if TYPE_CHECKING:
    from collections.abc import Callable

YEARS_S = 10 * 365 * 86400.0
_RESETS = {"past": -3600.0, "ahead": YEARS_S}
_KINDS = tuple(kind for kind in Kind if kind is not Kind.OTHER)
_KIND = "|".join(_KINDS)
_TIMES = r"(?:\*(?P<times>\*|[1-9][0-9]{0,5}))?"
_WHICH = re.compile(rf"(?:(?P<any>\*|any)|(?P<method>GET|POST)(?: (?P<of>{_KIND}))?|(?P<kind>{_KIND})){_TIMES}")
_SECONDS = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,6})?")
_EXAMPLE = "write for example POST*2:503, 'GET ip:hang-body', action**:404 or '*:429 retry-after=2'"

_ERRORS: dict[int, tuple[str, str, Form]] = {
    400: ("bad_request", "The request could not be understood.", Form.JSON),
    401: ("unauthorized", "Unable to authenticate you", Form.JSON),
    403: ("forbidden", "You are not authorized to perform this operation", Form.JSON),
    404: ("not_found", "The resource you requested could not be found.", Form.JSON),
    409: ("conflict", "The request could not be completed due to a conflict.", Form.JSON),
    422: ("unprocessable_entity", "The request could not be processed.", Form.JSON),
    429: ("too_many_requests", "API rate limit exceeded.", Form.JSON),
    500: ("server_error", "Unexpected server-side error", Form.JSON),
    502: ("bad_gateway", "Bad Gateway", Form.HTML),
    503: ("service_unavailable", "Service unavailable", Form.EMPTY),
    504: ("gateway_timeout", "Gateway Timeout", Form.HTML),
}
"""Status to `id`, `message` and form. Unseen: the words of 400, 409, 502, 503, 504, and 422's when no kind is named."""

_MESSAGES = {
    403: {"unpaid": "You are not allowed to perform this operation"},
    422: {
        "locked": r.IP_IS_PENDING,
        "busy": r.DROPLET_IS_PENDING,
        "owns-this": r.OWNS_THIS_ALREADY,
        "owns-another": r.OWNS_ANOTHER,
        "other-region": r.OTHER_REGION,
        "no-anchor": r.NO_ANCHOR,
    },
}

_PLAIN: dict[str, Effect] = {
    "ok": Effect(),
    "reset-connect": Effect(doorstep=Doorstep.RESET),
    "reset-before": Effect(is_carried_out=False, delivery=Delivery.RESET),
    "reset-after": Effect(delivery=Delivery.RESET),
    "cut-body": Effect(delivery=Delivery.CUT_BODY),
    **{str(mangle): Effect(mangle=mangle) for mangle in Mangle},
    "errored": Effect(course=Course(status=Status.ERRORED, takes_effect=False)),
    "no-effect": Effect(course=Course(takes_effect=False)),
    "effect-errored": Effect(course=Course(status=Status.ERRORED)),
    "done": Effect(course=Course(status=Status.DONE)),
    "vanish": Effect(course=Course(is_visible=False)),
    "endless": Effect(course=Course(ends=False)),
}
_HANGS: dict[str, Effect] = {
    "hang-tls": Effect(doorstep=Doorstep.HANG_TLS),
    "hang-before": Effect(is_carried_out=False, delivery=Delivery.HANG),
    "hang-after": Effect(delivery=Delivery.HANG),
    "hang-body": Effect(delivery=Delivery.HANG_BODY),
    "hang-mid-body": Effect(delivery=Delivery.HANG_MID_BODY),
}
_MEASURED: dict[str, Callable[[float], Effect]] = {
    "latency": lambda seconds: Effect(delay_s=seconds),
    "hang-connect": lambda seconds: Effect(doorstep=Doorstep.HANG_CONNECT, hang_s=seconds),
    "slow": lambda seconds: Effect(course=Course(time_s=seconds)),
}
_COURSES = ("slow", "errored", "no-effect", "effect-errored", "done", "vanish", "endless")
_ONLY = {**dict.fromkeys(_COURSES, Kind.POST), "no-droplet": Kind.IP, "split": Kind.LIST}

NAMES = (*_PLAIN, *_HANGS, *_MEASURED, "split", *map(str, _ERRORS))
"""Every word that can follow the colon."""


def parse_faults(text: str) -> tuple[Fault, ...]:
    """Read a script; an empty one is health. ValueError says which fault is wrong, why, and what could stand there."""
    lines = (line.strip() for part in text.splitlines() for line in part.split(";"))
    return tuple(_parse_fault(line) for line in lines if line)


def _parse_fault(line: str) -> Fault:
    which, colon, what = line.partition(":")
    asked = _WHICH.fullmatch(" ".join(which.split()))
    name, *words = what.split() or [""]
    if not colon or asked is None:
        message = f"{line!r} does not say which requests, how often, and what: {_EXAMPLE}"
        raise ValueError(message)
    if name not in NAMES:
        message = f"{line!r}: there is no fault {name!r}; there are {', '.join(NAMES)}"
        raise ValueError(message)
    method, kind = asked["method"], asked["of"] or asked["kind"]
    effect = _read_effect(_Words(line, words), name)
    _check_which(line, name, effect, _Which(method, Kind(kind) if kind else None, is_any=asked["any"] is not None))
    times = None if asked["times"] == "*" else int(asked["times"] or 1)
    return Fault(effect, method, Kind(kind) if kind else None, times, " ".join(line.split()))


@dataclass(frozen=True, slots=True)
class _Which:
    """The requests that a fault is for."""

    method: str | None
    kind: Kind | None
    is_any: bool


def _check_which(line: str, name: str, effect: Effect, which: _Which) -> None:
    """Refuse a fault that could never happen to the requests that it is for."""
    if effect.doorstep and not which.is_any:
        message = f"{line!r}: {name} happens before a request can be read, so it can be for any only: write *:{name}"
        raise ValueError(message)
    if which.method and which.kind and (which.method == "POST") != (which.kind is Kind.POST):
        message = f"{line!r}: no {which.method} is of the kind {which.kind}; only a POST is of the kind post"
        raise ValueError(message)
    only = _ONLY.get(name)
    kind = Kind.POST if which.method == "POST" else which.kind
    if only is not None and kind is not only:
        message = f"{line!r}: {name} is only for the kind {only}: write {only}:{name}"
        raise ValueError(message)


@dataclass(frozen=True, slots=True)
class _Words:
    """The words after the fault's name, taken one by one; what is left at the end is an error."""

    line: str
    words: list[str]

    def take(self, known: tuple[str, ...]) -> str | None:
        """Take the first of the known words that is there."""
        found = next((word for word in self.words if word in known), None)
        if found is not None:
            self.words.remove(found)
        return found

    def take_value(self, key: str) -> str | None:
        """Take KEY=VALUE."""
        found = next((word for word in self.words if word.startswith(f"{key}=")), None)
        if found is not None:
            self.words.remove(found)
        return None if found is None else self.must_be_text(found.removeprefix(f"{key}="), key)

    def take_seconds(self) -> float | None:
        """Take a plain number."""
        found = next((word for word in self.words if _SECONDS.fullmatch(word)), None)
        if found is not None:
            self.words.remove(found)
        return None if found is None else float(found)

    def must_be_text(self, value: str, key: str) -> str:
        """Refuse what can't stand in a header."""
        if not (value and value.isascii() and value.isprintable()):
            message = f"{self.line!r}: {key}= needs a value of plain characters"
            raise ValueError(message)
        return value

    def end(self) -> None:
        """Refuse what nobody took."""
        if self.words:
            message = f"{self.line!r}: {' '.join(self.words)!r} means nothing here, or stands there twice"
            raise ValueError(message)


def _read_effect(words: _Words, name: str) -> Effect:
    if name in _PLAIN:
        effect = _PLAIN[name]
    elif name in _HANGS:
        seconds = words.take_seconds()
        effect = _HANGS[name] if seconds is None else dataclasses.replace(_HANGS[name], hang_s=seconds)
    elif name in _MEASURED:
        effect = _MEASURED[name](_must_have(words, name, words.take_seconds()))
    elif name == "split":
        effect = Effect(per_page=_read_count(words))
    else:
        effect = _read_status(words, int(name))
    if effect.doorstep is None:
        effect = _read_common(words, effect)
    words.end()
    return effect


def _read_status(words: _Words, status: int) -> Effect:
    id_, message, form = _ERRORS[status]
    messages = _MESSAGES.get(status, {})
    message = messages.get(words.take(tuple(messages)) or "", message)
    chosen = words.take(tuple(Form))
    answer = ErrorAnswer(status, Form(chosen) if chosen else form, {"id": id_, "message": message})
    effect = Effect(is_carried_out=words.take(("landed",)) is not None, error=answer)
    if status != HTTPStatus.TOO_MANY_REQUESTS:
        return effect
    if words.take(("burst", "hourly")) == "hourly":
        return dataclasses.replace(effect, headers=(("ratelimit-remaining", "0"),), reset_s=1800.0)
    return dataclasses.replace(effect, headers=(("retry-after", words.take_value("retry-after") or "1"),))


def _read_common(words: _Words, effect: Effect) -> Effect:
    """Read the words that every fault of a request can have."""
    after, reset = words.take_value("after"), words.take_value("reset")
    headers = dict(effect.headers)
    for key, header in (("retry-after", "retry-after"), ("remaining", "ratelimit-remaining")):
        value = words.take_value(key)
        headers |= {} if value is None else {header: value}
    if after is not None:
        effect = dataclasses.replace(effect, delay_s=_number(words, "after", after))
    if reset == "garbage":
        headers["ratelimit-reset"] = "soon"
        effect = dataclasses.replace(effect, reset_s=None)
    elif reset is not None:
        effect = dataclasses.replace(effect, reset_s=_RESETS[reset] if reset in _RESETS else _number(words, "reset", reset))
    return dataclasses.replace(effect, headers=tuple(headers.items()))


def _read_count(words: _Words) -> int:
    count = _must_have(words, "split", words.take_seconds())
    if not (count >= 1 and count.is_integer()):
        message = f"{words.line!r}: split needs a whole number of items, 1 at least"
        raise ValueError(message)
    return int(count)


def _number(words: _Words, key: str, text: str) -> float:
    if not _SECONDS.fullmatch(text):
        message = f"{words.line!r}: {key}= needs seconds, not {text!r}"
        raise ValueError(message)
    return float(text)


def _must_have(words: _Words, name: str, value: float | None) -> float:
    if value is None:
        message = f"{words.line!r}: {name} needs a number: write {name} 5"
        raise ValueError(message)
    return value
