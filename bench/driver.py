"""do-failover's own code on a load balancer of the lab: it gets ready, waits for its go, and says what it saw.

    python -m bench.driver RESERVED_IP PUBLIC PEERS

Lines in: {"do": "arm"}, {"do": "look"} (what a story asks each peer while the API works), and then
{"do": "armed"}, {"do": "cold"} (nothing is connected, the modules are there), {"do": "udp"}, {"do": "let_go"}. One line out for each.

`armed` and `cold` are steps 5 and 6 of a story as failover.py tells them: heal.Healer for each peer side by side, with a
witness on eth0. They end when each peer's echo request to the reserved IP was witnessed, and its neighbour entry read.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from do_failover import echo, refresh, verify
from do_failover.cli.wiring import RealLink, make_ssh_settings
from do_failover.clock import Deadline, RealClock
from do_failover.config import load_config
from do_failover.heal import Healer
from do_failover.model import Peer
from do_failover.ssh import ArmedPeers, Pace, PeerConnections

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

_PORT = 9999
_ARM_LIMIT_S = 200.0
_UDP_LIMIT_S = 5.0
_UDP_ROOM = 1 << 23
_SO_RCVBUFFORCE = 33  # linux: Python does not name it
_DEADLINE_S = 60.0


class ColdPeers:
    """PeerConnections as a story meets them."""

    def __init__(self, connections: PeerConnections) -> None:
        """Nothing is open yet."""
        self._connections = connections

    async def run(self, peer: Peer, command: str) -> str:
        """Run a command there."""
        return (await self._connections.run(peer, command)).stdout


class Driver:
    """One load balancer's."""

    def __init__(self, reserved_ip: str, public: str, count: int) -> None:
        """Nothing is connected yet."""
        self._address, self._public = reserved_ip, public
        self._peers = tuple(Peer(number, f"app{number + 1}") for number in range(count))
        self._settings = make_ssh_settings(load_config(Path("/run/lab/config.toml")).peers)
        self._armed: ArmedPeers | None = None
        self._looks: dict[Peer, asyncio.Task[refresh.PeerView]] = {}

    async def obey(self, what: str) -> dict[str, Any]:
        """Do one thing."""
        does: dict[str, Callable[[], Any]] = {
            "arm": self._arm,
            "look": self._look,
            "armed": self._heal_armed,
            "cold": self._heal_cold,
            "udp": self._exchange_udp,
            "let_go": self._let_go,
        }
        return await does[what]() or {}

    async def _arm(self) -> None:
        self._armed = armed = ArmedPeers(self._settings, pace=Pace(spread_s=0.003))
        armed.set_peers(self._peers)
        end = time.monotonic() + _ARM_LIMIT_S
        while not all(map(armed.is_armed, self._peers)):
            if time.monotonic() > end:
                message = f"not armed: {[row for row in armed.show() if not row.is_armed][:3]}"
                raise RuntimeError(message)
            await asyncio.sleep(0.05)

    async def _let_go(self) -> None:
        if self._armed is not None:
            await self._armed.close()
            self._armed = None

    async def _look(self) -> None:
        self._start_looking(self._the_armed())
        await asyncio.gather(*self._looks.values())

    def _start_looking(self, shell: refresh.PeerShell) -> None:
        self._looks = {peer: asyncio.create_task(refresh.look_at_peer(shell, peer, self._public, self._address)) for peer in self._peers}

    async def _heal_armed(self) -> dict[str, Any]:
        return await self._heal(self._the_armed())

    async def _heal_cold(self) -> dict[str, Any]:
        async with PeerConnections(self._settings) as connections:
            shell = ColdPeers(connections)
            self._start_looking(shell)
            return await self._heal(shell)

    async def _heal(self, shell: refresh.PeerShell) -> dict[str, Any]:
        async with self._open_witness() as (link, witness):
            clock = RealClock()
            healer = Healer(
                clock=clock,
                shell=shell,
                witness=witness,
                announcer=None,
                lladdr=link.lladdr,
                address=self._address,
                public=self._public,
                can_prove=True,
                is_public_pinged=True,
                deadline=Deadline.after(clock, _DEADLINE_S),
            )
            evidence = [verify.PeerEvidence(peer) for peer in self._peers]
            await asyncio.gather(*(healer.heal(each, self._looks[each.peer]) for each in evidence))
            errors = [each.error.message for each in evidence if each.error is not None]
            return {"at_ns": time.time_ns(), "witnessed": sum(each.is_witnessed for each in evidence), "errors": errors[:3]}

    @contextlib.asynccontextmanager
    async def _open_witness(self) -> AsyncIterator[tuple[RealLink, verify.Witness]]:
        witness = verify.Witness(secrets.token_bytes(8), not_to=self._public)
        async with RealLink("eth0") as link:
            link.listen(echo.ECHO_ETHERTYPE[4], echo.build_echo_filter(4), witness.note_packet)
            yield link, witness

    async def _exchange_udp(self) -> dict[str, Any]:
        """Ask all peers and wait for all answers: no SSH, no shell, no ping."""
        addresses = [socket.gethostbyname(peer.host) for peer in self._peers]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as door:
            door.settimeout(_UDP_LIMIT_S)
            door.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _UDP_ROOM)  # all answers come while it still asks
            for address in addresses:
                door.sendto(b"refresh", (address, _PORT))
            for _ in addresses:
                door.recv(64)
        return {"at_ns": time.time_ns()}

    def _the_armed(self) -> ArmedPeers:
        if self._armed is None:
            message = "arm first"
            raise RuntimeError(message)
        return self._armed


async def main(reserved_ip: str, public: str, count: int) -> None:
    """Obey until stdin ends."""
    driver, reader = Driver(reserved_ip, public, count), asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    say({})
    while line := await reader.readline():
        try:
            say(await driver.obey(json.loads(line)["do"]))
        except Exception as error:  # noqa: BLE001 - the bench says it, and ends
            say({"error": f"{type(error).__name__}: {error}"})


def say(line: dict[str, Any]) -> None:
    """Write one line."""
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
