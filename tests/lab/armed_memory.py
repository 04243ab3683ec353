"""A process of its own that arms peers and prints what one costs, in KiB: memory that others freed earlier would hide it.

python armed_memory.py IDENTITY KNOWN_HOSTS FEW HOST:PORT...
"""

from __future__ import annotations

import asyncio
import gc
import sys
from pathlib import Path

from do_failover.model import Peer
from do_failover.ssh import ArmedPeers, Pace, SshSettings


def private_kib() -> int:
    gc.collect()
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:"))


async def arm(armed: ArmedPeers, peers: tuple[Peer, ...]) -> None:
    """Arm them and use each one three times."""
    armed.set_peers(peers)
    while not all(map(armed.is_armed, peers)):
        await asyncio.sleep(0.01)
    for _ in range(3):
        await asyncio.gather(*(armed.run(peer, "true") for peer in peers))


async def measure(identity: str, known_hosts: str, few: int, hosts: list[str]) -> float:
    peers = tuple(Peer(number, host.partition(":")[0], None, int(host.partition(":")[2])) for number, host in enumerate(hosts))
    armed = ArmedPeers(SshSettings(None, identity, known_hosts, None, 30.0, 30.0, 16), pace=Pace(spread_s=0.0))
    await arm(armed, peers[:few])
    before = private_kib()
    await arm(armed, peers)
    grown = (private_kib() - before) / (len(peers) - few)
    await armed.close()
    return grown


if __name__ == "__main__":
    print(f"{asyncio.run(measure(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:])):.1f}")  # noqa: T201 - its result
