"""`do-failover peers authorize`: what to put on a peer, so that the load balancers' key may refresh it and do nothing else.

Guarantees: nothing is sent to a peer and no file is written; what is printed holds no secret. The script in it is this
installation's own, and takes no address but those of the list.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING

import click

from do_failover import iproute
from do_failover.cli.options import HELP, common_options, read_config
from do_failover.cli.output import print_json, warn
from do_failover.cli.wiring import make_api, read_identity
from do_failover.config import expand_path
from do_failover.discovery import load_discovery, locate_discovery
from do_failover.errors import FailoverError, PermanentError
from do_failover.foreign import parse_unicast

if TYPE_CHECKING:
    from collections.abc import Iterable

    from do_failover.config import Config
    from do_failover.do_api.client import DigitalOceanApi
    from do_failover.model import Droplet, Identity

HOME = "/var/lib/do-failover-peer"
PROGRAM = "/usr/lib/do-failover/do-failover-peer"
_TEMPLATES = {"text": "peer-authorize.sh", "cloud-init": "peer-cloud-init.yaml", "ansible": "peer-ansible.yaml"}
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,30}", re.ASCII)
_WIDEST = {4: 8, 6: 32}  # as do-failover-peer has it
_DEFAULT_USER = "do-failover"
_PATIENCE_S = 5.0
_VPC_INTERFACE = "eth1"


@dataclass(frozen=True, slots=True)
class Authorization:
    """What a peer gets: a user, and one line of its authorized_keys."""

    user: str
    key: str
    sources: tuple[str, ...]
    allowed: tuple[str, ...]
    probe_port: int | None = None

    @property
    def line(self) -> str:
        """Return the line. `restrict` takes away everything; the command is what is left, and with peers.probe one port of each address."""
        command = f'command="{PROGRAM} --allow {",".join(self.allowed)}"'
        return f'restrict{self._permit_probe()},from="{",".join(self.sources)}",{command} {self.key}'

    def _permit_probe(self) -> str:
        """Return the options for peers.probe. Port 1: no user may listen there; without permitlisten any port would do."""
        hosts = [f"[{address}]" if ":" in address else address for address in self.allowed if "/" not in address]
        if self.probe_port is None or not hosts:
            return ""
        opened = ",".join(f'permitopen="{host}:{self.probe_port}"' for host in hosts)
        return f',port-forwarding,{opened},permitlisten="localhost:1"'


@dataclass(slots=True)
class _Pair:
    """The load balancers, as far as they are known."""

    sources: list[str] = field(default_factory=list)
    allowed: list[str] = field(default_factory=list)
    nits: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


@click.command(context_settings=HELP, epilog="Example: do-failover peers authorize --format cloud-init")
@click.option("--user", envvar="DO_FAILOVER_USER", metavar="NAME", help="The user on the peer.  [default: peers.user, or do-failover]")
@click.option(
    "--from", "sources", multiple=True, metavar="ADDR", help="Only from here the key counts.  [default: the private addresses of the pair]"
)
@click.option("--allow", "allowed", multiple=True, metavar="ADDR", help="An address or prefix that the peer may ping as well.")
@click.option("--key", "key_file", envvar="DO_FAILOVER_KEY", metavar="PUBFILE", help="The public key.  [default: of peers.identity_file]")
@click.option(
    "--format",
    "shape",
    type=click.Choice(list(_TEMPLATES)),
    default="text",
    show_default=True,
    envvar="DO_FAILOVER_FORMAT",
    help="A shell script, or what does the same elsewhere.",
)
@common_options
@click.pass_context
def authorize(
    context: click.Context,
    user: str | None,
    sources: tuple[str, ...],
    allowed: tuple[str, ...],
    key_file: str | None,
    shape: str,
    config_path: str | None,
    output: str,
    verbose: bool,  # noqa: ARG001 - a common option
) -> int:
    """Print what to put on each peer: a user, a key line that allows one script, and the script.

    The key then counts only from the load balancers, and may only ping their addresses and show what the kernel knows of
    them. Run it as root: do-failover peers authorize | ssh root@PEER sh
    """
    if user is not None:
        _check_user(user)
    wanted_sources = [_read_prefix("--from", text, {4: 0, 6: 0}) for text in sources]
    wanted = [_read_prefix("--allow", text, _WIDEST) for text in allowed]
    config, nits = read_config(context, config_path)
    pair = asyncio.run(_find_pair(config, is_complete=bool(wanted_sources)))
    if pair.unknown and not wanted:
        raise PermanentError("; ".join(pair.unknown), kind="unknown_address")
    given = Authorization(
        user=user or _choose_user(config),
        key=_read_key(config, key_file),
        sources=tuple(dict.fromkeys(wanted_sources or pair.sources)),
        allowed=tuple(dict.fromkeys([*pair.allowed, *wanted])),
        probe_port=config.peers.probe_port,
    )
    if not given.sources:
        msg = "the load balancers' private addresses are not known: name them by --from, once for each, or in failover.routers"
        raise click.UsageError(msg)
    nits += [*pair.nits, *pair.unknown, *_find_nits(given, config.peers.user)]
    for nit in nits:
        warn(nit)
    _print(given, shape, output, nits)
    return 0


def render(given: Authorization, shape: str) -> str:
    """Return the snippet of that shape: text, cloud-init or ansible."""
    text = _read_shared(_TEMPLATES[shape])
    blocks = {"@SCRIPT@": _read_shared("do-failover-peer").rstrip("\n"), "@LINE@": given.line}
    for mark, block in blocks.items():
        text = re.sub(rf"^( *){mark}$", lambda match, block=block: _indent(block, match[1]), text, flags=re.MULTILINE)  # type: ignore[misc]
    directory = PROGRAM.rpartition("/")[0]
    for mark, value in (("@USER@", given.user), ("@HOME@", HOME), ("@PROGRAM@", PROGRAM), ("@PROGRAM_DIRECTORY@", directory)):
        text = text.replace(mark, value)
    return text


def _print(given: Authorization, shape: str, output: str, nits: list[str]) -> None:
    snippet = render(given, shape)
    if output != "json":
        click.echo(snippet, nl=False)
        return
    import msgspec

    answer = {
        "schema": 1,
        "outcome": "done",
        "exit_code": 0,
        "user": given.user,
        "home": HOME,
        "script": PROGRAM,
        "from": given.sources,
        "allow": given.allowed,
        "authorized_key": given.line,
        "format": shape,
        "snippet": snippet,
        "nits": nits,
    }
    print_json(msgspec.json.encode(answer))


def _indent(block: str, margin: str) -> str:
    return "\n".join(margin + line if line else "" for line in block.split("\n"))


def _read_shared(name: str) -> str:
    return resources.files("do_failover").joinpath("share", name).read_text(encoding="utf-8")


def _check_user(user: str) -> None:
    if not _USER.fullmatch(user):
        msg = f"--user: {user!r} is no name of a system user"
        raise click.UsageError(msg)
    if user == "root":
        msg = "--user: root needs no key of ours; choose a user of its own, which may do nothing else"
        raise click.UsageError(msg)


def _read_prefix(option: str, text: str, widest: dict[int, int]) -> str:
    try:
        network = ipaddress.ip_network(text)
    except ValueError as error:
        msg = f"{option}: {text!r} is not an address or a prefix ({error})"
        raise click.UsageError(msg) from None
    if network.prefixlen < widest[network.version] or parse_unicast(str(network.network_address)) is None:
        msg = f"{option}: {text} is not unicast, or wider than /{widest[network.version]}"
        raise click.UsageError(msg)
    return str(network.network_address) if network.num_addresses == 1 else str(network)


def _read_key(config: Config, key_file: str | None) -> str:
    from do_failover.ssh.identity import read_public_key

    identity = config.peers.identity_file
    return read_public_key(str(expand_path(identity)) if identity is not None else None, key_file)


async def _find_pair(config: Config, *, is_complete: bool) -> _Pair:
    """Return the addresses of both load balancers: by failover.routers, this Droplet's metadata, the API, the kept discovery."""
    me = await read_identity(config)
    routers = {router.droplet_id: router.address for entry in config.failover for router in entry.routers}
    pair = _Pair(sources=list(routers.values()), allowed=[entry.reserved_ip for entry in config.failover])
    families: set[int] = {ipaddress.ip_address(address).version for address in pair.allowed}
    own = () if me.droplet_id is None else (me.droplet_id,)
    api = make_api(config)
    try:
        for number in dict.fromkeys((*routers, *own)):
            await _take_droplet(pair, number, me, families, config, api, is_listed=number in routers)
    finally:
        api.close()
    if len({*routers, *own}) < 2 and not is_complete:  # noqa: PLR2004 - a pair
        pair.nits.append("only one load balancer is known: the other one's key line would refuse it; write both into failover.routers")
    return pair


async def _take_droplet(
    pair: _Pair, number: int, me: Identity, families: set[int], config: Config, api: DigitalOceanApi, *, is_listed: bool
) -> None:
    """Add what is known of one load balancer."""
    reserved = {entry.reserved_ip for entry in config.failover}
    reason = "the API doesn't tell it"
    kept = _recall(config, number)
    public = [*kept.public_addresses, *kept.public_addresses_v6] if kept is not None else []
    try:
        public += (await api.read_droplet(number, _PATIENCE_S)).public_addresses
    except FailoverError as error:
        reason = error.message
    if number == me.droplet_id:
        public += [address for address in (me.public_address, me.public_address_v6) if address is not None]
    for version in families:
        fitting = [address for address in public if address not in reserved and ipaddress.ip_address(address).version == version]
        pair.allowed += fitting
        if not fitting:
            pair.unknown.append(
                f"the public IPv{version} address of the load balancer {number} is not known ({reason}): name it by --allow"
            )
    if not is_listed:
        pair.sources += kept.private_addresses[:1] if kept is not None else await _read_own_private()


async def _read_own_private() -> list[str]:
    """Return this Droplet's address on its VPC, if it is where DigitalOcean puts it."""
    try:
        found = await iproute.read_addresses(_VPC_INTERFACE)
    except FailoverError:
        return []
    return [str(each.ip) for each in found if each.version == 4][:1]  # noqa: PLR2004 - IPv4


def _recall(config: Config, number: int) -> Droplet | None:
    try:
        kept = load_discovery(locate_discovery(config))
    except FailoverError:
        return None
    return next((droplet for droplet in kept.droplets if droplet.id == number), None) if kept is not None else None


def _choose_user(config: Config) -> str:
    """Return whom do-failover logs in as, where that can be a user of the key's own."""
    user = config.peers.user
    return user if user is not None and user != "root" and _USER.fullmatch(user) else _DEFAULT_USER


def _find_nits(given: Authorization, login: str | None) -> Iterable[str]:
    """Say what is not as it should be. `login`: peers.user."""
    if login != given.user:
        seen = "not set, so do-failover logs in as whoever it runs as" if login is None else f"{login}, so do-failover logs in as {login}"
        yield f'peers.user is {seen}; set user = "{given.user}" in [peers]'
    if len(given.sources) == 1:
        yield f"the key counts from {given.sources[0]} only: the other load balancer can't refresh anybody; add it by --from"
    if given.probe_port is not None:
        yield (
            "with peers.probe the key may also make Unix sockets on the peer, where its user may write; OpenSSH has no key option against "
            f"that: put `Match User {given.user}` and `AllowStreamLocalForwarding no` into its sshd_config (docs/security.md)"
        )
