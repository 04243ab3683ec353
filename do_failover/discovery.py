"""The Droplets of the peers' tag: asked of the API by daylight, and the last good answer kept on disk.

    refresh_discovery   asks the API; never within a failover
    save_, load_        the kept one, one JSON file beside the history

Guarantees: a discovery on disk is complete or absent, whatever ends the writer, and only a whole answer makes one; so an
API that is down when the failover comes changes nothing. Not guaranteed: that it is fresh; fanout.py says how old it is.
"""

from __future__ import annotations

import os
import re
import socket
import stat
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from do_failover.errors import ConfigError, TemporaryError
from do_failover.foreign import clean_text, parse_unicast
from do_failover.model import Droplet  # noqa: TC001 - msgspec reads the annotations

if TYPE_CHECKING:
    from do_failover.config import Config
    from do_failover.model import Identity

REFRESH = "run `do-failover peers --refresh` (the daemon does it by itself)"
TIMEOUT_S = 30.0
_SCHEMA = 1
_MODE = 0o640
_LARGEST = 16 * 1024 * 1024
_TAG = re.compile(r"[A-Za-z0-9_:-]{1,255}")  # the API's published pattern


class DropletLister(Protocol):
    """What a discovery needs of the API."""

    async def list_droplets(self, tag: str, timeout_s: float) -> tuple[Droplet, ...]:
        """GET the Droplets that carry a tag: all, or an error."""
        ...


@dataclass(frozen=True, slots=True)
class Discovery:
    """The Droplets of a tag as the API listed them at `asked_at` (RFC 3339), and who asked: `hostname`, a Droplet in a region."""

    tag: str
    asked_at: str
    droplets: tuple[Droplet, ...]
    droplet_id: int | None = None
    region: str | None = None
    hostname: str | None = None


def check_tag(tag: str) -> str | None:
    """Return what is wrong with a tag; None where nothing is. An empty one would mean every Droplet of the account."""
    if _TAG.fullmatch(tag):
        return None
    return f"peers.tag: {tag[:80]!r} is not a Droplet tag (letters, digits, `:`, `-`, `_`); no Droplet is known by it"


async def refresh_discovery(api: DropletLister, tag: str, *, me: Identity, at: datetime, timeout_s: float = TIMEOUT_S) -> Discovery:
    """Ask the API for the Droplets of the tag; the caller keeps the answer (save_discovery).

    Give it a client of its own: a slow list must not hold up the connection of a failover. Raises what the client
    raises, for an answer that is not whole too, and ConfigError for a tag that can't be one.
    """
    wrong = check_tag(tag)
    if wrong is not None:
        raise ConfigError(wrong)
    droplets = await api.list_droplets(tag, timeout_s)
    return Discovery(tag, at.astimezone(UTC).isoformat(timespec="seconds"), droplets, me.droplet_id, me.region, socket.gethostname())


def locate_discovery(config: Config) -> Path:
    """Return where the kept discovery lies: beside the history."""
    return Path(config.paths.history_dir).parent / "discovery.json"


def is_kept(config: Config) -> bool:
    """Tell whether a failover has what it needs: no tag is configured, or its kept discovery can be used."""
    if config.peers.tag is None:
        return True
    try:
        kept = load_discovery(locate_discovery(config))
    except TemporaryError:
        return False
    return kept is not None and kept.tag == config.peers.tag


def load_discovery(path: Path) -> Discovery | None:
    """Return the kept discovery; None where there is none yet. Raises TemporaryError (kind discovery) for one that can't be used."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(file, "rb") as stream:
            _check_file(os.fstat(file))
            return _decode(stream.read())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else clean_text(str(error))
        msg = f"the kept discovery {path} can't be used ({reason}), and only listed peers are refreshed; {REFRESH}"
        raise TemporaryError(msg, kind="discovery") from None


def _check_file(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST:
        msg = "it is not a file of sane size"
        raise ValueError(msg)


def save_discovery(path: Path, found: Discovery) -> None:
    """Replace the kept discovery (0640, the directory's owner). Blocks on the disk. Raises TemporaryError (kind discovery)."""
    fields = {"schema": _SCHEMA, **msgspec.to_builtins(found)}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        _remove_leftovers(path)
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, _MODE)
        with os.fdopen(file, "wb") as stream:
            os.fchmod(file, _MODE)  # whatever the umask says
            if os.geteuid() == 0:  # a person's `peers --refresh`: the daemon's user must be able to read it
                owner = path.parent.stat()
                os.fchown(file, owner.st_uid, owner.st_gid)
            stream.write(msgspec.json.encode(fields))
            stream.flush()
            os.fsync(file)
        temporary.replace(path)
        _sync_directory(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        msg = (
            f"the discovered Droplets can't be kept in {path} ({error.strerror}): a failover will use those of before; "
            f"check the disk, and owner and mode of the directory"
        )
        raise TemporaryError(msg, kind="discovery") from None


def _remove_leftovers(path: Path) -> None:
    """Remove what a writer that died has left."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        pid = leftover.name.split(".")[-2]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            with suppress(OSError):
                leftover.unlink()


def _sync_directory(directory: Path) -> None:
    place = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(place)
    finally:
        os.close(place)


class _Schema(msgspec.Struct):
    schema: int


def _decode(data: bytes) -> Discovery:
    try:
        if msgspec.json.decode(data, type=_Schema).schema != _SCHEMA:
            msg = "it is of another version"
            raise ValueError(msg)
        found = msgspec.json.decode(data, type=Discovery)
    except (msgspec.MsgspecError, RecursionError) as error:
        msg = f"it is no discovery: {error}"
        raise ValueError(msg) from None
    if datetime.fromisoformat(found.asked_at).tzinfo is None:
        msg = "its time has no zone"
        raise ValueError(msg)
    words = {found.tag, found.region, found.hostname}
    for droplet in found.droplets:
        words |= {droplet.name, droplet.region, droplet.status}
        for address in (*droplet.private_addresses, *droplet.public_addresses, *droplet.public_addresses_v6):
            if parse_unicast(address) != address:
                msg = f"{address!r} is no address"
                raise ValueError(msg)
    if any(clean_text(word) != word for word in words if word is not None):
        msg = "it holds text that is not fit for a terminal"
        raise ValueError(msg)
    return found
