"""Host keys before they are trusted: what a peer shows, what known_hosts says of it, and how a line gets there.

Guarantees: fetching sends nothing but the key exchange, and trusts nothing. known_hosts appears whole or not at all, 0644;
a line of it is changed only by `forget`. Where the names in it are hashed, new ones are hashed too.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

import asyncssh

from do_failover.errors import ConfigError, PermanentError, RefusedError
from do_failover.ssh.dial import find_addresses, open_socket
from do_failover.ssh.sentences import Target, clean, describe_timeout, say
from do_failover.whole_file import write_whole

if TYPE_CHECKING:
    from pathlib import Path

    from do_failover.model import Peer
    from do_failover.ssh.settings import SshSettings

_ALGORITHMS = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "rsa-sha2-512", "rsa-sha2-256")
_MODE = 0o644


@dataclass(frozen=True, slots=True)
class HostKey:
    """A public key: its line without the host, and its fingerprint as `ssh-keygen -lf` prints it."""

    text: str
    type: str
    fingerprint: str


class KnownHosts:
    """The text of a known_hosts file, and what it says of a host."""

    def __init__(self, text: str) -> None:
        """Keep the text."""
        self.lines = text.splitlines()

    def find(self, name: str, port: int) -> list[HostKey]:
        """Return the keys of a host; lines that can't be read, and authorities, are none."""
        return [_describe(key) for line in self.lines for key in _match(line, name, port)[0]]

    def has_authority(self, key: HostKey, names: list[str]) -> bool:
        """Tell whether a line makes that key an authority for just these names."""
        return any(line.split()[:4] == ["@cert-authority", ",".join(names), *key.text.split()[:2]] for line in self.lines)

    def add(self, entry: str, key: HostKey) -> None:
        """Add a line for a host."""
        self.lines.append(f"{_hash(entry) if self._is_hashed() else entry} {key.text}")

    def add_authority(self, names: list[str], key: HostKey) -> None:
        """Add a line that lets an authority vouch for these hosts."""
        self.lines.append(f"@cert-authority {','.join(names)} {key.text}")

    def forget(self, entry: str, name: str, port: int) -> None:
        """Drop what the file has for a host. Raises ConfigError where a pattern covers other hosts too."""
        kept = []
        for line in self.lines:
            if not _match(line, name, port)[0]:
                kept.append(line)
                continue
            names, _, rest = line.strip().partition(" ")
            others = [other for other in names.split(",") if other != entry]
            if len(others) == len(names.split(",")) and not names.startswith("|1|"):
                msg = f"the line for {clean(names)} in known_hosts covers {entry} by a pattern: edit it by hand"
                raise ConfigError(msg)
            if others and not names.startswith("|1|"):
                kept.append(f"{','.join(others)} {rest}")
        self.lines = kept

    def _is_hashed(self) -> bool:
        names = [line.split()[0] for line in self.lines if line.strip() and not line.lstrip().startswith(("#", "@"))]
        return bool(names) and all(name.startswith("|1|") for name in names)


def write_entry(name: str, port: int) -> str:
    """Return the name by which known_hosts has a host."""
    return name if port == asyncssh.DEFAULT_PORT else f"[{name}]:{port}"


def read_known_hosts(path: Path) -> KnownHosts:
    """Read the file; one that is not there is empty. Raises RefusedError, PermanentError."""
    try:
        return KnownHosts(path.read_bytes().decode(errors="surrogateescape"))
    except FileNotFoundError:
        return KnownHosts("")
    except OSError as error:
        raise _describe_file(path, error, "read") from None


def save_known_hosts(path: Path, known: KnownHosts) -> None:
    """Write it whole, 0644. Raises RefusedError, PermanentError: the old one stays then."""
    place = path.resolve()
    data = "".join(f"{line}\n" for line in known.lines).encode(errors="surrogateescape")
    try:
        write_whole(place, data, _MODE)
    except OSError as error:
        raise _describe_file(path, error, "written") from None


def read_authority(path: Path) -> HostKey:
    """Return the public key of a host CA. Raises ConfigError."""
    try:
        return _describe(asyncssh.import_public_key(path.read_bytes()))
    except OSError as error:
        reason = error.strerror or str(error)
    except (ValueError, asyncssh.Error) as error:
        reason = clean(str(error))
    msg = f"{path} is not the public key of a host CA ({reason}): nothing was recorded; name the .pub file"
    raise ConfigError(msg)


async def fetch_host_key(peer: Peer, settings: SshSettings, known: list[HostKey]) -> HostKey:
    """Return the key that a peer shows, of a known type where there is one. Raises PeerError within connect_timeout_s."""
    target = Target(peer.host, peer.host, peer.port, "", settings.connect_timeout_s)
    types = [key.type for key in known]
    first = [name for name in _ALGORITHMS if name in types or ("ssh-rsa" in types and name.startswith("rsa-"))]
    try:
        async with asyncio.timeout(settings.connect_timeout_s):
            sock = await open_socket(await find_addresses(peer.host, peer.port), settings.connect_timeout_s)
            target.phase = "login"
            try:
                key = await asyncssh.get_server_host_key(
                    sock=sock, server_host_key_algs=list(dict.fromkeys([*first, *_ALGORITHMS])), config=None
                )
            finally:
                sock.close()
    except TimeoutError:
        raise describe_timeout(target) from None
    except (OSError, ValueError, asyncssh.Error) as error:
        reason = clean((error.strerror if isinstance(error, OSError) else None) or str(error))
        sentence = f"it shows no host key at port {peer.port} ({reason}): is its sshd running, and reached from here?"
        raise say(peer.host, sentence, "unreachable") from error
    if key is None:
        raise say(peer.host, "it shows no host key of a usual type", "unreachable")
    return _describe(key)


def _describe(key: asyncssh.SSHKey) -> HostKey:
    words = key.export_public_key().decode("ascii").split()
    return HostKey(" ".join(words[:2]), words[0], key.get_fingerprint())


def _match(line: str, name: str, port: int) -> tuple[list[asyncssh.SSHKey], list[asyncssh.SSHKey]]:
    """Return the keys and authorities that one line has for a host."""
    known = asyncssh.SSHKnownHosts()
    try:
        known.load(line)
    except ValueError:
        return [], []
    found = known.match(name, "", port if port != asyncssh.DEFAULT_PORT else None)
    return list(found[0]), list(found[1])


def _hash(entry: str) -> str:
    salt = secrets.token_bytes(20)
    digest = hmac.new(salt, entry.encode(), hashlib.sha1).digest()  # OpenSSH's format; nothing is kept secret by it
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"


def _describe_file(path: Path, error: OSError, what: str) -> PermanentError:
    msg = f"known_hosts {path} cannot be {what} ({error.strerror}): nothing was recorded; see peers.known_hosts"
    return RefusedError(msg) if isinstance(error, PermissionError) else PermanentError(msg, kind="known_hosts")
