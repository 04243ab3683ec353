"""Writes what each node needs below its /run: configuration, keys, the notify hook."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from do_failover.lab import assign_only, daemon, files, keepalived
from do_failover.lab.keys import KeyPair, make_key

if TYPE_CHECKING:
    from do_failover.lab.node import Node
    from do_failover.lab.plan import Plan


@dataclass(frozen=True, slots=True, repr=False)
class Equipment:
    """What all nodes have in common. No repr: it holds keys and the token."""

    plan: Plan
    token: str
    ca_pem: bytes
    with_tool: bool
    with_daemon: bool = False
    unarmed: int = 0

    def write(self, nodes: dict[str, Node]) -> None:
        """Equip every node, with fresh keys."""
        host_keys = {peer.name: make_key() for peer in self.plan.peers}
        identities = {lb.name: make_key() for lb in self.plan.balancers}
        known_hosts = files.known_hosts(self.plan, {name: key.public for name, key in host_keys.items()})
        for lb in self.plan.balancers:
            self._equip_balancer(nodes[lb.name], identities[lb.name], known_hosts)
        authorized = "".join(f"{key.public} {name}\n" for name, key in identities.items())
        for peer in self.plan.peers:
            _equip_peer(nodes[peer.name], host_keys[peer.name], authorized)

    def _equip_balancer(self, node: Node, identity: KeyPair, known_hosts: str) -> None:
        _write(node, "token", f"{self.token}\n", mode=0o600)
        _write(node, "ca.pem", self.ca_pem)
        _write(node, "identity", identity.private, mode=0o600)
        _write(node, "known_hosts", known_hosts)
        _write(node, "peers", files.peers(self.plan.peers[: len(self.plan.peers) - self.unarmed]))
        _write(node, "config.toml", files.config_toml(self.plan, with_daemon=self.with_daemon))
        _write(node, "haproxy.cfg", files.haproxy_cfg(node.host, self.plan))
        _write(node, "keepalived.conf", self._keepalived_conf(node))
        _write(node, "notify", self._hook(), mode=0o755)
        _write(node, "do-failover", files.program(sys.executable), mode=0o755)
        (node.files / files.HISTORY).mkdir(mode=0o700)
        if self.with_daemon:
            _write(node, "do-failover-notify", daemon.shim(), mode=0o755)
            daemon.give_files(node.files)

    def _keepalived_conf(self, node: Node) -> str:
        return keepalived.configuration(node.host, self.plan, keepalived.example(), with_daemon=self.with_daemon)

    def _hook(self) -> str:
        if self.with_daemon:
            return files.notify_with_daemon()
        if self.with_tool:
            return files.notify_with_tool(sys.executable)
        return files.notify_without_tool(sys.executable, assign_only.__file__, self.plan)


def _equip_peer(node: Node, host_key: KeyPair, authorized_keys: str) -> None:
    _write(node, "host_key", host_key.private, mode=0o600)
    _write(node, "authorized_keys", authorized_keys)
    _write(node, "sshd_config", files.sshd_config(node.host))
    for name in ("sshd", "home"):
        (node.files / name).mkdir(mode=0o755)
    os.chown(node.files / "home", files.UID, files.UID)


def _write(node: Node, name: str, content: str | bytes, *, mode: int = 0o644) -> None:
    path = node.files / "lab" / name
    path.touch(mode)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
