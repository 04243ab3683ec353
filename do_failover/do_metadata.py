"""The metadata service at 169.254.169.254: who and where am I. Local, instant, and only a hint.

One GET of `/metadata/v1.json` (the published shape) answers everything. The standard library's
client is enough for one unencrypted local request, and costs the hot path nothing.
"""

from __future__ import annotations

import asyncio
import http.client
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import msgspec

from do_failover.errors import TemporaryError
from do_failover.foreign import clean_text, parse_unicast
from do_failover.model import Identity
from do_failover.threads import run_in_thread

if TYPE_CHECKING:
    from do_failover.config import DigitalOceanConfig

TIMEOUT_S = 2.0
_OPTIONAL_S = 0.25  # where the configuration says all that is needed, the service is not waited for
_SIZE_LIMIT = 1 << 20


class _Address(msgspec.Struct, frozen=True):
    ip_address: str | None = None


class _PublicInterface(msgspec.Struct, frozen=True):
    ipv4: _Address = _Address()
    ipv6: _Address = _Address()
    anchor_ipv4: _Address = _Address()


class _Interfaces(msgspec.Struct, frozen=True):
    public: list[_PublicInterface] = []


class _Active(msgspec.Struct, frozen=True):
    active: bool | None = None
    ip_address: str | None = None


class _ReservedIp(msgspec.Struct, frozen=True):
    ipv4: _Active = _Active()
    ipv6: _Active = _Active()


class _Document(msgspec.Struct, frozen=True):
    droplet_id: int | None = None
    hostname: str | None = None
    region: str | None = None
    interfaces: _Interfaces = _Interfaces()
    reserved_ip: _ReservedIp | None = None
    floating_ip: _ReservedIp | None = None


async def read_identity(settings: DigitalOceanConfig, *, family: int = 4) -> Identity:
    """Ask the metadata service; what the configuration says wins over it.

    Raises TemporaryError when it doesn't answer and the configuration has no droplet_id.
    """
    try:
        found = await _ask(settings)
    except TemporaryError:
        if settings.droplet_id is None:
            raise
        found = _Document()
    return _make_identity(found, settings, family)


async def _ask(settings: DigitalOceanConfig) -> _Document:
    """Ask, for a bounded time as a whole: a service that drips its answer is as good as none."""
    url = settings.metadata_url.rstrip("/") + ".json"
    is_optional = settings.droplet_id is not None and settings.region is not None
    limit_s = _OPTIONAL_S if is_optional else TIMEOUT_S
    try:
        async with asyncio.timeout(limit_s):
            return await run_in_thread(lambda: _fetch(url))
    except TimeoutError:
        raise _explain(url, f"it did not answer within {limit_s:g} s") from None


def _fetch(url: str) -> _Document:
    # No proxy: the address is link-local.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=TIMEOUT_S) as answer:
            body = answer.read(_SIZE_LIMIT)
        return msgspec.json.decode(body, type=_Document)
    except (OSError, ValueError, http.client.HTTPException, msgspec.MsgspecError, RecursionError) as error:
        raise _explain(url, error.reason if isinstance(error, urllib.error.URLError) else error) from None


def _explain(url: str, reason: object) -> TemporaryError:
    msg = (
        f"the metadata service at {url} did not say who this Droplet is ({clean_text(str(reason))}); "
        f"is this a Droplet? Otherwise set digitalocean.droplet_id and region"
    )
    return TemporaryError(msg, kind="metadata")


def _make_identity(found: _Document, settings: DigitalOceanConfig, family: int) -> Identity:
    public = found.interfaces.public[0] if found.interfaces.public else _PublicInterface()
    holder = found.reserved_ip or found.floating_ip or _ReservedIp()
    active = holder.ipv4 if family == 4 else holder.ipv6  # noqa: PLR2004 - IPv4
    return Identity(
        droplet_id=settings.droplet_id if settings.droplet_id is not None else found.droplet_id,
        region=settings.region if settings.region is not None else clean_text(found.region),
        hostname=clean_text(found.hostname),
        public_address=parse_unicast(public.ipv4.ip_address, 4),
        public_address_v6=parse_unicast(public.ipv6.ip_address, 6),
        anchor_address=parse_unicast(public.anchor_ipv4.ip_address, 4),
        has_reserved_ip=active.active,
        reserved_ip=parse_unicast(active.ip_address),
    )
