"""Says what went wrong with a peer: one operator's sentence and one kind for each way to fail. Pure."""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

import asyncssh

from do_failover.errors import PeerError

if TYPE_CHECKING:
    from do_failover.ssh.trust import Trusted

_LONGEST = 200


@dataclass(slots=True)
class Target:
    """Whom a login is for, and how far it came; filled in as it goes."""

    label: str
    host: str
    port: int
    user: str
    timeout_s: float
    name: str = ""
    address: str | None = None
    fingerprint: str | None = None
    phase: str = "name"
    via: str | None = None  # the jump host

    @property
    def entry(self) -> str:
        """Return the name that known_hosts knows the host by."""
        return self.name if self.port == asyncssh.DEFAULT_PORT else f"[{self.name}]:{self.port}"


def clean(text: str) -> str:
    """Return text of a peer's or a library's on one short line, without control characters."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."


def say(label: str, sentence: str, kind: str) -> PeerError:
    """Return the error of that peer."""
    return PeerError(f"{label}: {sentence}", kind=kind)


def describe_timeout(target: Target) -> PeerError:
    """Say where the time went."""
    where = f"{target.address or target.host} port {target.port}"
    sentence = {
        "name": f"the name {target.host!r} was not resolved within {target.timeout_s:g} s: "
        "the resolver does not answer; list the peer by its address",
        "channel": f"the jump host {target.via} did not connect to {where} within {target.timeout_s:g} s: "
        "the Droplet is down, or a firewall drops SSH from there",
        "tcp": f"no answer from {where} within {target.timeout_s:g} s: the Droplet is down, or a firewall drops SSH",
        "login": f"{where} accepts TCP, but the SSH login was not over within {target.timeout_s:g} s: "
        "its sshd hangs, or the Droplet is overloaded; look at it through its console",
    }[target.phase]
    return say(target.label, sentence, "unreachable")


def describe_failure(error: BaseException, target: Target, trusted: Trusted) -> PeerError:
    """Turn whatever a login raised into the peer's row. No type of exception is left out (I7)."""
    if isinstance(error, PeerError):
        return error
    if isinstance(error, TimeoutError):
        return describe_timeout(target)
    if isinstance(error, asyncssh.ChannelOpenError):
        return _describe_channel(error, target)
    if target.phase in {"login", "channel"}:
        return _describe_login(error, target, trusted)
    if isinstance(error, OSError):
        return _describe_network(error, target)
    sentence = f"{target.host!r} port {target.port} cannot be used ({clean(str(error))}); check the fan-out list"
    return say(target.label, sentence, "unreachable")


def _describe_network(error: OSError, target: Target) -> PeerError:
    if isinstance(error, socket.gaierror) or target.phase == "name":
        reason = clean(error.strerror or str(error))
        sentence = f"the name {target.host!r} does not resolve ({reason}); check the fan-out list, or list its address"
        return say(target.label, sentence, "unreachable")
    where = f"{target.address or target.host} port {target.port}"
    reason = {
        errno.ECONNREFUSED: f"{where} refused the connection: sshd is not running there, or listens on another port",
        errno.EHOSTUNREACH: f"there is no way to {where}: the Droplet is down, or a firewall rejects it",
        errno.ENETUNREACH: f"there is no route to {where} from here: check this Droplet's private network",
    }.get(error.errno or 0, f"{where} cannot be connected to ({clean(error.strerror or str(error))})")
    return say(target.label, reason, "unreachable")


def _describe_channel(error: asyncssh.ChannelOpenError, target: Target) -> PeerError:
    where, reason = f"{target.host} port {target.port}", clean(error.reason)
    if error.code == asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED:
        sentence = (
            f"the jump host {target.via} does not permit a channel to {where} ({reason}): see AllowTcpForwarding and PermitOpen "
            f"in its sshd_config, and the options of our key there"
        )
    else:
        sentence = (
            f"the jump host {target.via} cannot connect to {where} ({reason}): the Droplet is down, sshd is not running there, "
            f"or the jump host does not know that name"
        )
    return say(target.label, sentence, "unreachable")


def _describe_login(error: BaseException, target: Target, trusted: Trusted) -> PeerError:
    where = f"{target.address or target.host} port {target.port}"
    text = clean(str(error))
    if isinstance(error, asyncssh.HostKeyNotVerifiable) or (isinstance(error, asyncssh.KeyExchangeFailed) and "host key" in text):
        return _describe_host_key(text, target, trusted)
    if isinstance(error, asyncssh.PermissionDenied) or "authentication failures" in text:
        sentence = (
            f"{where} refused every key offered for user {target.user!r} ({text}): add the public key to that "
            f"user's authorized_keys, or check peers.user and peers.identity_file"
        )
        return say(target.label, sentence, "refused")
    if isinstance(error, (asyncssh.ConnectionLost, ConnectionError)):
        sentence = (
            f"{where} closed the connection during the SSH login ({text}): sshd is overloaded "
            f"(MaxStartups), blocks this address, or is not sshd"
        )
        return say(target.label, sentence, "unreachable")
    sentence = f"{where} does not speak SSH that we understand ({type(error).__name__}: {text}); is it sshd's port?"
    return say(target.label, sentence, "unreachable")


def _describe_host_key(text: str, target: Target, trusted: Trusted) -> PeerError:
    seen = target.fingerprint or "of another type"
    path = trusted.known_hosts_path
    if "revoked" in text:
        sentence = f"its host key is marked @revoked in {path}; it is not connected to"
    elif "ertificate" in text or "CA key" in text or "rincipal" in text:
        sentence = f"its host certificate is not accepted ({text}); sign a new one, or check @cert-authority in {path}"
    elif trusted.knows(target.name, target.address or "", target.port):
        sentence = (
            f"its host key changed: it showed {seen}, and {path} has another. This may be an attack, or a rebuilt "
            f"Droplet; nothing was sent to it. If it was rebuilt: ssh-keygen -R '{target.entry}' -f {path}, then add "
            f"the new key"
        )
    else:
        unread = f" ({trusted.unread})" if trusted.unread else ""
        place = f", on the jump host {target.via}" if target.via else ""
        sentence = (
            f"its host key ({seen}) is not in {path}{unread}, so it is not trusted. Compare the fingerprint on the "
            f"Droplet's console (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub), then{place}: "
            f"ssh-keyscan -p {target.port} {target.host} >> {path}"
        )
    return say(target.label, sentence, "host_key")
