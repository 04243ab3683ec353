"""Who is refreshed: the fan-out file, inline hosts and the discovered Droplets of a tag, merged.

    find_peers    what a failover uses: reads what lies on this machine's disk; asks nobody
    merge_peers   the merge itself (pure)

Guarantees: a failover never waits for anybody to know its peers, and nothing here raises into one: what can't be used is
a nit (I9).
Not guaranteed: that a listed name (`app1`) is known as a tagged Droplet. Only addresses are compared, for a name may mean
another host to the resolver; a Droplet that is listed by name and tagged as well is refreshed twice, which harms nobody.
"""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from do_failover.config import expand_path
from do_failover.discovery import REFRESH, Discovery, check_tag, load_discovery, locate_discovery
from do_failover.errors import TemporaryError
from do_failover.model import Droplet, Identity, Peer
from do_failover.peerlist import MOST_PEERS, PeerList, canonical_host, parse_peers

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from do_failover.config import Config, DigitalOceanConfig, PeersConfig, Router

_OLD = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class SkippedPeer:
    """A host that is listed or tagged and is not refreshed, with the reason."""

    host: str
    reason: str


@dataclass(frozen=True, slots=True)
class FoundPeers:
    """The peers, numbered from 0; `sources` says for each from where it is known; who is skipped; and the nits."""

    peers: tuple[Peer, ...]
    skipped: tuple[SkippedPeer, ...] = ()
    nits: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()


def find_peers(config: Config, me: Identity | None = None, *, fresh: Discovery | None = None, now: datetime | None = None) -> FoundPeers:
    """Return the peers by what is on this machine's disk. Asks neither the API nor the metadata service; raises nothing.

    `me` is who this Droplet is, where the caller has just read it; else the configuration and the kept discovery say.
    `fresh` is a discovery that the caller has in its hand: the kept one is then not read.
    """
    settings, nits = config.peers, list[str]()
    listed = _read_list(settings, nits)
    kept = _recall(config, fresh, nits, now or datetime.now(UTC)) if settings.tag is not None else None
    if me is None:
        me = recall_identity(config.digitalocean, kept)
    if kept is not None and me.region is None:
        nits.append(f"the region of this Droplet isn't known, and tagged Droplets of every region count as peers; {REFRESH}")
    found = merge_peers(
        listed,
        kept,
        me=me,
        routers=[router for entry in config.failover for router in entry.routers],
        reserved={entry.reserved_ip for entry in config.failover},
        is_own=is_own_address,
    )
    if not found.peers and (settings.tag is None or kept is not None):
        nits.append("the fan-out list is empty: no Droplet will be refreshed; name them in peers.file, peers.hosts or peers.tag")
    return FoundPeers(found.peers, found.skipped, (*nits, *found.nits), found.sources)


def merge_peers(  # noqa: PLR0913 - all that decides who is a peer, by name
    listed: PeerList,
    discovered: Discovery | None,
    *,
    me: Identity | None,
    routers: Iterable[Router],
    reserved: Collection[str] = (),
    is_own: Callable[[str], bool] = lambda _: False,
) -> FoundPeers:
    """Merge the list and the discovered Droplets into peers; the first name of a Droplet counts.

    A listed host is kept as it is written (user, port, way), also where it is off or the other load balancer: somebody
    meant it. It is skipped only when it is this very Droplet, or known to be in another region. A tagged Droplet is
    reached by its private address, by a public one where it has no private one. `reserved`: addresses that
    are nobody's own; `is_own` tells whether an address is this machine's.
    """
    merging = _Merging(discovered, me or Identity(), tuple(routers), frozenset(reserved), is_own)
    sources = listed.sources or ("",) * len(listed.peers)
    for peer, source in zip(listed.peers, sources, strict=True):
        merging.take_listed(peer, source)
    for droplet in discovered.droplets if discovered is not None else ():
        merging.take_tagged(droplet)
    peers, nits = merging.peers[:MOST_PEERS], merging.nits
    if len(merging.peers) > MOST_PEERS:
        nits.append(f"there are {len(merging.peers)} peers, and {MOST_PEERS} is the most; the last ones are not refreshed")
    return FoundPeers(tuple(peers), tuple(merging.skipped), tuple(nits), tuple(merging.sources[: len(peers)]))


class _Merging:
    """Collects peers, and who is skipped and why."""

    def __init__(
        self,
        discovered: Discovery | None,
        me: Identity,
        routers: tuple[Router, ...],
        reserved: frozenset[str],
        is_own: Callable[[str], bool],
    ) -> None:
        self.peers: list[Peer] = []
        self.sources: list[str] = []
        self.skipped: list[SkippedPeer] = []
        self.nits: list[str] = []
        self._me, self._reserved, self._is_own = me, reserved, is_own
        self._own = {address for address in (me.public_address, me.public_address_v6, me.anchor_address) if address is not None}
        self._router_ids = {router.droplet_id for router in routers}
        self._router_addresses = {canonical_host(router.address) for router in routers}
        self._tag = discovered.tag if discovered is not None else ""
        self._asked_at = discovered.asked_at if discovered is not None else ""
        droplets = discovered.droplets if discovered is not None else ()
        self._by_address = {address: droplet for droplet in droplets for address in self._addresses(droplet)}
        self._taken: dict[int, dict[int, str]] = {}

    def take_listed(self, peer: Peer, source: str) -> None:
        host = canonical_host(peer.host)
        droplet = self._by_address.get(host)
        earlier = self._taken.get(droplet.id, {}).get(peer.port) if droplet is not None else None
        if droplet is not None:
            self._taken.setdefault(droplet.id, {}).setdefault(peer.port, peer.host)
        if self._is_me(host, droplet):
            self.skipped.append(SkippedPeer(peer.host, "it is this very Droplet"))
        elif droplet is not None and self._is_elsewhere(droplet):
            self.skipped.append(SkippedPeer(peer.host, self._say_region(droplet)))
        elif droplet is not None and earlier is not None:
            self.nits.append(f"{source}: {peer.host} is listed twice: it is {_describe(droplet)}, as {earlier} is")
        elif droplet is not None:
            self._add(peer.host, f"{source}, tag {self._tag}", droplet, user=peer.user, port=peer.port)
        else:
            self._add(peer.host, source, None, user=peer.user, port=peer.port)

    def take_tagged(self, droplet: Droplet) -> None:
        if droplet.id in self._taken:
            return
        self._taken[droplet.id] = {}
        addresses = self._addresses(droplet)
        reason = self._find_reason(droplet, addresses)
        if reason is None:
            self._add(addresses[0], f"tag {self._tag}", droplet)
        else:
            self.skipped.append(SkippedPeer(addresses[0] if addresses else droplet.name, f"{_describe(droplet)} {reason}"))

    def _find_reason(self, droplet: Droplet, addresses: tuple[str, ...]) -> str | None:
        if self._is_me(None, droplet):
            return "is this very Droplet"
        if droplet.id in self._router_ids or not self._router_addresses.isdisjoint(addresses):
            return "is the other load balancer (failover.routers)"
        if self._is_elsewhere(droplet):
            return f"is in {droplet.region}, this Droplet in {self._me.region}"
        if droplet.status not in {None, "active"}:
            return f"was {droplet.status} when the API was asked ({self._asked_at})"
        return None if addresses else "has no address that it could be reached at"

    def _add(self, host: str, source: str, droplet: Droplet | None, *, user: str | None = None, port: int = 22) -> None:
        peer = Peer(len(self.peers), host, user, port)
        if droplet is not None:
            public = tuple(self._drop_reserved((*droplet.public_addresses, *droplet.public_addresses_v6)))
            peer = replace(peer, droplet_id=droplet.id, name=droplet.name, public_addresses=public)
        self.peers.append(peer)
        self.sources.append(source)

    def _addresses(self, droplet: Droplet) -> tuple[str, ...]:
        """Return a Droplet's own addresses, the best for SSH first."""
        return tuple(self._drop_reserved((*droplet.private_addresses, *droplet.public_addresses, *droplet.public_addresses_v6)))

    def _drop_reserved(self, addresses: Iterable[str]) -> Iterable[str]:
        return (address for address in addresses if address not in self._reserved)

    def _is_me(self, host: str | None, droplet: Droplet | None) -> bool:
        if droplet is not None and droplet.id == self._me.droplet_id:
            return True
        addresses = (() if host is None else (host,)) if droplet is None else self._addresses(droplet)
        # One address is enough to ask the kernel for: a Droplet's addresses are this machine's all, or none is.
        return not self._own.isdisjoint(addresses) or any(map(self._is_own, addresses[:1])) or self._is_my_name(host)

    def _is_my_name(self, host: str | None) -> bool:
        name = (self._me.hostname or "").lower()
        return host is not None and host not in {"", "localhost"} and host in {name, name.partition(".")[0]}

    def _is_elsewhere(self, droplet: Droplet) -> bool:
        return None not in {droplet.region, self._me.region} and droplet.region != self._me.region

    def _say_region(self, droplet: Droplet) -> str:
        return f"{_describe(droplet)} is in {droplet.region}, this Droplet in {self._me.region}"


def _describe(droplet: Droplet) -> str:
    return f"Droplet {droplet.id} ({droplet.name})"


def is_own_address(address: str) -> bool:
    """Tell whether an address is this machine's: then the kernel would send from that very address. Nothing is sent.

    A loopback address is nobody's: behind 127.0.0.1:2222 may be a tunnel to any host.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        wanted = socket.inet_ntop(family, socket.inet_pton(family, address))  # never a name: nothing is resolved
        if wanted.startswith("127.") or wanted == "::1":
            return False
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((wanted, 9))
            return bool(sock.getsockname()[0] == wanted)
    except (OSError, ValueError):
        return False


def _read_list(settings: PeersConfig, nits: list[str]) -> PeerList:
    text = ""
    if settings.file is not None:
        try:
            path = expand_path(settings.file)
            if path.exists() and not path.is_file():
                raise IsADirectoryError(errno.EISDIR, "it is not a file")
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            nits.append(f"the fan-out list {settings.file} cannot be read ({reason}): its peers are not refreshed")
    found = parse_peers(text, str(settings.file), settings.hosts)
    nits += found.nits
    return found


def recall_identity(settings: DigitalOceanConfig, kept: Discovery | None) -> Identity:
    """Return who this Droplet is without asking anybody: by the configuration, else by who made the kept discovery.

    A discovery that another machine made (this one is a copy of it, or was renamed) says nothing about this one.
    """
    hostname = socket.gethostname()
    believed = kept if kept is not None and kept.hostname == hostname else None
    return Identity(
        droplet_id=settings.droplet_id if settings.droplet_id is not None or believed is None else believed.droplet_id,
        region=settings.region if settings.region is not None or believed is None else believed.region,
        hostname=hostname,
    )


def recall_kept_identity(config: Config) -> Identity:
    """Do as recall_identity, with the discovery that is kept on disk."""
    try:
        kept = load_discovery(locate_discovery(config))
    except TemporaryError:
        kept = None
    return recall_identity(config.digitalocean, kept)


def _recall(config: Config, fresh: Discovery | None, nits: list[str], now: datetime) -> Discovery | None:
    """Return the discovery of the configured tag, and say what is wrong with it."""
    tag = config.peers.tag or ""
    wrong = check_tag(tag)
    if wrong is not None:
        nits.append(wrong)
        return None
    try:
        kept = fresh or load_discovery(locate_discovery(config))
    except TemporaryError as error:
        nits.append(error.message)
        return None
    if kept is None or kept.tag != tag:
        other = f" (those of tag {kept.tag} are)" if kept is not None else ""
        nits.append(f"the Droplets of tag {tag} are not known yet{other}, and only listed peers are refreshed; {REFRESH}")
        return None
    if not kept.droplets:
        nits.append(f"no Droplet carried the tag {tag} when the API was asked ({kept.asked_at}): tag the peers, or correct peers.tag")
    if now - datetime.fromisoformat(kept.asked_at) > _OLD:
        nits.append(f"the Droplets of tag {tag} were last asked for at {kept.asked_at}: newer ones are not refreshed; {REFRESH}")
    return kept
