"""A standing lab whose peers are behind two gateways: no way leads from lb2 to a peer but through its gateway.

The private network's bridge forwards nothing between lb2 and the peers, each peer takes its gateway's key only, for the
forced command, and from that gateway's address; lb2 knows no host key but the gateways'.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from do_failover.lab.files import UID
from do_failover.lab.handle import LabHandle, standing_lab
from do_failover.lab.keys import make_key
from do_failover.lab.options import LabOptions

PYTHON = sys.executable
GATEWAY_PROGRAM = (
    "ulimit -S -n 65536 2>/dev/null; exec env CLUSTERSHELL_GW_LOG_DIR=$HOME {python} -m ClusterShell.Gateway -Bu"  # as docs/peers.md has it
)
ALLOWED = "203.0.113.47,198.18.0.11,198.18.0.12"
SCRIPT = Path(str(resources.files("do_failover").joinpath("share/do-failover-peer")))


@dataclass(frozen=True)
class TreeLab:
    """The lab, its two gateways, and who is behind each."""

    lab: LabHandle
    behind: dict[str, list[str]]

    def home(self, gateway: str) -> Path:
        """~/.ssh of the gateways' user."""
        return self.lab.files(gateway) / "home/.ssh"

    async def list_left(self, node: str) -> list[str]:
        """What of ssh and ClusterShell runs in a node."""
        text = await self.lab.run(node, "ps", "-eo", "args=")
        return [line for line in text.splitlines() if re.search(r"\bssh |ClusterShell|relay\.py|do-failover-peer --allow", line)]

    def authorize(self, peer: str, options: str, key: str) -> None:
        (self.lab.files(peer) / "lab/authorized_keys").write_text(f"{options} {key}\n")

    def add_settings(self, text: str) -> None:
        """Put lines into lb2's [peers]."""
        path = self.lab.files("lb2") / "lab/config.toml"
        path.write_text(path.read_text().replace("[peers]\n", f"[peers]\n{text}\n"))


def script_text() -> str:
    """The forced command; but all nodes' users are one user to the kernel, so its bound on that user's processes would be the lab's."""
    text = SCRIPT.read_text()
    bound = "{ ulimit -p 128 || ulimit -u 128; }"
    assert text.count(bound) == 1
    return text.replace(bound, bound.replace("128", "8192"))


def address_of(number: int) -> str:
    return f"10.110.1.{number}"


@contextlib.asynccontextmanager
async def tree_lab(peers: int, *, python: str = PYTHON, **options: Any) -> AsyncIterator[TreeLab]:
    """Peers app1.., half of them behind each of the two that come last."""
    first, second = f"app{peers + 1}", f"app{peers + 2}"
    half = peers // 2
    behind = {first: [f"app{n}" for n in range(1, half + 1)], second: [f"app{n}" for n in range(half + 1, peers + 1)]}
    async with standing_lab(LabOptions(peers=peers + 2, action_time_s=0.2, **options)) as lab:
        tree = TreeLab(lab, behind)
        await isolate(lab, ["lb2", *behind[first], *behind[second]])
        equip(tree, python, has_daemon=bool(options.get("with_daemon")))
        yield tree


async def isolate(lab: LabHandle, nodes: list[str]) -> None:
    """Let these not reach each other on the private network."""
    enter = ["nsenter", "-t", str(lab.pid), "-a", "-w", "--", "bridge", "-batch", "-"]
    batch = "".join(f"link set dev {node}-1 isolated on\n" for node in nodes)
    await asyncio.to_thread(lambda: subprocess.run(enter, input=batch, text=True, check=True))


def equip(tree: TreeLab, python: str, *, has_daemon: bool) -> None:
    """Write keys, known_hosts, topology and configuration."""
    lab, gateways = tree.lab, list(tree.behind)
    known = (lab.files("lb2") / "lab/known_hosts").read_text().splitlines(keepends=True)
    old = (lab.files(gateways[0]) / "lab/authorized_keys").read_text()
    lb2 = next(line.removesuffix(" lb2") for line in old.splitlines() if line.endswith(" lb2"))
    for gateway, peers in tree.behind.items():
        key = make_key()
        home = tree.home(gateway)
        home.mkdir(mode=0o700)
        (home / "id_ed25519").touch(0o600)
        (home / "id_ed25519").write_bytes(key.private)
        (home / "known_hosts").write_text("".join(line for line in known if line.partition(",")[0] in peers))
        (home / "config").write_text("ControlMaster auto\nControlPath ~/.ssh/%C\nControlPersist 5\n")
        for path in (home, *home.iterdir()):
            os.chown(path, UID, UID)
        program = GATEWAY_PROGRAM.format(python=python)
        tree.authorize(gateway, f'restrict,from="10.110.0.12",command="{program}"', lb2)
        for peer in peers:
            script = lab.files(peer) / "lab/do-failover-peer"
            script.write_text(script_text())
            script.chmod(0o755)
            command = f"/run/lab/do-failover-peer --allow {ALLOWED}"
            tree.authorize(peer, f'restrict,from="{address_of(int(gateway[3:]))}",command="{command}"', key.public)
    identity = lab.files("lb2") / "lab/identity"
    if has_daemon:
        os.chown(identity, UID, UID)  # ssh refuses a key that others can read, and root may read it all the same
        identity.chmod(0o600)
    numbers = {gateway: f"app[{peers[0][3:]}-{peers[-1][3:]}]" for gateway, peers in tree.behind.items()}
    files = lab.files("lb2") / "lab"
    routes = "".join(f"{gateway}: {peers}\n" for gateway, peers in numbers.items())
    (files / "topology.conf").write_text(f"[routes]\nlb[1-2]: {','.join(gateways)}\n{routes}")
    (files / "peers").write_text("".join(f"{peers}\n" for peers in numbers.values()))
    (files / "known_hosts").write_text("".join(line for line in known if line.partition(",")[0] in gateways))
    tree.add_settings('fanout = "clustershell"\ntopology = "/run/lab/topology.conf"')
