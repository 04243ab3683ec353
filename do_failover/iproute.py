"""Asks this machine's kernel by the `ip` program of iproute2 (with -j: 4.16 or newer; BusyBox's has no -j).

Guarantees: no shell, a time limit, and no process left behind, also when the caller is cancelled. It only reads.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_interface
from typing import Final

from do_failover.errors import MissingProgramError, PermanentError, TemporaryError

LIMIT_S: Final = 5.0
_MORE_PLACES = "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"  # keepalived's scripts get its PATH, which may lack sbin


async def read_route(address: IPv4Address | IPv6Address, *, timeout_s: float = LIMIT_S) -> str:
    """Return what `ip -j route get ADDRESS` prints.

    Raises PermanentError (kind no_route) when the kernel has no way there, MissingProgramError without `ip`,
    TemporaryError when it doesn't end in time.
    """
    return await _ask("-j", "route", "get", str(address), kind="no_route", timeout_s=timeout_s)


async def read_addresses(interface: str, *, timeout_s: float = LIMIT_S) -> tuple[IPv4Interface | IPv6Interface, ...]:
    """Return the addresses of an interface with their prefix lengths, in the kernel's order.

    Raises PermanentError (kind no_interface) without such an interface, and as read_route.
    """
    text = await _ask("-j", "address", "show", "dev", interface, kind="no_interface", timeout_s=timeout_s)
    try:
        found = [info for link in json.loads(text) for info in link.get("addr_info", [])]
        return tuple(ip_interface(f"{info['local']}/{info['prefixlen']}") for info in found)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        msg = f"`ip -j address show` printed something unexpected ({type(error).__name__}): iproute2 4.16 is needed"
        raise PermanentError(msg, kind="ip_output") from error


async def _ask(*arguments: str, kind: str, timeout_s: float) -> str:
    command = f"ip {' '.join(arguments)}"
    process = await asyncio.create_subprocess_exec(
        _find_ip(),
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(timeout_s):
            out, complaint = await process.communicate()
    except TimeoutError as error:
        msg = f"`{command}` did not end within {timeout_s:g} s: this machine is overloaded; it is worth another try"
        raise TemporaryError(msg, kind="timeout") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        lines = complaint.decode(errors="replace").strip().splitlines() or ["it gives no reason"]
        reason = ascii(lines[0])[1:-1]
        msg = f"`{command}` failed: {reason}; run it by hand and look"
        raise PermanentError(msg, kind=kind)
    return out.decode(errors="replace")


def _find_ip() -> str:
    places = os.pathsep.join((os.environ.get("PATH", ""), _MORE_PLACES))
    found = shutil.which("ip", path=places)
    if found is None:
        msg = "there is no `ip` program: routes and addresses can't be read; install the package iproute2"
        raise MissingProgramError(msg)
    return found
