"""How many of our logins reach one and the same sshd: what its MaxStartups has to let through. Connects to nobody.

It is not measured by holding connections open: since OpenSSH 9.8 an sshd shuts out an address that connects and doesn't log
in (PerSourcePenalties), which would be ourselves.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

from do_failover.errors import PeerError
from do_failover.ssh.dial import find_addresses
from do_failover.ssh.key_fetch import find_hosts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from do_failover.model import Peer
    from do_failover.ssh.key_fetch import Host
    from do_failover.ssh.settings import SshSettings

_AT_ONCE = 32


async def count_logins(peers: Sequence[Peer], settings: SshSettings) -> Mapping[str, int]:
    """Return the logins by address and port. A jump host gets one for all behind it; hosts that can't be found are left out."""
    jumps, found = await find_hosts(peers, settings)
    turns = asyncio.Semaphore(_AT_ONCE)
    logins = Counter(_describe(jump.way.host, jump) for jump in jumps)

    async def count(host: Host) -> None:
        if host.jumps:  # the jump host looks the name up
            logins[f"{_describe(host.way.host, host)}, by way of its jump host,"] += 1
            return
        try:
            async with turns, asyncio.timeout(settings.connect_timeout_s):
                addresses = await find_addresses(host.way.host, host.way.port)
        except (OSError, ValueError):  # the check of that peer says so
            return
        logins[_describe(str(addresses[0][1][0]), host)] += 1

    await asyncio.gather(*(count(host) for host in found if not isinstance(host, PeerError)))
    return logins


def _describe(address: str, host: Host) -> str:
    return f"{address} port {host.port}"
