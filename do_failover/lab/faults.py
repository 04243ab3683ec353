"""What goes wrong with the API, as data, and which request meets it. Pure; fault_text.py reads it from text.

A script is a list of faults in order. A request meets the first fault that it matches and that has times left; each
request meets one at most. So `POST:503; POST:504` fails the first POST and the second, and `action:404` beside
them waits for its own kind of request.

`hang-connect`, `hang-tls` and `reset-connect` happen to a connection, before any request can be read: the turn of
such a fault comes when no fault before it has times left. Until then, and while it lasts, nothing else waits for
it: requests on connections that are open already go on. So that the next request meets it, the answer before its
turn ends its connection, and idle connections are closed when a script begins with it.

A request that the published API does not have never meets a fault: it is answered as unknown, so that no fault hides it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from do_failover.lab.region import HEALTHY, Course
from do_failover.lab.routes import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from do_failover.lab.shapes import Json

FOR_EVER = math.inf


class Doorstep(StrEnum):
    """What happens to a connection before its first request.

    HANG_CONNECT: nothing is accepted and the listener's queue is full, so the kernel drops each SYN: `connect` itself
    hangs, as with a dead address. A dropped SYN can't be seen, so it is counted in seconds, not in connections. An
    attempt that the end finds waiting gets through with its next SYN (Linux: 1, 3, 7 s after its first).
    HANG_TLS: the connection is accepted, then the TLS ClientHello gets no answer.
    RESET: the connection is accepted, then reset.
    """

    HANG_CONNECT = "hang-connect"
    HANG_TLS = "hang-tls"
    RESET = "reset-connect"


class Delivery(StrEnum):
    """How far an answer gets."""

    WHOLE = "whole"
    HANG = "hang"
    """Nothing of it is sent."""
    HANG_BODY = "hang-body"
    """Status line and headers are sent, then nothing."""
    HANG_MID_BODY = "hang-mid-body"
    """Half of the body too, then nothing."""
    RESET = "reset"
    """Nothing is sent, and the connection is reset (RST)."""
    CUT_BODY = "cut-body"
    """Half of the body, then the connection is reset."""


class Mangle(StrEnum):
    """What becomes of a healthy answer's body."""

    TRUNCATED = "truncated"
    """The first half of the JSON, as a whole HTTP body."""
    WRONG_TYPES = "wrong-types"
    """Numbers are strings, strings numbers, booleans strings, arrays objects."""
    NO_DROPLET = "no-droplet"
    """No `droplet` in a reserved IP: the token lacks droplet:read."""
    BARE = "bare"
    """The object without its wrapping key; the published schema of GET reserved_ipv6 reads so."""
    HTML = "html"
    EMPTY = "empty"


class Form(StrEnum):
    """What an error's body is."""

    JSON = "json"
    HTML = "html"
    EMPTY = "empty"
    MESSAGE = "message"
    """JSON with nothing but a `message`."""


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """An answer that the fault makes up. `body` is for the forms JSON and MESSAGE, without `request_id`."""

    status: int
    form: Form
    body: Json


@dataclass(frozen=True, slots=True)
class Effect:
    """What a fault does to one request. The default does nothing.

    Steps, in this order: wait `delay_s`; carry the request out (its action takes `course`, its list comes in pages of
    `per_page`); take `error` or the machine's answer; `mangle` it; put `headers` and a ratelimit-reset of now + `reset_s` over
    its own; deliver it. A hang ends with the connection's reset after `hang_s`, or with the server. `doorstep` is
    instead of all that.
    """

    delay_s: float = 0.0
    is_carried_out: bool = True
    course: Course = HEALTHY
    per_page: int | None = None
    error: ErrorAnswer | None = None
    mangle: Mangle | None = None
    headers: tuple[tuple[str, str], ...] = ()
    reset_s: float | None = None
    delivery: Delivery = Delivery.WHOLE
    hang_s: float = FOR_EVER
    doorstep: Doorstep | None = None


NO_EFFECT = Effect()


@dataclass(frozen=True, slots=True)
class Fault:
    """One line of a script: which requests (None: any), how many times (None: for ever), and what. `text` is for the log."""

    effect: Effect
    method: str | None = None
    kind: Kind | None = None
    times: int | None = 1
    text: str = ""

    def matches(self, method: str, kind: Kind) -> bool:
        """Whether it is meant for such a request."""
        is_meant = self.method in (None, method) and self.kind in (None, kind)
        return is_meant and self.effect.doorstep is None and kind is not Kind.OTHER


class FaultScript:
    """Faults in order, and how often each has been met."""

    def __init__(self, faults: Iterable[Fault] = ()) -> None:
        """Nothing has been met yet."""
        self.faults = tuple(faults)
        self._left = [math.inf if fault.times is None else fault.times for fault in self.faults]

    def meet(self, method: str, kind: Kind) -> Fault | None:
        """Return the fault that this request meets, and count it."""
        for number, fault in enumerate(self.faults):
            if self._left[number] > 0 and fault.matches(method, kind):
                self._left[number] -= 1
                return fault
        return None

    def meet_connection(self) -> Fault | None:
        """Return the fault that a new connection meets, and count it."""
        number = self._turn()
        if number is None:
            return None
        self._left[number] -= 1
        return self.faults[number]

    @property
    def doorstep_next(self) -> Doorstep | None:
        """What happens to the next connection, if it is a connection's turn."""
        number = self._turn()
        return None if number is None else self.faults[number].effect.doorstep

    def _turn(self) -> int | None:
        """Return the first fault that has times left, if it happens to a connection."""
        first = next((number for number, left in enumerate(self._left) if left > 0), None)
        return None if first is None or self.faults[first].effect.doorstep is None else first
