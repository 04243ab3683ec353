"""One process's way to the API: the transport with its delays and faults. Dead with its process.

A request that was sent arrives whatever becomes of the sender. What the real client promises is kept
here: an answer or an error within the time that it was given, and the kinds of errors of do_api/answers.py.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from do_failover.errors import FailoverError, RefusedError, TemporaryError
from do_failover.model import Action, Droplet, Refusal, ReservedIp
from tests.sim.cloud import IP
from tests.sim.law import IS_MANUAL

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.sim.cloud import Cloud
    from tests.sim.node import Node

T = TypeVar("T")
_LEAST_S = 0.05


@dataclass
class Door:
    """The API as one daemon process has it."""

    cloud: Cloud
    node: Node
    incarnation: int
    calls: int = 0
    read_owner: int | None = None

    # -- what the product asks for

    async def read_reserved_ip(self, address: str, timeout_s: float) -> ReservedIp:
        found = await self._call(timeout_s, self.cloud.read_ip)
        self.read_owner = found.droplet_id
        if self.node.incarnation == self.incarnation:
            self.cloud.law.note_read(self.node, None if found.is_locked else found.droplet_id)
        return found

    async def read_newest_action(self, address: str, timeout_s: float) -> Action | None:
        return await self._call(timeout_s, lambda: self.cloud.find(len(self.cloud.deeds)))

    async def read_action(self, address: str, action_id: int, timeout_s: float) -> Action:
        return await self._call(timeout_s, lambda: self.cloud.find(action_id))

    async def read_droplet(self, droplet_id: int, timeout_s: float) -> Droplet:
        return await self._call(timeout_s, lambda: Droplet(droplet_id, f"lb{droplet_id}", "nyc3", ()))

    async def explain_refusal(self, address: str, droplet_id: int, timeout_s: float) -> Refusal:
        found = await self.read_reserved_ip(address, timeout_s)
        if found.droplet_id != droplet_id and found.is_locked:
            return Refusal(f"{IP} is locked by {await self.read_newest_action(address, timeout_s)}", found)
        return Refusal(None, found)

    async def post_assign(self, address: str, droplet_id: int, timeout_s: float) -> Action:
        self.cloud.law.note_post(self.node, self.incarnation, droplet_id)
        self.cloud.trace.add(self.node.name, f"POST assign to Droplet {droplet_id}")
        self.node.trip("POST")
        by = f"person at {self.node.name}" if IS_MANUAL.get() else self.node.name
        return await self._call(timeout_s, lambda: self._assign(by, droplet_id), is_post=True)

    def count_calls(self) -> int:
        return self.calls

    def poll_factor(self) -> float:
        return 1.0

    # -- the transport

    def _assign(self, by: str, target: int) -> Action:
        if self.cloud.locked_by is not None or self.cloud.owner == target:
            msg = f"POST answered 422: the reserved IP {'has a pending event' if self.cloud.locked_by else 'is there already'}"
            raise TemporaryError(msg, kind="unprocessable")
        return Action(self.cloud.begin(by, target).id, self.cloud.locked_by.status)  # type: ignore[union-attr]

    async def _call(self, timeout_s: float, act: Callable[[], Any], *, is_post: bool = False) -> Any:
        """Send a request: it arrives, or not; the answer comes, or not; the caller waits `timeout_s` at most."""
        loop, rng, mood = asyncio.get_running_loop(), self.cloud.rng, self.cloud.mood
        if self.node.incarnation != self.incarnation:
            await loop.create_future()  # a dead process gets no further
        self.calls += 1
        answer: asyncio.Future[Any] = loop.create_future()
        is_dark = mood.is_down or self.node.is_dark
        there = mood.delay_s + mood.spread_s * rng.random()
        if rng.random() < mood.slow:
            there += 12.0 * rng.random()
        if not is_dark and rng.random() >= mood.lost:
            call_later = self.cloud.later if is_post else loop.call_later  # what may have an effect is waited for
            call_later(there, self._arrive, act, answer, is_post)
        timeout_s = max(_LEAST_S, timeout_s)
        timer = loop.call_later(timeout_s, _give, answer, _time_out(is_post=is_post))
        try:
            return await answer
        finally:
            timer.cancel()

    def _arrive(self, act: Callable[[], Any], answer: asyncio.Future[Any], is_post: bool) -> None:
        """Have the request's effect, and send the answer."""
        loop, rng, mood = asyncio.get_running_loop(), self.cloud.rng, self.cloud.mood
        is_bad = rng.random() < mood.errors
        if is_bad and rng.random() < 0.5:  # it had no effect
            result: Any = _draw_error(rng.random(), is_post=is_post)
        elif rng.random() < mood.refuses:
            result = RefusedError("403", kind="forbidden")
        else:
            try:
                result = act()
            except FailoverError as error:
                result = error
            if is_bad and not isinstance(result, FailoverError):  # it had one, and the answer says otherwise
                result = TemporaryError("the answer is not what the API publishes", kind="garbled", may_have_landed=is_post)
        if rng.random() >= mood.lost:
            loop.call_later(0.001 + mood.spread_s * rng.random(), _give, answer, result)


def _give(answer: asyncio.Future[Any], result: Any) -> None:
    if answer.done():
        return
    if isinstance(result, BaseException):
        answer.set_exception(result)
    else:
        answer.set_result(result)


def _time_out(*, is_post: bool) -> TemporaryError:
    return TemporaryError("no answer in time", kind="timeout", may_have_landed=is_post)


def _draw_error(draw: float, *, is_post: bool) -> TemporaryError:
    if draw < 0.25:
        return TemporaryError("429: API rate limit exceeded", kind="rate_limit")
    if draw < 0.5:
        return TemporaryError("429: API rate limit exceeded", kind="rate_limit", retry_after_s=1.0 + 12.0 * draw)
    return TemporaryError("503: service unavailable", kind="unavailable", may_have_landed=is_post)
