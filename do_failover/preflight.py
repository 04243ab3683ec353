"""Everything that would fail tonight, found today: each check on its own, each with the line that mends it.

Guarantees: nothing is changed anywhere; one check that fails stops no other. Not guaranteed: that what works now works
at three in the morning.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import resource
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from do_failover import peer_words, refresh
from do_failover.errors import FailoverError, PeerError, RefusedError
from do_failover.model import VrrpState, name_droplet
from do_failover.peer_words import PeerCommand

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from do_failover.config import FailoverConfig
    from do_failover.model import Identity, Peer
    from do_failover.refresh import PeerShell
    from do_failover.request import Api

_CALL_S = 10.0
_FILES_A_PEER, _FILES_MORE = 2, 100  # a login under way has two; and what everything else needs
_LOOK = "export LC_ALL=C; command -v ping >/dev/null || echo no ping; command -v ip >/dev/null || echo no ip; echo looked"
_NEIGHBOURS = Path("/proc/sys/net")
_STOCK_STARTUPS = 10  # sshd's MaxStartups begins to drop there
_PAIR = 2
_ACCEPT_S = 2.0


class Result(StrEnum):
    """How a check came out."""

    GOOD = "good"
    WARN = "warn"  # it works, but worse than it could
    BAD = "bad"  # it would fail


@dataclass(frozen=True, slots=True)
class Check:
    """One check: what was looked at, how it came out, and what mends it."""

    name: str
    result: Result
    sentence: str
    remedy: str | None = None
    exit_code: int = 0


def explain(name: str, error: FailoverError) -> Check:
    """Turn an error into a check that went badly: its sentence says what to do."""
    return Check(name, Result.BAD, error.message, exit_code=error.exit_code)


async def check_api(api: Api, entry: FailoverConfig, me: Identity | None) -> list[Check]:
    """Read what a failover reads: the IP and its owner, and its newest action."""
    name = f"API {entry.reserved_ip}"
    try:
        seen = await api.read_reserved_ip(entry.reserved_ip, _CALL_S)
    except FailoverError as error:
        return [explain(name, error)]
    if not seen.is_owner_visible:
        return [Check(name, Result.BAD, "the API hides the owner", "give the token the scope droplet:read", RefusedError.exit_code)]
    checks = [Check(name, Result.GOOD, f"the token is accepted; the owner is {name_droplet(seen.droplet_id)}")]
    if me is not None and me.region is not None and seen.region is not None and me.region != seen.region:
        sentence = f"it is of region {seen.region}, this Droplet of {me.region}: it can never be assigned here"
        checks.append(Check(name, Result.BAD, sentence, "correct reserved_ip", 6))
    try:
        await api.read_newest_action(entry.reserved_ip, _CALL_S)
    except FailoverError as error:
        sentence = f"its actions can't be read, so a refused assign can't be explained: {error.message}"
        checks.append(Check(name, Result.WARN, sentence, "give the token the scope actions:read"))
    return checks


def check_identity(me: Identity | None) -> Check:
    """Look at what the metadata service says of this Droplet."""
    if me is None or me.droplet_id is None:
        return Check("metadata", Result.BAD, "this Droplet is unknown", "set digitalocean.droplet_id and region", 6)
    if me.public_address is None and me.public_address_v6 is None:
        return Check("metadata", Result.WARN, f"Droplet {me.droplet_id} has no known public address: peers can't be made to ping it")
    if me.anchor_address is None and me.public_address is not None:
        return Check("metadata", Result.WARN, f"Droplet {me.droplet_id} shows no anchor IP, which a reserved IPv4 address needs")
    return Check("metadata", Result.GOOD, f"this is Droplet {me.droplet_id} in {me.region}")


def check_directory(name: str, path: Path) -> Check:
    """Look whether this user can write a directory, or make it."""
    place = path
    while not os.access(place, os.F_OK) and place != place.parent:
        place = place.parent
    if os.access(place, os.W_OK | os.X_OK):
        return Check(name, Result.GOOD, f"{path} can be written")
    return Check(name, Result.WARN, f"{path} can't be written by this user: failovers go on without it", f"check owner and mode of {place}")


async def check_peers(
    shell: PeerShell, peers: Sequence[Peer], limit_s: float, *, reserved: Sequence[tuple[str, str | None]] = ()
) -> list[Check]:
    """Make every peer do what a failover asks of it, side by side: log in, say its routes, ping us.

    `reserved`: each reserved IP, with this Droplet's public address of that family where it is known.
    """
    look = _Look(shell, limit_s, reserved)
    found = await asyncio.gather(*map(look.check, peers))
    bad = [check for check in found if check.result is not Result.GOOD]
    if not peers:
        return []
    sentence = f"{len(found) - len(bad)} of {len(peers)} peers are reached and have what it takes"
    if look.wide:
        sentence += f"; {len(look.wide)} of them by a key that opens a shell, which is wider than needed"
    remedy = "do-failover peers authorize" if look.wide else None
    return [Check("peers", Result.WARN if bad else Result.GOOD, sentence, remedy), *bad]


@dataclass(frozen=True, slots=True)
class _Look:
    """What each peer is asked; `wide` are those that gave us a shell."""

    shell: PeerShell
    limit_s: float
    reserved: Sequence[tuple[str, str | None]]
    wide: set[Peer] = field(default_factory=set)

    async def check(self, peer: Peer) -> Check:
        """Look at one; it fails alone."""
        name = f"peer {peer.host}"
        try:
            async with asyncio.timeout(self.limit_s):
                return await self._ask_for_tools(peer) or await self._ask_as_a_failover_does(peer) or Check(name, Result.GOOD, "reached")
        except PeerError as error:
            return explain(name, error)
        except TimeoutError:
            return Check(name, Result.BAD, f"{peer.host}: it did not answer within {self.limit_s:g} s", exit_code=PeerError.exit_code)

    async def _ask_for_tools(self, peer: Peer) -> Check | None:
        """Return what is amiss. A key that runs do-failover-peer answers with nothing, a shell with `looked`. Raises PeerError."""
        text = await self.shell.run(peer, PeerCommand(_LOOK, peer_words.NOTHING))
        name = f"peer {peer.host}"
        missing = re.findall(r"^no (ping|ip)$", text, re.MULTILINE)
        if missing:
            sentence = f"{peer.host}: {' and '.join(missing)} not found there"
            return Check(name, Result.BAD, sentence, "install iputils-ping and iproute2 there", PeerError.exit_code)
        if "looked" in text:
            self.wide.add(peer)
        elif text.strip():
            return Check(name, Result.WARN, f"{peer.host}: it runs something else than a shell for us")
        return None

    async def _ask_as_a_failover_does(self, peer: Peer) -> Check | None:
        """Return what is amiss. Raises PeerError, also where its list lacks an address."""
        name = f"peer {peer.host}"
        for address, us in self.reserved:
            view = await refresh.look_at_peer(self.shell, peer, us, address)
            if view.route_to_reserved is None:
                return Check(name, Result.WARN, f"{peer.host}: its kernel shows no route to {address}", "is iproute2 installed there?")
            if view.kind in {"byte", "plain"}:
                sentence = f"{peer.host}: its ping carries no pattern (BusyBox's), so it is refreshed, and never proven"
                return Check(name, Result.WARN, sentence, "install iputils-ping there")
        for us in dict.fromkeys(us for _, us in self.reserved if us is not None):
            if await refresh.is_silent(self.shell, peer, us, us) is None:
                sentence = (
                    f"{peer.host}: it hears nothing of this Droplet's public address {us}: ICMP is filtered, or its user may not ping"
                )
                return Check(
                    name, Result.WARN, sentence, 'allow ICMP from there (cloud firewall), or peers.probe = "tcp:443" (docs/proof.md)'
                )
        return None


def check_logins(logins: Mapping[str, int], concurrency: int) -> Check:
    """Look how many logins reach one sshd at once: from 10 on a stock MaxStartups drops some. `logins`: ours, by place."""
    place, most = max(logins.items(), key=lambda item: item[1], default=("", 0))
    most = min(most, concurrency)
    both = _PAIR * most
    if both <= _STOCK_STARTUPS:
        return Check(
            "logins", Result.GOOD, f"no sshd gets more than {most} at once from here, a jump host one: MaxStartups is not in the way"
        )
    sentence = (
        f"{place} gets {most} at once from each load balancer; by the usual MaxStartups (10:30:100) its sshd drops some of them, "
        f"unless more is set there"
    )
    return Check("logins", Result.WARN, sentence, f"MaxStartups {both}:30:{_PAIR * both} in its sshd_config")


async def check_probe(port: int, address: str, claim: str | None) -> Check:
    """Look whether something here accepts what peers send by peers.probe. `address`: where that arrives, on this Droplet."""
    name = f"probe tcp:{port}"
    try:
        async with asyncio.timeout(_ACCEPT_S):  # from the address itself: so it is never asked of another machine
            _, writer = await asyncio.open_connection(address, port, local_addr=(address, 0))
    except TimeoutError:
        reason = "nothing there answers"
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            return Check(name, Result.BAD, f"{address}, where peers' connections arrive, is not an address of this Droplet", exit_code=6)
        reason = "nothing listens there" if error.errno == errno.ECONNREFUSED else str(error.strerror)
    else:
        writer.close()
        return Check(name, Result.GOOD, f"connections to {address} port {port}, where the reserved IP's arrive, are accepted")
    remedy = f'let HAProxy `bind :{port}` on both load balancers, whoever is MASTER; or peers.probe = "icmp"'
    sentence = f"{address} port {port} accepts no connection ({reason}): peers that can't be seen by ICMP stay unproven"
    if claim is not None and claim != VrrpState.MASTER:
        return Check(name, Result.WARN, f"{sentence}, unless it is started when this {claim} becomes MASTER", remedy)
    return Check(name, Result.BAD, sentence, remedy, PeerError.exit_code)


def check_files(peers: int, pid: int | None) -> Check:
    """Look whether the daemon (or this process) may open a connection to each peer: by its hard limit, which it makes its own."""
    needed = peers * _FILES_A_PEER + _FILES_MORE
    whose, limit = "this process", resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if pid is not None:
        try:
            found = re.search(r"^Max open files +\d+ +(\d+)", Path(f"/proc/{pid}/limits").read_text(), re.MULTILINE)
            whose, limit = f"the daemon (process {pid})", int(found[1]) if found else limit
        except OSError:
            pass  # another user's: our own limit has to do
    limit = needed if limit == resource.RLIM_INFINITY else limit
    if limit >= needed:
        return Check("open files", Result.GOOD, f"{whose} may open {limit}; {peers} peers need {needed}")
    remedy = f"LimitNOFILE={needed} in do-failover.service (or `ulimit -n {needed}`)"
    return Check("open files", Result.BAD, f"{whose} may open {limit} files; {peers} peers need {needed}", remedy, 1)


def check_neighbours(peers: int, directory: Path = _NEIGHBOURS, family: int = 4) -> Check:
    """Look whether the kernel's neighbour table has room for all peers on the link: beyond gc_thresh3 it refuses new entries."""
    name = "neighbour table" if family == 4 else "neighbour table (IPv6)"  # noqa: PLR2004 - IPv4
    try:
        limit = int((directory / f"ipv{family}" / "neigh/default/gc_thresh3").read_text())
    except (OSError, ValueError):
        return Check(name, Result.GOOD, "no limit can be read here")
    needed = 2 * peers + 128
    if limit < needed:
        sentence = f"gc_thresh3 is {limit}, and {peers} peers may need {needed} entries: some would not be reached"
        remedy = f"net.ipv{family}.neigh.default.gc_thresh3 = {2 * needed} in /etc/sysctl.d/do-failover.conf, then sysctl --system"
        return Check(name, Result.BAD, sentence, remedy, 1)
    return Check(name, Result.GOOD, f"gc_thresh3 is {limit}; {peers} peers may need {needed}")


def check_keepalived(text: str, path: Path, fifo: str) -> list[Check]:
    """Read keepalived's configuration for what this tool needs of it. Comments don't count."""
    lines = [re.split(r"[#!]", line, maxsplit=1)[0].strip() for line in text.splitlines()]
    words = [line.split()[0] for line in lines if line]
    name = f"{path}"
    has_fifo = any(re.match(rf"vrrp_notify_fifo\s+\"?{re.escape(fifo)}\b", line) for line in lines)
    has_notify = any(line.startswith("notify ") and "do-failover" in line for line in lines)
    checks = []
    if not (has_fifo or has_notify):
        only = " (notify_master alone never says that mastership was lost)" if "notify_master" in words else ""
        remedy = f'vrrp_notify_fifo {fifo} in global_defs, or notify "/usr/bin/do-failover notify" in the instance'
        checks.append(Check(name, Result.BAD, f"nothing in it tells do-failover of events{only}", remedy, 6))
    else:
        by = " and ".join(word for word, there in (("vrrp_notify_fifo", has_fifo), ("notify", has_notify)) if there)
        checks.append(Check(name, Result.GOOD, f"events come by {by}"))
    if "vrrp_higher_prio_send_advert" not in words:
        sentence = "after a split the true MASTER may never hear that there were two, and the IP may stay with the other"
        checks.append(Check(name, Result.WARN, sentence, "vrrp_higher_prio_send_advert true in global_defs"))
    return checks
