"""`do-failover peers trust`: records the peers' host keys, each after a person has compared its fingerprint.

Guarantees: nothing is accepted silently. A key is recorded when a person at a terminal says so, or when its fingerprint
was given (--fingerprint); a host whose key changed is shown with both and refused, unless it is named by --replace. A peer
that can't be reached stops no other one.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from do_failover.cli.options import HELP, common_options, read_config
from do_failover.cli.output import print_json, warn
from do_failover.cli.wiring import make_ssh_settings, read_peers
from do_failover.config import expand_path
from do_failover.errors import ConfigError, PeerError
from do_failover.peerlist import canonical_host, parse_peers

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from do_failover.config import Config
    from do_failover.model import Peer
    from do_failover.ssh.host_keys import HostKey, KnownHosts

Accepted = set[tuple[str | None, str]]  # (host, or any; fingerprint)
_AT_ONCE = 32
_GOOD = frozenset(("known", "recorded", "replaced"))
_OPEN = frozenset(("new", "changed"))


class Row(msgspec.Struct):
    """One peer. `state`: known, recorded, replaced; or changed, declined, unreachable: not trusted. `old`: what known_hosts has."""

    host: str
    entry: str
    state: str
    type: str | None = None
    fingerprint: str | None = None
    old: tuple[str, ...] = ()
    error: str | None = None


@click.command(context_settings=HELP, epilog="Example: do-failover peers trust app1 --fingerprint app1=SHA256:2zW5...")
@click.argument("hosts", nargs=-1, metavar="[HOST]...")
@click.option("--ca", "ca_file", metavar="FILE", help="Trust this host CA (its .pub) for the peers, instead of each key.")
@click.option("--fingerprint", "given", multiple=True, metavar="[HOST=]SHA256:...", help="Record the key that has it, without a question.")
@click.option("--replace", multiple=True, metavar="HOST", help="This host was rebuilt: its new key may take the old one's place.")
@click.option("--yes", "is_silent", is_flag=True, envvar="DO_FAILOVER_YES", help="Ask nothing: only keys named by --fingerprint count.")
@common_options
@click.pass_context
def trust(
    context: click.Context,
    hosts: tuple[str, ...],
    ca_file: str | None,
    given: tuple[str, ...],
    replace: tuple[str, ...],
    is_silent: bool,
    config_path: str | None,
    output: str,
    verbose: bool,  # noqa: ARG001 - a common option
) -> int:
    """Record the peers' host keys in peers.known_hosts, after showing their fingerprints.

    Compare each with the Droplet's console: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub. All peers without HOST.
    """
    from do_failover.ssh import host_keys

    accepted = _read_fingerprints(given)
    can_ask = not is_silent and sys.stdin.isatty()
    if not can_ask and not accepted:
        msg = "nobody can be asked here, and nothing is accepted silently: give --fingerprint HOST=SHA256:... for each, or use a terminal"
        raise click.UsageError(msg)
    config, nits = read_config(context, config_path)
    for nit in nits:
        warn(nit)
    peers = _choose_peers(config, hosts)
    _check_replace(replace, peers)
    path = expand_path(config.peers.known_hosts)
    known = host_keys.read_known_hosts(path)
    if ca_file is not None:
        rows = _trust_authority(host_keys.read_authority(Path(ca_file).expanduser()), peers, known, accepted, can_ask=can_ask)
    else:
        keys = asyncio.run(_fetch_all(config, peers, known))
        rows = _trust_keys(keys, peers, known, accepted, replace, can_ask=can_ask)
    if any(row.state in {"recorded", "replaced"} for row in rows):
        host_keys.save_known_hosts(path, known)
    return _print(rows, path, output)


def _read_fingerprints(given: Sequence[str]) -> Accepted:
    accepted = set()
    for text in given:
        host, found, digest = text.rpartition("SHA256:")
        if not found or not digest or (host and not host.endswith("=")):
            msg = f"--fingerprint: {text!r} is not [HOST=]SHA256:..., as ssh-keygen -lf prints it"
            raise click.UsageError(msg)
        accepted.add((canonical_host(host[:-1]) or None, f"SHA256:{digest.rstrip('=')}"))
    return accepted


def _choose_peers(config: Config, hosts: Sequence[str]) -> list[Peer]:
    """Return the named peers, as the list has them where it has them; all without a name."""
    found = read_peers(config)
    if not hosts:
        for nit in found.nits:
            warn(nit)
        if not found.peers:
            msg = "there are no peers: name a HOST, or list them in peers.file, peers.hosts or by peers.tag"
            raise ConfigError(msg)
        return list(found.peers)
    listed = {canonical_host(peer.host): peer for peer in found.peers}
    chosen = []
    for host in hosts:
        read = parse_peers("", "HOST", [host])
        if read.nits or not read.peers:
            raise click.UsageError(read.nits[0] if read.nits else f"{host!r} is no host")
        chosen += [listed.get(canonical_host(peer.host), peer) if peer.port == 22 else peer for peer in read.peers]  # noqa: PLR2004 - ssh's
    return chosen


def _check_replace(replace: Sequence[str], peers: Sequence[Peer]) -> None:
    unknown = {canonical_host(host) for host in replace} - {canonical_host(peer.host) for peer in peers}
    if unknown:
        msg = f"--replace: {min(unknown)!r} is none of the peers looked at here"
        raise click.UsageError(msg)


async def _fetch_all(config: Config, peers: Sequence[Peer], known: KnownHosts) -> list[HostKey | PeerError]:
    from do_failover.ssh import host_keys

    settings, turns = make_ssh_settings(config.peers), asyncio.Semaphore(_AT_ONCE)

    async def fetch(peer: Peer) -> HostKey | PeerError:
        async with turns:
            try:
                return await host_keys.fetch_host_key(peer, settings, known.find(peer.host, peer.port))
            except PeerError as error:
                return error

    return await asyncio.gather(*map(fetch, peers))


def _trust_keys(
    keys: Sequence[HostKey | PeerError],
    peers: Sequence[Peer],
    known: KnownHosts,
    accepted: Accepted,
    replace: Sequence[str],
    *,
    can_ask: bool,
) -> list[Row]:
    rows = [_judge(key, peer, known) for key, peer in zip(keys, peers, strict=True)]
    replaced = {canonical_host(host) for host in replace}
    _say(rows)
    may = {id(row) for row in rows if row.state == "new" or (row.state == "changed" and canonical_host(row.host) in replaced)}
    sure = {id(row) for row in rows if id(row) in may and _is_given(row, accepted)}
    asked = [row for row in rows if id(row) in may - sure]
    if asked and can_ask and click.confirm(f"Record {_count(asked)}? Compare the fingerprints first", err=True):
        sure |= {id(row) for row in asked}
    for row, peer, key in zip(rows, peers, keys, strict=True):
        if id(row) in sure and not isinstance(key, PeerError):
            _record(row, peer, key, known)
        elif row.state == "new":
            row.state, row.error = "declined", "nobody accepted its key, so it was not recorded"
    return rows


def _judge(key: HostKey | PeerError, peer: Peer, known: KnownHosts) -> Row:
    from do_failover.ssh.host_keys import write_entry

    entry = write_entry(peer.host, peer.port)
    if isinstance(key, PeerError):
        return Row(peer.host, entry, "unreachable", error=key.message)
    old = known.find(peer.host, peer.port)
    state = "new" if not old else "known" if any(each.text == key.text for each in old) else "changed"
    row = Row(peer.host, entry, state, key.type, key.fingerprint, tuple(each.fingerprint for each in old))
    if state == "changed":
        row.error = (
            f"{peer.host}: its host key changed; it may be an attack, or a rebuilt Droplet. Nothing was recorded. If it was rebuilt: "
            f"do-failover peers trust --replace {peer.host}"
        )
    return row


def _record(row: Row, peer: Peer, key: HostKey, known: KnownHosts) -> None:
    if row.state == "changed":
        known.forget(row.entry, peer.host, peer.port)
    row.state, row.error = ("replaced" if row.state == "changed" else "recorded"), None
    known.add(row.entry, key)


def _trust_authority(key: HostKey, peers: Sequence[Peer], known: KnownHosts, accepted: Accepted, *, can_ask: bool) -> list[Row]:
    from do_failover.ssh.host_keys import write_entry

    names = [write_entry(peer.host, peer.port) for peer in peers]
    rows = [Row(peer.host, name, "new", key.type, key.fingerprint) for peer, name in zip(peers, names, strict=True)]
    if known.has_authority(key, names):
        for row in rows:
            row.state = "known"
        return rows
    click.echo(f"A host CA: {key.fingerprint} ({key.type}), to vouch for {', '.join(names)}", err=True)
    is_accepted = (None, key.fingerprint) in accepted
    is_accepted = is_accepted or (can_ask and click.confirm(f"Trust it for {_count(rows)}? Compare the fingerprint first", err=True))
    if is_accepted:
        known.add_authority(names, key)
    for row in rows:
        row.state, row.error = ("recorded", None) if is_accepted else ("declined", "nobody accepted the CA, so it was not recorded")
    return rows


def _is_given(row: Row, accepted: Accepted) -> bool:
    fingerprint = row.fingerprint or ""
    return any((host, fingerprint) in accepted for host in (None, canonical_host(row.host)))


def _say(rows: Iterable[Row]) -> None:
    """Show what would be recorded, before anybody is asked."""
    for row in rows:
        if row.state in _OPEN:
            old = f"; known_hosts has {', '.join(row.old)}" if row.old else ""
            click.echo(f"{row.entry}  {row.fingerprint}  ({row.type}, {row.state}{old})", err=True)


def _count(rows: Sequence[Row]) -> str:
    return f"{len(rows)} host keys" if len(rows) != 1 else f"the key of {rows[0].entry}"


def _print(rows: Sequence[Row], path: Path, output: str) -> int:
    bad = [row for row in rows if row.state not in _GOOD]
    for row in bad:
        warn(row.error or f"{row.host}: {row.state}")
    exit_code = PeerError.exit_code if bad else 0
    if output == "json":
        outcome = "done" if not bad else "partial" if len(bad) < len(rows) else "failed"
        print_json(msgspec.json.encode({"schema": 1, "outcome": outcome, "exit_code": exit_code, "known_hosts": str(path), "peers": rows}))
        return exit_code
    for row in rows:
        click.echo(f"{row.state:11}  {row.entry}  {row.fingerprint or '-'}")
    return exit_code
