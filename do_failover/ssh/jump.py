"""Jump hosts (ssh_config's ProxyJump): one shared connection each, for all peers behind it.

Opened once, kept, opened anew when it was cut. A stock bastion's MaxStartups is 10: of 60 peers that each bring a
connection of their own, 35 were lost (measured).

Guarantees: a jump host's key is checked like a peer's, by our known_hosts, whatever an ssh_config says; at most one
login under way for each jump host; its failure is the PeerError of each peer behind it and names it. A way that leads
in a circle, or over more than MOST_JUMPS hosts, is refused. A jump host that went silent is noticed within 4 s.

As in OpenSSH, `ProxyJump a,b` goes over a, then b; of these only a's own ProxyJump counts. `peers.user` is the user on
the peers, not on jump hosts: theirs is in ProxyJump (user@host), ssh_config's User, or this process's own.

Not guaranteed: that a jump host which no peer uses any more is let go before `close`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from do_failover.errors import PeerError
from do_failover.ssh.login import Link, Wanted, Way, find_way, log_in
from do_failover.ssh.sentences import clean, say
from do_failover.ssh.tcp_channel import open_tcp_channel

if TYPE_CHECKING:
    from collections.abc import Callable

    import asyncssh

    from do_failover.ssh.settings import SshSettings
    from do_failover.ssh.trust import Trusted

MOST_JUMPS = 8
# Twice unanswered and it is dead: before a peer's login through it gives up (connect_timeout_s is 5 by default).
_KEEPALIVE_S, _KEEPALIVE_MISSES = 2, 1
_HOP = ": jump host "

Chain = tuple[Way, ...]
_Place = tuple[str, int, str, str]
_Key = tuple[_Place, ...]


@dataclass(slots=True, eq=False)
class Jump:
    """An open connection to a jump host, as the tunnel of what lies behind it."""

    name: str
    link: Link
    openings: set[asyncio.Task[Any]]

    @property
    def is_open(self) -> bool:
        """Tell whether it was not lost, as far as TCP and keepalive have noticed."""
        return self.link.is_open

    async def create_connection(
        self, session_factory: Callable[[], asyncssh.SSHTCPSession[bytes]], remote_host: str, remote_port: int
    ) -> tuple[asyncssh.SSHTCPChannel[bytes], asyncssh.SSHTCPSession[bytes]]:
        """Open a channel, as asyncssh asks for it."""
        return await open_tcp_channel(self.link, session_factory, (remote_host, remote_port), self.openings)


class JumpHosts:
    """The jump hosts of one pool. It belongs to one event loop and is ended by `close`."""

    def __init__(self, settings: SshSettings) -> None:
        """Nothing is opened yet."""
        self._settings = settings
        self._jumps: dict[_Key, Jump] = {}
        self._logins: dict[_Key, asyncio.Task[Jump]] = {}
        self._openings: set[asyncio.Task[Any]] = set()

    async def find_chain(self, way: Way, trusted: Trusted) -> Chain:
        """Return the jump hosts on the way to a peer, the nearest first; () where it is reached directly. Raises PeerError."""
        chain: Chain = ()
        first = way
        while first.jump is not None:
            hops = [_parse_hop(way.label, hop) for hop in first.jump.split(",")]
            found = [await find_way(hop, self._settings, trusted) for hop in hops]
            chain = (*found, *chain)
            first = chain[0]
            _check_chain(way, chain)
        return chain

    async def open(self, way: Way, chain: Chain, trusted: Trusted) -> Jump | None:
        """Return the last jump host of the chain, each opened unless it is open. Raises PeerError, in the peer's name."""
        jump = None
        for number in range(len(chain)):
            try:
                jump = await self._obtain(chain[: number + 1], jump, trusted)
            except PeerError as error:
                sentence = f"not reached, for {error.message}"
                raise say(way.label, sentence, error.kind) from error
        return jump

    async def close(self) -> None:
        """End all. Afterwards no task and no socket is left."""
        logins = list(self._logins.values())
        for attempt in logins:
            attempt.cancel()
        if logins:
            await asyncio.wait(logins)
        jumps = list(self._jumps.values())
        self._jumps.clear()
        await asyncio.gather(*(jump.link.close() for jump in reversed(jumps)))
        if self._openings:
            await asyncio.wait(set(self._openings))

    async def _obtain(self, chain: Chain, before: Jump | None, trusted: Trusted) -> Jump:
        key = tuple(_place(way) for way in chain)
        jump = self._jumps.get(key)
        if jump is not None and jump.is_open:
            return jump
        attempt = self._logins.get(key)
        if attempt is None:
            attempt = self._logins[key] = asyncio.create_task(self._log_in(key, chain[-1], before, trusted))
            attempt.add_done_callback(_look_at_outcome)
        await asyncio.wait([attempt])
        name = f"jump host {chain[-1].host}"
        if attempt.cancelled():
            raise say(name, "not connected: the connections to the peers are being closed", "unreachable")
        error = attempt.exception()
        if error is not None and not isinstance(error, PeerError):
            sentence = f"the SSH login failed in a way that has no name yet ({type(error).__name__}: {clean(str(error))})"
            raise say(name, sentence, "unreachable") from error
        return attempt.result()

    async def _log_in(self, key: _Key, way: Way, before: Jump | None, trusted: Trusted) -> Jump:
        try:
            name = f"jump host {way.host}"
            named = Way(name, way.host, way.port, way.user, way.name, way.options)
            link = await log_in(named, self._settings, trusted, before)
            link.connection.set_keepalive(_KEEPALIVE_S, _KEEPALIVE_MISSES)
            link.owner.is_shared = True
            jump = self._jumps[key] = Jump(way.host, link, self._openings)
            return jump
        finally:
            del self._logins[key]


def name_hop(hop: Way) -> str:
    """Return the name by which a ProxyJump has a jump host of a chain."""
    return hop.label.rpartition(_HOP)[2]


def _place(way: Way) -> _Place:
    return (way.host, way.port, way.user, way.name)


def _parse_hop(label: str, text: str) -> Wanted:
    """Read [user@]host[:port], where an IPv6 address with a port has brackets, or the same as ssh://. Raises PeerError."""
    hop = text.strip().removeprefix("ssh://").removesuffix("/")
    user, _, place = hop.rpartition("@")
    try:
        if place.count(":") > 1 and not place.startswith("["):
            host, port = place, None
        else:
            parts = urlsplit(f"//{place}")
            host, port = place.rpartition(":")[0] if parts.port is not None else place, parts.port
    except ValueError:
        host, port = "", None
    host = host.removeprefix("[").removesuffix("]")
    if not host or host.startswith("-") or port == 0 or not host.isprintable() or any(sign in host for sign in " /?#\\"):
        sentence = f"ssh_config's ProxyJump is not understood ({clean(text)!r}): write [user@]host[:port], several with commas"
        raise say(label, sentence, "unreachable")
    return Wanted(f"{label}{_HOP}{host}", host, port, user or None)


def _check_chain(way: Way, chain: Chain) -> None:
    places = [(hop.host, hop.port, hop.user) for hop in (*chain, way)]
    twice = next((place for place in places if places.count(place) > 1), None)
    if twice is not None:
        sentence = (
            f"ssh_config's ProxyJump leads in a circle by way of {twice[0]} port {twice[1]}: set `ProxyJump none` for that host, "
            f"above what is set for all"
        )
        raise say(way.label, sentence, "unreachable")
    if len(chain) > MOST_JUMPS:
        sentence = f"ssh_config's ProxyJump leads over more than {MOST_JUMPS} hosts ({chain[0].host} and further): shorten it"
        raise say(way.label, sentence, "unreachable")


def _look_at_outcome(attempt: asyncio.Task[Jump]) -> None:
    """Keep asyncio from printing the error of a login that all its callers have left."""
    if not attempt.cancelled():
        attempt.exception()
