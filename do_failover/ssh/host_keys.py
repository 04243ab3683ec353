"""known_hosts as `peers trust` reads and writes it: what it says of a host, and how a line gets there.

Guarantees: it says what the story reads there (trust.py): names and addresses, a port's own lines before those without a
port. The file appears whole or not at all, 0644; a line of it is changed only by `forget`. Where the names in it are
hashed, new ones are hashed too.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import asyncssh

from do_failover.errors import ConfigError, PermanentError, RefusedError
from do_failover.ssh.sentences import clean
from do_failover.whole_file import write_whole

if TYPE_CHECKING:
    from pathlib import Path


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
        self._parsed: asyncssh.SSHKnownHosts | None = None

    def find(self, name: str, port: int, address: str = "") -> list[HostKey]:
        """Return the keys of a host, by its name or address; lines that can't be read, and authorities, are none."""
        return list(dict.fromkeys(describe_key(key) for key in self._match(name, port, address)[0]))

    def is_revoked(self, key: HostKey, name: str, port: int, address: str = "") -> bool:
        """Tell whether a line marks that key as revoked for the host."""
        return any(describe_key(each).text == key.text for each in self._match(name, port, address)[2])

    def has_any_authority(self, name: str, port: int) -> bool:
        """Tell whether a line lets somebody vouch for the host."""
        return bool(self._match(name, port, "")[1])

    def has_authority(self, key: HostKey, names: list[str]) -> bool:
        """Tell whether a line makes that key an authority for just these names."""
        return any(line.split()[:4] == ["@cert-authority", ",".join(names), *key.text.split()[:2]] for line in self.lines)

    def has(self, entry: str, key: HostKey) -> bool:
        """Tell whether a line has this key for just this entry, which holds its port."""
        return any(describe_key(each).text == key.text for each in self._match(entry, asyncssh.DEFAULT_PORT, "")[0])

    def add(self, entry: str, key: HostKey) -> None:
        """Add a line for a host."""
        self._parsed = None
        self.lines.append(f"{_hash(entry) if self._is_hashed() else entry} {key.text}")

    def add_authority(self, names: list[str], key: HostKey) -> None:
        """Add a line that lets an authority vouch for these hosts."""
        self._parsed = None
        self.lines.append(f"@cert-authority {','.join(names)} {key.text}")

    def forget(self, entry: str) -> None:
        """Drop what the file has for a host by this name. Raises ConfigError where a pattern covers other hosts too."""
        kept = []
        for line in self.lines:
            if not _names(line, entry):
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
        self._parsed = None

    def _match(self, name: str, port: int, address: str) -> Any:  # noqa: ANN401 - asyncssh's tuple of seven
        if self._parsed is None:
            self._parsed = _parse(self.lines)
        return self._parsed.match(name, address, port if port != asyncssh.DEFAULT_PORT else None)

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
        return describe_key(asyncssh.import_public_key(path.read_bytes()))
    except OSError as error:
        reason = error.strerror or str(error)
    except (ValueError, asyncssh.Error) as error:
        reason = clean(str(error))
    msg = f"{path} is not the public key of a host CA ({reason}): nothing was recorded; name the .pub file"
    raise ConfigError(msg)


def describe_key(key: asyncssh.SSHKey) -> HostKey:
    """Return a key as known_hosts has it."""
    words = key.export_public_key().decode("ascii").split()
    return HostKey(" ".join(words[:2]), words[0], key.get_fingerprint())


def _parse(lines: list[str]) -> asyncssh.SSHKnownHosts:
    known = asyncssh.SSHKnownHosts()
    for line in lines:
        with contextlib.suppress(ValueError):
            known.load(line)
    return known


def _names(line: str, entry: str) -> bool:
    """Tell whether a line has a key for just this entry, which holds its port."""
    return bool(_parse([line]).match(entry, "", None)[0])


def _hash(entry: str) -> str:
    salt = secrets.token_bytes(20)
    digest = hmac.new(salt, entry.encode(), hashlib.sha1).digest()  # OpenSSH's format; nothing is kept secret by it
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"


def _describe_file(path: Path, error: OSError, what: str) -> PermanentError:
    msg = f"known_hosts {path} cannot be {what} ({error.strerror}): nothing was recorded; see peers.known_hosts"
    return RefusedError(msg) if isinstance(error, PermissionError) else PermanentError(msg, kind="known_hosts")
