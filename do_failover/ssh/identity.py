"""The public half of a key file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import asyncssh

from do_failover.errors import ConfigError
from do_failover.ssh.sentences import clean

if TYPE_CHECKING:
    from collections.abc import Callable

_PLAIN = re.compile(r"[^A-Za-z0-9@._-]")


def read_public_key(identity: str | None, public: str | None = None) -> str:
    """Return a key as authorized_keys has it: type, key, and a comment without blanks or quotes.

    `public` names its file; else it is NAME.pub beside the private key `identity`, or computed from that. Raises ConfigError.
    """
    if public is not None:
        return _read(Path(public).expanduser(), asyncssh.import_public_key)
    if identity is None:
        msg = "peers.identity_file is not set: name the public key of the load balancers by --key FILE"
        raise ConfigError(msg)
    private = Path(identity).expanduser()
    beside = private.with_name(f"{private.name}.pub")
    if beside.exists():
        return _read(beside, asyncssh.import_public_key)
    return _read(private, asyncssh.import_private_key)


def _read(path: Path, read: Callable[[bytes], asyncssh.SSHKey]) -> str:
    try:
        key = read(path.read_bytes())
        words = key.export_public_key().decode("ascii").split(None, 2)
    except OSError as error:
        msg = f"{path} cannot be read ({error.strerror}): there is no key to authorize; name one by --key FILE"
        raise ConfigError(msg) from None
    except (ValueError, asyncssh.Error) as error:
        msg = f"{path} holds no key without a passphrase ({clean(str(error))}): name the public one by --key FILE"
        raise ConfigError(msg) from None
    return " ".join([*words[:2], *(_PLAIN.sub("_", word.strip()) for word in words[2:])])
