"""The API's objects as JSON, in the published shape (DigitalOcean's OpenAPI description). Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from do_failover.lab.region import version_of

if TYPE_CHECKING:
    from do_failover.lab.region import Action, Droplet, Region, ReservedIp

Json = dict[str, Any]

PROJECT_ID = "746c6152-2fa2-11ed-92d3-27aaa54e4988"
_VPC = "760e09ef-dc84-11e8-981e-3cfdfeaae000"
_SIZE = "s-1vcpu-1gb"
_FEATURES = ["backups", "ipv6", "metadata", "install_agent", "storage", "image_transfer"]


def region_json(slug: str) -> Json:
    """Write a region."""
    return {"name": slug.upper(), "slug": slug, "features": _FEATURES, "available": True, "sizes": [_SIZE]}


def droplet_json(droplet: Droplet, region: Region) -> Json:
    """Write a Droplet. Its reserved IP is one more public address, after its own (godo issue 343).

    Whether a reserved IPv6 is listed likewise is unseen; here it is not.
    """
    v4 = [{"ip_address": droplet.public, "netmask": droplet.netmask, "gateway": droplet.public_gateway, "type": "public"}]
    if droplet.private:
        v4.append({"ip_address": droplet.private, "netmask": droplet.netmask, "gateway": "", "type": "private"})
    v6 = []
    if droplet.public_v6:
        v6.append({"ip_address": droplet.public_v6, "netmask": 64, "gateway": droplet.public_v6_gateway, "type": "public"})
    reserved_ip = region.reserved_ip_of(droplet.id)
    if reserved_ip is not None:
        v4.append({"ip_address": reserved_ip, "netmask": "255.255.240.0", "gateway": "", "type": "public"})
    return {
        "id": droplet.id,
        "name": droplet.name,
        "memory": 1024,
        "vcpus": 1,
        "disk": 25,
        "disk_info": [{"type": "local", "size": {"amount": 25, "unit": "gib"}}],
        "locked": False,
        "status": droplet.status,
        "kernel": None,
        "created_at": "2020-07-21T18:37:44Z",
        "features": ["private_networking"],
        "backup_ids": [],
        "next_backup_window": None,
        "snapshot_ids": [],
        "image": _IMAGE,
        "volume_ids": [],
        "size": {**_SIZE_OBJECT, "regions": [droplet.region]},
        "size_slug": _SIZE,
        "networks": {"v4": v4, "v6": v6},
        "region": region_json(droplet.region),
        "tags": list(droplet.tags),
        "vpc_uuid": _VPC,
    }


def reserved_ip_json(ip: ReservedIp, region: Region) -> Json:
    """Write a reserved IPv4 with its whole Droplet, or null. The old name has the same shape."""
    return {
        "ip": ip.address,
        "region": region_json(ip.region),
        "droplet": _owner_json(ip, region),
        "locked": ip.is_locked,
        "project_id": PROJECT_ID,
    }


def reserved_ipv6_json(ip: ReservedIp, region: Region) -> Json:
    """Write a reserved IPv6: no `locked`, and the region by its slug only."""
    return {
        "ip": ip.address,
        "reserved_at": "2024-11-20T11:08:30Z",
        "region_slug": ip.region,
        "droplet": _owner_json(ip, region),
    }


def action_json(action: Action, wall: float, v4_type: str = "reserved_ip") -> Json:
    """Write an action. `wall` is the wall-clock time of the machine's zero, in seconds since the epoch.

    `v4_type` is the name under which a reserved IPv4 is asked for. An action on a reserved IPv6 has a null `region`
    and no `project_id`, as in the published example.
    """
    written: Json = {
        "id": action.id,
        "status": str(action.status),
        "type": action.type,
        "started_at": _rfc3339(wall + action.started_at),
        "completed_at": None if action.completed_at is None else _rfc3339(wall + action.completed_at),
        "resource_id": action.droplet_id,
        "resource_type": "droplet",
        "region": region_json(action.region),
        "region_slug": action.region,
    }
    if not action.reserved_ip:
        return written
    number = int(ip_address(action.reserved_ip)) % (1 << 32)
    if version_of(action.reserved_ip) == 6:  # noqa: PLR2004  the family
        return written | {"resource_id": number, "resource_type": "reserved_ipv6", "region": None}
    return written | {"resource_id": number, "resource_type": v4_type, "project_id": PROJECT_ID}


def account_json() -> Json:
    """Write the account of the token."""
    return {
        "droplet_limit": 1100,
        "floating_ip_limit": 5,
        "reserved_ip_limit": 5,
        "volume_limit": 100,
        "email": "lab@example.com",
        "name": "lab",
        "uuid": "b6fr89dbf6d9156cace5f3c78dc9851d957381ef",
        "email_verified": True,
        "status": "active",
        "status_message": "",
        "team": {"uuid": "5df3e3004a17e242b7c20ca6c9fc25b701a47ece", "name": "My Team"},
    }


def page_json(key: str, items: list[Json], page: int, per_page: int, url: str) -> Json:
    """One page of a list, with `links` to its neighbours and the total."""
    last = max(1, -(-len(items) // per_page))
    pages: dict[str, str] = {}
    if page > 1:
        pages |= {"first": _page_url(url, 1, per_page), "prev": _page_url(url, page - 1, per_page)}
    if page < last:
        pages |= {"next": _page_url(url, page + 1, per_page), "last": _page_url(url, last, per_page)}
    links = {"pages": pages} if pages else {}
    return {key: items[(page - 1) * per_page : page * per_page], "links": links, "meta": {"total": len(items)}}


def _owner_json(ip: ReservedIp, region: Region) -> Json | None:
    return None if ip.droplet_id is None else droplet_json(region.droplets[ip.droplet_id], region)


def _page_url(url: str, page: int, per_page: int) -> str:
    joint = "&" if "?" in url else "?"
    return f"{url}{joint}page={page}&per_page={per_page}"


def _rfc3339(epoch: float) -> str:
    return datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


_IMAGE: Json = {
    "id": 63663980,
    "name": "12 x64",
    "distribution": "Debian",
    "slug": "debian-12-x64",
    "public": True,
    "regions": ["nyc3"],
    "created_at": "2023-06-12T15:33:26Z",
    "type": "base",
    "min_disk_size": 7,
    "size_gigabytes": 0.6,
    "description": "Debian 12 x64",
    "tags": [],
    "status": "available",
    "error_message": "",
}

_SIZE_OBJECT: Json = {
    "slug": _SIZE,
    "memory": 1024,
    "vcpus": 1,
    "disk": 25,
    "transfer": 1.0,
    "price_monthly": 6.0,
    "price_hourly": 0.00893,
    "available": True,
    "description": "Basic",
}
