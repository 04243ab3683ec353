"""Reads the TOML configuration into one frozen Config.

Guarantees: all problems are reported at once, each with its key (or its line, where the file is
not TOML); nothing is coerced; what is merely untidy is a *nit*, which the caller prints as a
warning at failover and as an error in `config check` (I9). The token is never read here.
"""

from __future__ import annotations

import difflib
import importlib.util
import ipaddress
import os
import re
import stat
import tomllib
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints
from urllib.parse import urlsplit

import msgspec

from do_failover.errors import ConfigError
from do_failover.foreign import parse_unicast
from do_failover.model import NotifyEvent, NotifyType, VrrpState

DEFAULT_PATH = Path("/etc/do-failover/config.toml")


@dataclass(frozen=True, slots=True)
class DigitalOceanConfig:
    """How to reach DigitalOcean, and who this machine is where the metadata service can't say."""

    token_file: str | None = None
    api_url: str = "https://api.digitalocean.com/v2/"
    metadata_url: str = "http://169.254.169.254/metadata/v1"
    ca_file: str | None = None
    droplet_id: int | None = None
    region: str | None = None


@dataclass(frozen=True, slots=True)
class Router:
    """One load balancer of the pair."""

    droplet_id: int
    address: str


@dataclass(frozen=True, slots=True)
class FailoverConfig:
    """One reserved IP and the VRRP name that decides over it."""

    reserved_ip: str
    instance: str | None = None
    group: str | None = None
    interface: str = "eth0"
    deadline_s: float = 60.0
    routers: tuple[Router, ...] = ()
    refresh_s: float = 120.0
    settle_s: float = 30.0
    guard_s: float = 30.0
    cool_off_s: float = 60.0
    garp_repeat: int = 3
    garp_interval_s: float = 0.3

    @property
    def vrrp_name(self) -> str | None:
        """Return keepalived's name, of the instance or of the group."""
        return self.instance if self.instance is not None else self.group

    @property
    def vrrp_type(self) -> NotifyType:
        """Return of which of the two that name is."""
        return NotifyType.INSTANCE if self.instance is not None else NotifyType.GROUP

    def make_event(self, state: VrrpState) -> NotifyEvent:
        """Return what keepalived would say of that name."""
        return NotifyEvent(self.vrrp_type, self.vrrp_name or "", state)


@dataclass(frozen=True, slots=True)
class PeersConfig:
    """Where the peers are known from (file, hosts, Droplet tag: all that are set), and how to reach them.

    `probe`: what proves a peer's path, "icmp" or "tcp:PORT": then each peer also connects to that port of the reserved IP.
    `fanout`: "ssh", or "clustershell": by way of the gateways of `topology` (None: ClusterShell's own search), as `gateway_user`.
    """

    file: str | None = None
    hosts: tuple[str, ...] = ()
    tag: str | None = None
    user: str | None = None
    identity_file: str | None = None
    known_hosts: str = "~/.ssh/known_hosts"
    ssh_config: str | None = None
    connect_timeout_s: float = 5.0
    command_timeout_s: float = 5.0
    concurrency: int = 64
    probe: str = "icmp"
    fanout: str = "ssh"
    topology: str | None = None
    gateway_user: str | None = None

    @property
    def is_tree(self) -> bool:
        """Return whether peers are reached through ClusterShell's gateways."""
        return self.fanout == _TREE

    @property
    def probe_port(self) -> int | None:
        """Return the port of "tcp:PORT"; None for "icmp"."""
        kind, _, port = self.probe.partition(":")
        return int(port) if kind == "tcp" else None


@dataclass(frozen=True, slots=True)
class KeepalivedConfig:
    """Where keepalived keeps its things."""

    pid_file: str = "/run/keepalived.pid"
    fifo: str = "/run/do-failover/vrrp.fifo"
    script_user: str = "keepalived_script"


@dataclass(frozen=True, slots=True)
class PathsConfig:
    """Where do-failover keeps its own: locks of running failovers, and the history."""

    run_dir: str = "/run/do-failover"
    history_dir: str = "/var/lib/do-failover/history"


@dataclass(frozen=True, slots=True)
class Config:
    """The whole configuration as it is in effect."""

    path: str
    digitalocean: DigitalOceanConfig
    failover: tuple[FailoverConfig, ...]
    peers: PeersConfig
    keepalived: KeepalivedConfig
    paths: PathsConfig
    nits: tuple[str, ...] = field(default=())


_TREE = "clustershell"
_PROBE = re.compile(r"icmp|tcp:(?!0)(?:[0-9]{1,4}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])", re.ASCII)
_POSITIVE = {"deadline_s", "guard_s", "cool_off_s", "connect_timeout_s", "command_timeout_s", "concurrency", "garp_repeat"}
_NOT_NEGATIVE = {"refresh_s", "settle_s", "garp_interval_s"}
_SECTIONS: dict[str, type[Any]] = {
    "digitalocean": DigitalOceanConfig,
    "peers": PeersConfig,
    "keepalived": KeepalivedConfig,
    "paths": PathsConfig,
}


def load_config(path: Path) -> Config:
    """Read and check the file. Raises ConfigError with all problems; nits are in the result."""
    try:
        text = path.read_bytes().decode()
    except FileNotFoundError:
        msg = f"{path}: no such file; write it first (see README.md), or name another with -c"
        raise ConfigError(msg) from None
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{path}: cannot be read: {error}"
        raise ConfigError(msg) from None
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        msg = f"{path}: not valid TOML: {error}"
        raise ConfigError(msg) from None
    return parse_config(document, str(path))


def parse_config(document: dict[str, Any], path: str) -> Config:
    """Turn a parsed TOML document into a Config (see load_config)."""
    reader = _Reader()
    sections = {name: reader.read_table(kind, document.get(name, {}), name) for name, kind in _SECTIONS.items()}
    failovers = _read_failovers(reader, document.get("failover"))
    reader.note_unknown(document, {*_SECTIONS, "failover"}, "")
    if sections["digitalocean"] is not None:
        _check_urls(reader, sections["digitalocean"])
    if sections["peers"] is not None:
        _check_peers(reader, sections["peers"])
    if reader.problems:
        raise ConfigError(*(f"{path}: {problem}" for problem in reader.problems))
    return Config(path=path, failover=failovers, nits=tuple(f"{path}: {nit}" for nit in reader.nits), **sections)


def find_file_nits(config: Config) -> list[str]:
    """Return one sentence for each secret file that others can read or write (modes only)."""
    nits = []
    for key, name in (("token_file", config.digitalocean.token_file), ("identity_file", config.peers.identity_file)):
        if name is None:
            continue
        try:
            mode = expand_path(name).stat().st_mode
        except OSError:
            continue  # whoever needs the file says that it is missing
        if mode & (stat.S_IRWXO | stat.S_IWGRP):
            nits.append(f"{key} {name} has mode {stat.S_IMODE(mode):04o}: others can use it; chmod 0640 (or 0600) {name}")
    return nits


def find_missing_files(config: Config) -> list[str]:
    """Return one sentence for each file that the configuration names and that can't be read: looked for by daylight."""
    named = {
        "digitalocean.ca_file": config.digitalocean.ca_file,
        "peers.identity_file": config.peers.identity_file,
        "peers.known_hosts": config.peers.known_hosts,
        "peers.ssh_config": config.peers.ssh_config,
        "peers.topology": config.peers.topology if config.peers.is_tree else None,
    }
    problems = []
    if config.peers.is_tree and importlib.util.find_spec("ClusterShell") is None:
        problems.append(
            f'peers.fanout: "{_TREE}" needs ClusterShell, which is not installed here: no peer would be reached; '
            "pip install 'do-failover[clustershell]'"
        )
    for key, name in named.items():
        if name is None:
            continue
        try:
            with expand_path(name).open("rb") as file:
                file.read(1)
                is_shared = bool(os.fstat(file.fileno()).st_mode & (stat.S_IRWXG | stat.S_IRWXO))
                if key == "peers.identity_file" and config.peers.is_tree and is_shared:
                    problems.append(f"{key}: ssh refuses a key that others can read; give {name} to the daemon's user, and chmod 0600")
        except OSError as error:
            problems.append(f"{key}: {name} cannot be read ({error.strerror})")
    return problems


def expand_path(name: str) -> Path:
    """Expand `~`. What can't be expanded, or can't be a path at all, becomes one that nothing is found at."""
    try:
        return Path(name.replace("\0", "?")).expanduser()
    except RuntimeError:
        return Path("/") / name  # no longer begins with `~`, for whoever expands it again


def find_failover(config: Config, reserved_ip: str | None) -> FailoverConfig:
    """Return the [[failover]] entry of that reserved IP; None asks for the only one."""
    known = ", ".join(entry.reserved_ip for entry in config.failover)
    if reserved_ip is None:
        if len(config.failover) == 1:
            return config.failover[0]
        msg = f"{config.path} has {len(config.failover)} reserved IPs: say which one ({known})"
        raise ConfigError(msg)
    try:
        wanted = str(ipaddress.ip_address(reserved_ip))
    except ValueError:
        msg = f"{reserved_ip!r} is not an IP address"
        raise ConfigError(msg) from None
    for entry in config.failover:
        if entry.reserved_ip == wanted:
            return entry
    msg = f"{wanted} is not a reserved IP of {config.path}, which has: {known}"
    raise ConfigError(msg)


def _read_failovers(reader: _Reader, value: object) -> tuple[FailoverConfig, ...]:
    if not isinstance(value, list) or not value:
        reader.problems.append("failover: at least one [[failover]] table is needed, with reserved_ip and instance (or group)")
        return ()
    entries: list[FailoverConfig] = []
    for number, table in enumerate(value):
        where = f"failover[{number}]"
        entry = reader.read_table(FailoverConfig, table, where)
        if entry is None:
            continue
        if (entry.instance is None) == (entry.group is None):
            reader.problems.append(f"{where}: exactly one of instance and group is needed (keepalived's name)")
        try:
            entries.append(_with_canonical_address(entry))
        except ValueError:
            reader.problems.append(f"{where}.reserved_ip: {entry.reserved_ip!r} is not a unicast IPv4 or IPv6 address")
    _check_twice(reader, entries)
    return tuple(entries)


def _with_canonical_address(entry: FailoverConfig) -> FailoverConfig:
    values = {item.name: getattr(entry, item.name) for item in fields(entry)}
    address = parse_unicast(entry.reserved_ip)
    if address is None:
        raise ValueError(entry.reserved_ip)
    return FailoverConfig(**{**values, "reserved_ip": address})


def _check_twice(reader: _Reader, entries: list[FailoverConfig]) -> None:
    addresses = [entry.reserved_ip for entry in entries]
    for address in sorted({address for address in addresses if addresses.count(address) > 1}):
        reader.problems.append(f"failover: {address} appears more than once")


def _check_urls(reader: _Reader, value: DigitalOceanConfig) -> None:
    for key in ("api_url", "metadata_url"):
        try:
            parts = urlsplit(getattr(value, key))
            is_url = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            is_url = False
        if not is_url or not parts.hostname:
            reader.problems.append(f"digitalocean.{key}: {getattr(value, key)!r} is not an http(s) URL")
        elif key == "api_url" and parts.scheme == "http" and not _is_loopback(parts.hostname):
            reader.problems.append("digitalocean.api_url: plain http would send the token in clear; use https")


def _check_peers(reader: _Reader, value: PeersConfig) -> None:
    if not _PROBE.fullmatch(value.probe):
        reader.problems.append(f'peers.probe: {value.probe!r} is neither "icmp" nor "tcp:PORT", such as "tcp:443"')
    elif value.is_tree and value.probe_port is not None:
        reader.nits.append(f'peers.probe: {value.probe!r} needs fanout = "ssh": through ClusterShell peers are asked to ping only')
    if value.fanout not in {"ssh", _TREE}:
        reader.problems.append(f'peers.fanout: {value.fanout!r} is neither "ssh" nor "{_TREE}"')
    unread = [key for key in ("topology", "gateway_user") if getattr(value, key) is not None and value.fanout == "ssh"]
    reader.nits.extend(
        f'peers.{key}: nobody reads it while peers.fanout is "ssh"; set fanout = "{_TREE}", or leave it out' for key in unread
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Reader:
    """Collects problems and nits while it reads tables into dataclasses."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.nits: list[str] = []

    def read_table(self, kind: type[Any], table: object, where: str) -> Any:  # noqa: ANN401 - one of the dataclasses
        """Return an instance of `kind`, or None when something in it was a problem."""
        if not isinstance(table, dict):
            self.problems.append(f"{where}: expected a table, got {type(table).__name__}")
            return None
        before = len(self.problems)
        hints = get_type_hints(kind)
        values: dict[str, Any] = {}
        for item in fields(kind):
            if item.name in table:
                values[item.name] = self._read_value(table[item.name], hints[item.name], f"{where}.{item.name}")
            elif item.default is MISSING and item.default_factory is MISSING:
                self.problems.append(f"{where}.{item.name}: missing")
        self.note_unknown(table, {item.name for item in fields(kind)}, f"{where}.")
        return kind(**values) if len(self.problems) == before else None

    def _read_value(self, value: object, kind: Any, where: str) -> Any:  # noqa: ANN401 - whatever the key holds
        try:
            result = msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            self.problems.append(f"{where}: {_lower_first(str(error))}")
            return None
        key = where.rpartition(".")[2]
        if isinstance(result, (int, float)) and not (
            (key not in _POSITIVE or result > 0) and (key not in _NOT_NEGATIVE or result >= 0) and result < _HUGE
        ):
            self.problems.append(f"{where}: {result} is out of range")
        return result

    def note_unknown(self, table: dict[str, Any], known: set[str], where: str) -> None:
        """Record a nit for each key that nobody reads, with the nearest known one."""
        for key in table:
            if key in known:
                continue
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            self.nits.append(f"{where}{key}: unknown key{hint}")


_HUGE = 10**12  # no duration, count or Droplet id is larger; keeps inf and nan out as well


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
