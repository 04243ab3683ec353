"""A tree on loopback: sshd's as gateways and as peers, each with its own name in ssh_config files, and real ClusterShell."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from forced_command import make_stand
from sshd_bench import Bench

from do_failover.model import Peer
from do_failover.tree.settings import TreeSettings
from do_failover.tree.shell import RELAY, TreeShell

if TYPE_CHECKING:
    from forced_command import Stand

RESERVED, PUBLIC = "203.0.113.47", "198.51.100.12"
IP = """#!/bin/sh
case "$*" in *route*) printf '[{"dst":"%s","dev":"eth0","prefsrc":"10.110.0.21"}]\\n' "$4" ;; *) echo '[]' ;; esac
"""
MARK = "CLUSTERSHELL_TREE_OF_A_TEST"  # such a name is handed on
GATEWAY = f"exec {sys.executable} -m ClusterShell.Gateway -Bu"


@dataclass
class Tree:
    """Gateways and peers; `known` is what the gateways' user knows."""

    bench: Bench
    routes: dict[str, list[str]] = field(default_factory=dict)
    hosts: dict[str, Peer] = field(default_factory=dict)
    stands: dict[str, Stand] = field(default_factory=dict)

    @property
    def directory(self) -> Path:
        return self.bench.directory

    def add_gateway(self, name: str, command: str = GATEWAY) -> None:
        """An sshd that runs this only; its `ssh` knows the peers by name."""
        tools = self.directory / "tools"
        if not tools.exists():
            tools.mkdir()
            options = f"-F {self.directory}/gateway_config -i {self.bench.identity} -oUserKnownHostsFile={self.directory}/gateway_known"
            (tools / "ssh").write_text(f'#!/bin/sh\nexec /usr/bin/ssh {options} "$@"\n')
            (tools / "ssh").chmod(0o755)
            (self.directory / "gateway_known").touch()
        program = self.directory / f"{name}.sh"
        where = f"PATH={tools}:$PATH CLUSTERSHELL_GW_LOG_DIR={self.directory}"
        program.write_text(f"#!/bin/sh\n{where}\nexport PATH CLUSTERSHELL_GW_LOG_DIR\n{command}\n")
        self._add(name, f'restrict,command="sh {program}" ')

    def add_peer(self, name: str, behind: str | None = None, *, command: str | None = None, **pings: str) -> Peer:
        """A peer with the real forced command on stand-ins for its tools, or with another `command`."""
        if command is None:
            stand = self.stands[name] = make_stand(self.directory / f"stand-{name}", ("/bin/sh",), **{"ip": IP, "logger": "", **pings})
            command = f"/bin/sh {stand.script} --allow {RESERVED},{PUBLIC}"
            command = f"RECORD={stand.record} {command}"
        script = self.directory / f"{name}.sh"
        script.write_text(f"{command}\n")
        peer = self._add(name, f'restrict,command="sh {script}" ')
        if behind is not None:
            self.routes.setdefault(behind, []).append(name)
        return peer

    def add_name(self, name: str, host: Peer, behind: str | None = None) -> Peer:
        """A name for somebody else's server."""
        self.hosts[name] = host
        if behind is not None:
            self.routes.setdefault(behind, []).append(name)
        return Peer(len(self.hosts), name)

    def _add(self, name: str, options: str) -> Peer:
        number = len(self.bench._processes)
        return self.add_name(name, self.bench.add_peer(number, options=options))

    def write(self) -> None:
        """Write down who is where, for this host and for the gateways, and the topology."""
        text = "".join(f"Host {name}\n HostName {host.host}\n Port {host.port}\n" for name, host in self.hosts.items())
        (self.directory / "config").write_text(text)
        (self.directory / "gateway_config").write_text(f"StrictHostKeyChecking no\n{text}")  # what we ask for counts, not this
        if (known := self.directory / "gateway_known").exists() and not known.read_text():
            known.write_text(self.bench.known_hosts.read_text())
        gateways = ",".join(self.routes)
        lines = [f"{os.uname().nodename.partition('.')[0]}: {gateways}"] if gateways else []
        lines += [f"{gateway}: {','.join(peers)}" for gateway, peers in self.routes.items()]
        (self.directory / "topology.conf").write_text("[routes]\n" + "\n".join(lines) + "\n")

    def settings(self, **changes: object) -> TreeSettings:
        values: dict[str, object] = {
            "topology": str(self.directory / "topology.conf"),
            "user": None,
            "gateway_user": None,
            "identity_file": str(self.bench.identity),
            "known_hosts": str(self.bench.known_hosts),
            "ssh_config": str(self.directory / "config"),
            "connect_timeout_s": 3.0,
            "command_timeout_s": 2.0,
            "fanout": 16,
        }
        return TreeSettings(**{**values, **changes})  # type: ignore[arg-type]

    def open(self, **changes: object) -> TreeShell:
        self.write()
        return TreeShell(self.settings(**changes), RELAY)

    def list_left(self) -> list[str]:
        """What runs that was started for this tree, but for the sshd's that listen. The environment tells whose a relay is."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                try:
                    words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                    environment = (entry / "environ").read_bytes().decode(errors="replace")
                except OSError:
                    continue
                line = shlex.join(words)
                is_relay = "relay.py" in line and f"{MARK}={self.directory}\0" in environment
                if (str(self.directory) in line and "sshd_config" not in line) or is_relay:
                    found.append(line)
        return found
