"""What the steps ask of the API, each as one awaitable with its own time-out."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import digitalocean

from do_failover.do_api import answers, routes
from do_failover.do_api.transport import READ_TIMEOUT_S, Call, Transport
from do_failover.errors import PermanentError, TemporaryError
from do_failover.model import Action, Droplet, ReservedIp

if TYPE_CHECKING:
    from do_failover.token import TokenSource


class DigitalOceanApi:
    """The part of the API that a failover uses. One instance, one kept connection, one event loop."""

    def __init__(self, *, api_url: str, tokens: TokenSource, ca_file: str | None) -> None:
        """No request is made yet; the token is read at each request."""
        self._transport = Transport(end_point=api_url, tokens=tokens, ca_file=ca_file)
        self._family: dict[str, routes.Family] = {}

    @property
    def calls(self) -> tuple[Call, ...]:
        """Every request so far, in order."""
        return tuple(self._transport.calls)

    async def read_reserved_ip(self, address: str, timeout_s: float = READ_TIMEOUT_S) -> ReservedIp:
        """GET the reserved IP: the truth about its owner. Falls back to the old route's name on 404."""
        families = [self._family[address]] if address in self._family else list(routes.list_families(address))
        for family in families:
            path = routes.make_ip_path(family, address)
            try:
                body = await self._transport.call(partial(self._transport.send, "GET", path), timeout_s)
            except PermanentError as error:
                if error.kind != "not_found":
                    raise
                continue
            self._family[address] = family
            return answers.read_reserved_ip(body, family.key)
        msg = f"the API knows no reserved IP {address} (404): is it of another team, or mistyped in reserved_ip?"
        raise PermanentError(msg, kind="not_found")

    async def post_assign(self, address: str, droplet_id: int, timeout_s: float = READ_TIMEOUT_S) -> Action:
        """POST the assign action."""
        path = routes.make_actions_path(self._family_of(address), address)
        body = routes.make_assign_body(droplet_id)
        return answers.read_action(await self._transport.call(lambda: self._transport.send("POST", path, body), timeout_s))

    async def read_action(self, address: str, action_id: int, timeout_s: float = READ_TIMEOUT_S) -> Action:
        """GET one action of the reserved IP."""
        path = routes.make_action_path(self._family_of(address), address, action_id)
        return answers.read_action(await self._transport.call(lambda: self._transport.send("GET", path), timeout_s))

    async def read_droplet(self, droplet_id: int, timeout_s: float = READ_TIMEOUT_S) -> Droplet:
        """GET one Droplet."""
        try:
            return await self._transport.call(lambda: _load_droplet(self._transport, droplet_id), timeout_s)
        except PermanentError as error:
            if error.kind != "not_found":
                raise
            msg = f"the API knows no Droplet {droplet_id} (404): is it of another team, or destroyed?"
            raise PermanentError(msg, kind="not_found", request_id=error.request_id) from None

    def plan_assign(self, address: str, droplet_id: int) -> tuple[str, ...]:
        """Return the calls that an assign would make, as text, without making them."""
        family, base = self._family_of(address), self._transport.end_point
        body = f'{{"type": "assign", "droplet_id": {droplet_id}}}'
        return (
            f"GET  {base}{routes.make_ip_path(family, address)}",
            f"POST {base}{routes.make_actions_path(family, address)} {body}    (unless this Droplet owns it already)",
            f"GET  {base}{routes.make_action_path(family, address, 0).removesuffix('0')}<action id>    (until it ended)",
            f"GET  {base}{routes.make_ip_path(family, address)}    (the owner, which is the truth)",
        )

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
