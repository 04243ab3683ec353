"""`do-failover peers trust`: records the peers' host keys, each after a person has compared its fingerprint.

Guarantees: nothing is accepted silently. A key is recorded when a person at a terminal says so, or when its fingerprint
was given (--fingerprint); a host whose key changed is shown with both and refused, unless it is named by --replace. A peer
that can't be reached stops no other one. Each host is reached as the story reaches it: by ssh_config, and through its jump
hosts, whose own keys come first, the nearest before the next; what is behind a jump host that nobody trusts is not looked at.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, field
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
    from do_failover.ssh import SshSettings
    from do_failover.ssh.host_keys import HostKey, KnownHosts
    from do_failover.ssh.key_fetch import Host, Shown

Accepted = set[tuple[str | None, str]]  # (host, or any; fingerprint)
_GOOD = frozenset(("known", "recorded", "replaced"))
_OPEN = frozenset(("new", "changed"))
_WRITTEN = frozenset(("recorded", "replaced"))


class Row(msgspec.Struct):
    """One host. `state`: known, recorded, replaced; or changed, revoked, declined, unreachable: not trusted. `old`: in known_hosts."""

    host: str
    entry: str
    state: str
    type: str | None = None
    fingerprint: str | None = None
    old: tuple[str, ...] = ()
    error: str | None = None
    is_jump: bool = False


@dataclass(slots=True)
class _Answers:
    """What may be recorded: what was given, and whether a person can be asked."""

    accepted: Accepted
    replaced: set[str] = field(default_factory=set)
    can_ask: bool = False


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
    """Record the peers' host keys in peers.known_hosts, after showing their fingerprints; those of their jump hosts first.

    Compare each with the Droplet's console: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub. All peers without HOST.
    """
    from do_failover.ssh import host_keys, key_fetch

    accepted = _read_fingerprints(given)
    can_ask = not is_silent and sys.stdin.isatty()
    if not can_ask and not accepted:
        msg = "nobody can be asked here, and nothing is accepted silently: give --fingerprint HOST=SHA256:... for each, or use a terminal"
        raise click.UsageError(msg)
    config, nits = read_config(context, config_path)
    for nit in nits:
        warn(nit)
    peers = _choose_peers(config, hosts)
    settings = make_ssh_settings(config.peers)
    jumps, found = asyncio.run(key_fetch.find_hosts(peers, settings))
    answers = _Answers(accepted, {canonical_host(host) for host in replace}, can_ask)
    _check_replace(answers.replaced, [*jumps, *(host for host in found if not isinstance(host, PeerError))])
    path = expand_path(config.peers.known_hosts)
    known = host_keys.read_known_hosts(path)
    if ca_file is not None:
        rows = _trust_authority(host_keys.read_authority(Path(ca_file).expanduser()), jumps, peers, found, known, answers)
        _save(rows, path, known)
    else:
        rows = _trust_in_turn(jumps, peers, found, settings, path, known, answers)
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


def _check_replace(replaced: set[str], hosts: Iterable[Host]) -> None:
    unknown = replaced - {name for host in hosts for name in _name_all(host)}
    if unknown:
        msg = f"--replace: {min(unknown)!r} is none of the hosts looked at here"
        raise click.UsageError(msg)


def _name_all(host: Host) -> set[str]:
    """Return the names that a person may give a host: as the list or a ProxyJump has it, and as known_hosts has it."""
    return {canonical_host(host.label), canonical_host(host.name)}


def _trust_in_turn(
    jumps: Sequence[Host],
    peers: Sequence[Peer],
    found: Sequence[Host | PeerError],
    settings: SshSettings,
    path: Path,
    known: KnownHosts,
    answers: _Answers,
) -> list[Row]:
    """Jump hosts first, the nearest before the next, then the peers: what was recorded opens the way to those behind it."""
    rows: list[Row] = []
    for depth in sorted({jump.jumps for jump in jumps}):
        judged = _trust_keys([jump for jump in jumps if jump.jumps == depth], settings, known, answers)
        _save(judged, path, known)
        rows += judged
    reached = [host for host in found if not isinstance(host, PeerError)]
    judged = _trust_keys(reached, settings, known, answers)
    _save(judged, path, known)
    left = iter(judged)
    return [*rows, *(_refuse(peer, host) if isinstance(host, PeerError) else next(left) for peer, host in zip(peers, found, strict=True))]


def _save(rows: Sequence[Row], path: Path, known: KnownHosts) -> None:
    from do_failover.ssh import host_keys

    if any(row.state in _WRITTEN for row in rows):
        host_keys.save_known_hosts(path, known)


def _refuse(peer: Peer, error: PeerError) -> Row:
    from do_failover.ssh.host_keys import write_entry

    return Row(peer.host, write_entry(peer.host, peer.port), "unreachable", error=error.message)


def _trust_keys(hosts: Sequence[Host], settings: SshSettings, known: KnownHosts, answers: _Answers) -> list[Row]:
    from do_failover.ssh import key_fetch

    shown = asyncio.run(key_fetch.fetch_host_keys(hosts, settings, known))
    rows = [_judge(each, host, known) for each, host in zip(shown, hosts, strict=True)]
    _say(rows)
    may = {row.entry for row, host in zip(rows, hosts, strict=True) if row.state == "new" or _may_replace(row, host, answers)}
    sure = {row.entry for row, host in zip(rows, hosts, strict=True) if row.entry in may and _is_given(row, host, answers.accepted)}
    asked = [row for row in rows if row.entry in may - sure]
    if asked and answers.can_ask and click.confirm(f"Record {_count(asked)}? Compare the fingerprints first", err=True):
        sure |= {row.entry for row in asked}
    for row, each in zip(rows, shown, strict=True):
        if row.entry in sure and not isinstance(each, PeerError):
            _record(row, each.key, known)
        elif row.state == "new":
            row.state, row.error = "declined", f"{row.host}: nobody accepted its key, so it was not recorded"
    return rows


def _may_replace(row: Row, host: Host, answers: _Answers) -> bool:
    return row.state == "changed" and bool(answers.replaced & _name_all(host))


def _judge(shown: Shown | PeerError, host: Host, known: KnownHosts) -> Row:
    if isinstance(shown, PeerError):
        return Row(host.label, host.entry, "unreachable", error=shown.message, is_jump=host.is_jump)
    key, place = shown.key, (host.name, host.port, shown.address)
    old = known.find(*place)
    is_known = shown.is_vouched or any(each.text == key.text for each in old)
    state = "revoked" if known.is_revoked(key, *place) else "known" if is_known else "changed" if old else "new"
    row = Row(host.label, host.entry, state, key.type, key.fingerprint, tuple(each.fingerprint for each in old), is_jump=host.is_jump)
    if state == "revoked":
        row.error = f"{host.label}: its host key is marked @revoked in known_hosts: somebody else may have it. Give that host a new one"
    if state == "changed":
        row.error = (
            f"{host.label}: its host key changed; it may be an attack, or a rebuilt Droplet. Nothing was recorded. If it was rebuilt: "
            f"do-failover peers trust --replace {host.label}"
        )
    return row


def _record(row: Row, key: HostKey, known: KnownHosts) -> None:
    if row.state == "changed":
        known.forget(row.entry)
    row.state, row.error = ("replaced" if row.state == "changed" else "recorded"), None
    if not known.has(row.entry, key):  # the list may have a host twice, for two users
        known.add(row.entry, key)


def _trust_authority(
    key: HostKey,
    jumps: Sequence[Host],
    peers: Sequence[Peer],
    found: Sequence[Host | PeerError],
    known: KnownHosts,
    answers: _Answers,
) -> list[Row]:
    lost = [_refuse(peer, host) for peer, host in zip(peers, found, strict=True) if isinstance(host, PeerError)]
    hosts = [*jumps, *(host for host in found if not isinstance(host, PeerError))]
    names = list(dict.fromkeys(host.entry for host in hosts))
    rows = [Row(host.label, host.entry, "new", key.type, key.fingerprint, is_jump=host.is_jump) for host in hosts]
    if not hosts or known.has_authority(key, names):
        for row in rows:
            row.state = "known"
        return [*rows, *lost]
    click.echo(f"A host CA: {key.fingerprint} ({key.type}), to vouch for {', '.join(names)}", err=True)
    is_accepted = (None, key.fingerprint) in answers.accepted
    is_accepted = is_accepted or (
        answers.can_ask and click.confirm(f"Trust it for {_count(rows)}? Compare the fingerprint first", err=True)
    )
    if is_accepted and names:
        known.add_authority(names, key)
    for row in rows:
        row.state, row.error = ("recorded", None) if is_accepted else ("declined", "nobody accepted the CA, so it was not recorded")
    return [*rows, *lost]


def _is_given(row: Row, host: Host, accepted: Accepted) -> bool:
    return any((name, row.fingerprint or "") in accepted for name in (None, *_name_all(host)))


def _say(rows: Iterable[Row]) -> None:
    """Show what would be recorded, before anybody is asked."""
    for row in rows:
        if row.state in _OPEN:
            old = f"; known_hosts has {', '.join(row.old)}" if row.old else ""
            what = "jump host, " if row.is_jump else ""
            name = f"{row.entry} ({row.host})" if row.host not in row.entry else row.entry
            click.echo(f"{name}  {row.fingerprint}  ({what}{row.type}, {row.state}{old})", err=True)


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
        click.echo(f"{row.state:11}  {row.entry}  {row.fingerprint or '-'}" + ("  jump host" if row.is_jump else ""))
    return exit_code
