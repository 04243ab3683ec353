"""What the steps ask of the API, each as one awaitable with its own time-out."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

import digitalocean

from do_failover.do_api import answers, routes
from do_failover.do_api.transport import READ_TIMEOUT_S, Call, Transport
from do_failover.errors import PermanentError, RefusedError, TemporaryError
from do_failover.model import Action, Droplet, Refusal, ReservedIp

if TYPE_CHECKING:
    from do_failover.token import TokenSource


_SLOW_POLLS = 4.0
_PAGES_MOST = 100
LIST_TIMEOUT_S = 30.0


class DigitalOceanApi:
    """The part of the API that a failover uses. One instance, one kept connection, one event loop."""

    def __init__(self, *, api_url: str, tokens: TokenSource, ca_file: str | None) -> None:
        """No request is made yet; the token is read at each request."""
        self._transport = Transport(end_point=api_url, tokens=tokens, ca_file=ca_file)
        self._family: dict[str, routes.Family] = {}

    @property
    def calls(self) -> tuple[Call, ...]:
        """The requests so far, in order; the last thousand."""
        return tuple(self._transport.calls)

    async def read_reserved_ip(self, address: str, timeout_s: float = READ_TIMEOUT_S) -> ReservedIp:
        """GET the reserved IP: the truth about its owner. Falls back to the old route's name on 404."""
        request_id: str | None = None
        families = [self._family[address]] if address in self._family else list(routes.list_families(address))
        for family in families:
            path = routes.make_ip_path(family, address)
            try:
                body = await self._transport.call(partial(self._transport.send, "GET", path), timeout_s)
            except PermanentError as error:
                if error.kind != "not_found":
                    raise
                request_id = error.request_id
                continue
            self._family[address] = family
            return answers.read_reserved_ip(body, family.key)
        msg = f"the API knows no reserved IP {address} (404): is it of another team, or mistyped in reserved_ip?"
        raise PermanentError(msg, kind="not_found", request_id=request_id)

    async def post_assign(self, address: str, droplet_id: int, timeout_s: float = READ_TIMEOUT_S) -> Action:
        """POST the assign action."""
        try:
            return await self._post(address, droplet_id, timeout_s)
        except PermanentError as error:
            if error.kind != "not_found" or address in self._family:
                raise
        found = await self.read_reserved_ip(address, timeout_s)  # finds out by which name the API knows it
        if found.droplet_id == droplet_id:
            msg = f"{address} belongs to Droplet {droplet_id} already"
            raise TemporaryError(msg, kind="unprocessable")
        return await self._post(address, droplet_id, timeout_s)

    def prepare_assign(self, address: str, droplet_id: int) -> None:
        """Build the assign's request ahead, for whoever will have no time then. Nothing is sent."""
        self._transport.prepare("POST", routes.make_actions_path(self._family_of(address), address), routes.make_assign_body(droplet_id))

    async def _post(self, address: str, droplet_id: int, timeout_s: float) -> Action:
        path, body = routes.make_actions_path(self._family_of(address), address), routes.make_assign_body(droplet_id)
        return answers.read_action(await self._transport.call(lambda: self._transport.send("POST", path, body), timeout_s))

    async def read_action(self, address: str, action_id: int, timeout_s: float = READ_TIMEOUT_S) -> Action:
        """GET one action of the reserved IP."""
        path = routes.make_action_path(self._family_of(address), address, action_id)
        return answers.read_action(await self._transport.call(lambda: self._transport.send("GET", path), timeout_s))

    async def read_newest_action(self, address: str, timeout_s: float = READ_TIMEOUT_S) -> Action | None:
        """GET the IP's newest action; None when it has none, or for IPv6, which has no such list."""
        path = routes.make_newest_action_path(self._family_of(address), address)
        if path is None:
            return None
        return answers.read_newest_action(await self._get(path, timeout_s))

    async def explain_refusal(self, address: str, droplet_id: int, timeout_s: float = READ_TIMEOUT_S) -> Refusal:
        """Find out by reading why an assign was refused (422): up to four GETs."""
        family = self._family_of(address)
        reserved = await self.read_reserved_ip(address, timeout_s)
        if reserved.droplet_id == droplet_id:
            return Refusal(None, reserved)
        if reserved.is_locked:
            newest = await self.read_newest_action(address, timeout_s)
            return Refusal(
                f"{address} is locked by {newest or 'an action that the API does not list'}; it can be moved when that ended", reserved
            )
        busy = answers.read_running_actions(await self._get(routes.make_droplet_actions_path(droplet_id), timeout_s))
        if busy:
            return Refusal(f"Droplet {droplet_id} is busy with {busy[0]}; it can take the IP when that ended", reserved)
        held = {
            ip: owner
            for page in await self._get_pages(routes.make_list_path(family), timeout_s)
            for ip, owner in answers.read_holdings(page, f"{family.key}s").items()
        }
        other = next((ip for ip, owner in held.items() if owner == droplet_id and ip != address), None)
        if other is not None:
            sentence = f"Droplet {droplet_id} already holds reserved IP {other}, and can hold one: unassign {other}, or correct reserved_ip"
            return Refusal(sentence, reserved, is_final=True)
        return Refusal(None, reserved)

    async def _get(self, path: str, timeout_s: float) -> bytes:
        return await self._transport.call(lambda: self._transport.send("GET", path), timeout_s)

    async def _get_pages(self, path: str, timeout_s: float) -> list[bytes]:
        """GET a list, all of its pages, _PAGES_MOST at most. Only the query of a next page's URL is used, never its host."""
        pages: list[bytes] = []
        collection, _, first = path.partition("?")
        query: str | None = first
        while query is not None and len(pages) < _PAGES_MOST:
            pages.append(await self._get(f"{collection}?{query}", timeout_s))
            query = answers.read_next_query(pages[-1])
        return pages

    async def list_droplets(self, tag: str, timeout_s: float = LIST_TIMEOUT_S) -> tuple[Droplet, ...]:
        """GET the Droplets that carry a tag: all pages within that time, or an error; never a part of them.

        Droplets with a GPU are not in it: the API lists them apart, and not by tag.
        """
        clock = asyncio.get_running_loop()
        end = clock.time() + timeout_s
        found: dict[int, Droplet] = {}
        for turn in range(1, _PAGES_MOST + 1):
            path = routes.make_droplets_path(tag, turn)
            page = await self._get_tagged(path, min(READ_TIMEOUT_S, end - clock.time()))
            found |= {droplet.id: droplet for droplet in answers.read_droplets(page)}
            number = answers.read_next_page(page)
            if number is None:
                return tuple(found.values())
            if number != turn + 1:
                break
        msg = f"GET {path}: the pages of this list don't follow each other, or are more than {_PAGES_MOST}; its Droplets are not believed"
        raise TemporaryError(msg, kind="garbled")

    async def _get_tagged(self, path: str, timeout_s: float) -> bytes:
        if timeout_s <= 0:
            msg = f"GET {path}: the pages before it took all the time"
            raise TemporaryError(msg, kind="timeout")
        try:
            return await self._get(path, timeout_s)
        except RefusedError as error:
            if error.kind != "forbidden":
                raise
            msg = f"{error.message}; for peers.tag it needs tag:read as well"
            raise RefusedError(msg, kind=error.kind, request_id=error.request_id) from None

    def count_calls(self) -> int:
        """Return how many requests were made so far."""
        return self._transport.call_count

    async def read_droplet(self, droplet_id: int, timeout_s: float = READ_TIMEOUT_S) -> Droplet:
        """GET one Droplet."""
        try:
            return await self._transport.call(lambda: _load_droplet(self._transport, droplet_id), timeout_s)
        except PermanentError as error:
            if error.kind != "not_found":
                raise
            msg = f"the API knows no Droplet {droplet_id} (404): is it of another team, or destroyed?"
            raise PermanentError(msg, kind="not_found", request_id=error.request_id) from None

    def plan_assign(self, address: str, droplet_id: int, *, is_here: bool) -> tuple[str, ...]:
        """Return the calls that an assign would make, as text, without making them."""
        family, base = self._family_of(address), self._transport.end_point
        body = f'{{"type": "assign", "droplet_id": {droplet_id}}}'
        other = () if is_here else (f"GET  {base}droplets/{droplet_id}    (its region)",)
        return (
            *other,
            f"GET  {base}{routes.make_ip_path(family, address)}    (left out by `notify` when the metadata says that it is elsewhere)",
            f"POST {base}{routes.make_actions_path(family, address)} {body}    (unless this Droplet owns it already)",
            f"GET  {base}{routes.make_ip_path(family, address)}    (until it names the owner, which is the truth)",
            f"GET  {base}{routes.make_action_path(family, address, 0).removesuffix('0')}<action id>    (if it ended without that)",
        )

    def poll_factor(self) -> float:
        """Return by how much polls slow down: fourfold when the token's hourly calls run low. A POST never waits for it."""
        return _SLOW_POLLS if self._transport.is_nearly_limited else 1.0

    def close(self) -> None:
        """Close the kept connection."""
        self._transport.close()

    def _family_of(self, address: str) -> routes.Family:
        return self._family.get(address, routes.list_families(address)[0])


def _load_droplet(transport: Transport, droplet_id: int) -> Droplet:
    """Load by python-digitalocean's own Droplet. Blocking."""
    found = digitalocean.Droplet(id=droplet_id, token="")
    found.get_data = transport.get_data  # the library's loader, our session and errors
    try:
        found.load()
        region = found.region.get("slug") if isinstance(found.region, dict) else None
        public = tuple(str(net["ip_address"]) for net in found.networks["v4"] if net["type"] == "public")
        return Droplet(id=int(found.id), name=str(found.name), region=region, public_addresses=public)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        msg = f"GET droplets/{droplet_id}: the API's answer is not what it publishes ({type(error).__name__})"
        raise TemporaryError(msg, kind="garbled") from None
