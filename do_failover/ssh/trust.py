"""Reads identity and known_hosts into the options that all connections share.

Guarantees: a file is parsed once and again only after it changed (time, size or inode), so a host key added by
ssh-keyscan counts at the next try, without a restart. known_hosts is always handed to asyncssh as a parsed
object: given a path it would read the file for each peer, given nothing it would follow ssh_config, whose
`UserKnownHostsFile none` switches checks off (measured, asyncssh 2.24). A line that can't be read is skipped, as
OpenSSH does, and named to the peer that finds no key.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncssh

from do_failover.errors import PeerError

if TYPE_CHECKING:
    from do_failover.ssh.settings import SshSettings

# A cut warm connection hangs without keepalive; every 15 s costs 0.8 % of a core at 300 peers (measured).
_KEEPALIVE_S = 15
_KEEPALIVE_MISSES = 3

_USUAL_ALGORITHMS = ("ssh-ed25519", "ecdsa-sha2-nistp256", "rsa-sha2-512", "rsa-sha2-256")

_FIXED: dict[str, Any] = {
    # one way in: a key. `()` would mean "as in ssh_config" to asyncssh, None and False mean no.
    "preferred_auth": ["publickey"],
    "password_auth": False,
    "kbdint_auth": False,
    "host_based_auth": False,
    "client_host_keysign": False,
    "gss_host": None,
    "gss_kex": False,
    "gss_auth": False,
    "pkcs11_provider": None,
    # one way to trust a host: known_hosts. By default asyncssh also trusts ~/.ssh/ca-bundle.crt.
    "x509_trusted_certs": None,
    "x509_trusted_cert_paths": [],
    "canonicalize_hostname": False,
    # nothing but the command goes over (session.py names the rest when it opens a channel)
    "agent_forwarding": False,
    "x11_forwarding": False,
    # the caller bounds the time of a login, all of it
    "connect_timeout": None,
    "login_timeout": 0,
    "keepalive_interval": _KEEPALIVE_S,
    "keepalive_count_max": _KEEPALIVE_MISSES,
}


@dataclass(frozen=True, slots=True)
class Trusted:
    """Parsed files: the keyword arguments of asyncssh's options, and what the sentences need."""

    arguments: dict[str, Any]
    shared: asyncssh.SSHClientConnectionOptions | None
    known_hosts: asyncssh.SSHKnownHosts
    known_hosts_path: Path
    unread: str | None

    def knows(self, name: str, address: str, port: int) -> bool:
        """Tell whether known_hosts has any key or authority for that host."""
        matches = self.known_hosts.match(name, address, port if port != asyncssh.DEFAULT_PORT else None)
        return bool(matches[0] or matches[1])

    def order_algorithms(self, name: str, address: str, port: int) -> tuple[str, ...]:
        """Return the host key algorithms to ask for: those of the known keys first, as OpenSSH does; () for any.

        asyncssh would ask for those of the known keys only. A rebuilt Droplet that lacks them then hangs up before we
        can say that its key changed, and which one it has.
        """
        keys, authorities = self.known_hosts.match(name, address, port if port != asyncssh.DEFAULT_PORT else None)[:2]
        if authorities or not keys:
            return ()
        known = [algorithm.decode("ascii") for key in keys for algorithm in key.sig_algorithms]
        return tuple(dict.fromkeys([*known, *_USUAL_ALGORITHMS]))


class Trust:
    """The two files, as they were when last read."""

    def __init__(self, settings: SshSettings) -> None:
        """Nothing is read yet."""
        self._settings = settings
        self._known_hosts = Path(settings.known_hosts).expanduser()
        self._identity = Path(settings.identity_file).expanduser() if settings.identity_file is not None else None
        self._signature: tuple[object, ...] = ()
        self._trusted: Trusted | None = None

    def load(self) -> Trusted:
        """Return what the files say now. Raises PeerError without a peer's name: it concerns them all."""
        signature = tuple(_stamp(path) for path in self._files())
        if self._trusted is None or signature != self._signature:
            self._trusted = self._read()
            self._signature = signature
        return self._trusted

    def _files(self) -> list[Path]:
        identity = [] if self._identity is None else [self._identity, _certificate_of(self._identity)]
        return [self._known_hosts, *identity]

    def _read(self) -> Trusted:
        known_hosts, unread = _read_known_hosts(self._known_hosts)
        arguments = {**_FIXED, "known_hosts": known_hosts}
        if self._identity is not None:
            arguments["client_keys"] = _read_identity(self._identity)
            arguments["agent_path"] = None  # the agent's keys would be offered first, and use up MaxAuthTries
        shared = None
        if self._settings.ssh_config is None:
            shared = asyncssh.SSHClientConnectionOptions(
                config=None, tunnel=None, proxy_command=None, encryption_algs=_order_ciphers(), **arguments
            )
        return Trusted(arguments, shared, known_hosts, self._known_hosts, unread)


def trust_nobody(settings: SshSettings) -> Trusted:
    """Return options that accept no host and offer no key: to find the way to a host, and to look at what it shows."""
    known_hosts = asyncssh.SSHKnownHosts()
    arguments = {**_FIXED, "known_hosts": known_hosts, "client_keys": None, "agent_path": None}
    shared = None
    if settings.ssh_config is None:
        shared = asyncssh.SSHClientConnectionOptions(config=None, tunnel=None, proxy_command=None, **arguments)
    return Trusted(arguments, shared, known_hosts, Path(settings.known_hosts).expanduser(), None)


def _order_ciphers() -> list[str]:
    """Return asyncssh's own ciphers, those first that cost one call a packet: its chacha20 takes four, half of an armed command's time."""
    known = [name.decode() for name in asyncssh.encryption.get_default_encryption_algs()]
    return sorted(known, key=lambda name: "gcm" not in name)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _certificate_of(identity: Path) -> Path:
    return identity.with_name(f"{identity.name}-cert.pub")


class _KnownHosts(asyncssh.SSHKnownHosts):
    """Looks each host up once: asyncssh asks as well as we, and all hashed lines are hashed each time (3 ms for a thousand)."""

    def __init__(self) -> None:
        super().__init__()
        self._found: dict[tuple[str, str, int | None], Any] = {}

    def match(self, host: str, addr: str, port: int | None) -> Any:  # noqa: ANN401 - asyncssh's own tuple
        """Return what the file says of a host."""
        place = (host, addr, port)
        if place not in self._found:
            self._found[place] = super().match(host, addr, port)
        return self._found[place]


def _read_known_hosts(path: Path) -> tuple[asyncssh.SSHKnownHosts, str | None]:
    try:
        text = path.read_bytes().decode(errors="replace")
    except OSError as error:
        msg = (
            f"known_hosts {path} cannot be read ({error.strerror}): no host key can be checked, so no peer is reached; "
            f"write the peers' host keys to it (ssh-keyscan), or name another file in peers.known_hosts"
        )
        raise PeerError(msg, kind="host_key") from None
    known_hosts = _KnownHosts()
    bad = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            known_hosts.load(line)
        except ValueError:  # includes asyncssh.KeyImportError
            bad.append(number)
    if not bad:
        return known_hosts, None
    return known_hosts, f"line {bad[0]} of {path} cannot be read" + (f", nor can {len(bad) - 1} more" if bad[1:] else "")


def _read_identity(path: Path) -> list[Any]:
    """Return the key, with its certificate where one lies beside it. Never asks for a passphrase."""
    try:
        key = asyncssh.import_private_key(path.read_bytes())
    except OSError as error:
        msg = f"identity file {path} cannot be read ({error.strerror}): no peer is reached; see peers.identity_file"
        raise PeerError(msg, kind="refused") from None
    except asyncssh.KeyEncryptionError:
        raise PeerError(_ENCRYPTED.format(path=path), kind="refused") from None
    except ValueError as error:
        if "assphrase" in str(error):
            raise PeerError(_ENCRYPTED.format(path=path), kind="refused") from None
        msg = f"identity file {path} is not a private key ({error}): no peer is reached; see peers.identity_file"
        raise PeerError(msg, kind="refused") from None
    try:
        return [(key, asyncssh.import_certificate(_certificate_of(path).read_bytes()))]
    except (OSError, ValueError):
        return [key]


_ENCRYPTED = (
    "identity file {path} has a passphrase, which is never asked for: no peer is reached; use a key without one "
    "(restricted to its command on the peers), or load it into an agent and leave peers.identity_file out"
)
