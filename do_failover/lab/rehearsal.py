"""The rehearsal region, standing: nodes, fabric, metadata, API, services, meter, in one place.

Runs inside the lab's own namespaces (see launch.py); its network namespace is the fabric.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import socket
import ssl
import time
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp

from do_failover.lab import api, daemon, files, metadata, wiring
from do_failover.lab import plan as p
from do_failover.lab.commands import run
from do_failover.lab.equipment import Equipment
from do_failover.lab.errors import LabError
from do_failover.lab.fabric import Fabric
from do_failover.lab.meter import Meter, NamespaceDoor
from do_failover.lab.node import Node, start_nodes
from do_failover.lab.options import Fault, LabOptions
from do_failover.lab.plan import Host, Plan, make_plan
from do_failover.lab.poll import until
from do_failover.lab.region import Droplet, Region, ReservedIp
from do_failover.lab.services import Services

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from do_failover.lab.timeline import Timeline

SPARE = "spare"
_SPARE = Droplet(
    id=2001,
    name=SPARE,
    region=p.REGION,
    public="198.18.9.1",
    private="10.110.9.1",
    public_gateway=p.PUBLIC_GATEWAY,
    anchor="10.17.9.1",
    anchor_gateway=p.ANCHOR_GATEWAY,
    netmask=p.NETMASK,
)
"""A Droplet that only the API knows, and none of the pair: somewhere to where a person can move the reserved IP."""

ROOT = Path("/run/do-failover-lab")
"""All files of the lab, on a tmpfs that only the lab sees."""

_DISCARD_PORT = 9
_SETTLE_LIMIT_S = 30.0
_PINGS_AT_ONCE = 8
_ARM_S = 0.2
_STATUS_EVERY_S = 0.1


def make_region(plan: Plan, action_time_s: float) -> Region:
    """Make the API's view of the plan: every load balancer and peer a Droplet, the reserved IP at lb1."""
    droplets = {
        host.droplet_id: Droplet(
            id=host.droplet_id,
            name=host.name,
            region=p.REGION,
            public=host.public,
            private=host.private,
            public_gateway=p.PUBLIC_GATEWAY,
            anchor=host.anchor,
            anchor_gateway=p.ANCHOR_GATEWAY,
            netmask=p.NETMASK,
            tags=(str(host.role),),
            public_v6=host.public_v6 if plan.is_v6 else "",
            public_v6_gateway=p.PUBLIC_GATEWAY_V6 if plan.is_v6 else "",
        )
        for host in plan.droplets
    }
    droplets[_SPARE.id] = _SPARE
    reserved_ip = ReservedIp(plan.reserved_ip, p.REGION, plan.balancers[0].droplet_id)
    return Region(droplets, {plan.reserved_ip: reserved_ip}, action_time_s=action_time_s)


class Rehearsal:
    """Everything that stands, for the scenario and for the control socket."""

    def __init__(self, options: LabOptions, timeline: Timeline) -> None:
        """Plan it; `standing` builds it."""
        self.options = options
        self.timeline = timeline
        self.plan = make_plan(options)
        self.region = make_region(self.plan, options.action_time_s)
        self.fabric = Fabric(self.plan, run)
        self.nodes: dict[str, Node] = {}
        self.token = f"dop_v1_{secrets.token_hex(32)}"
        self.exchanges: list[api.Exchange] = []
        self.set_up_s = 0.0
        self._limit_s = _SETTLE_LIMIT_S + options.patience_s
        self.api: api.ApiServer
        self.services: Services
        self.meter: Meter

    @property
    def owner(self) -> Host | None:
        """The load balancer that the API names as owner."""
        return self.plan.balancer_of(self.region.reserved_ips[self.plan.reserved_ip].droplet_id)

    def reports(self, name: str) -> list[dict[str, Any]]:
        """Return the failover reports in a load balancer's history, oldest first."""
        paths = (self.nodes[name].files / files.HISTORY).glob("*.json")
        return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns)]

    def requests(self) -> list[dict[str, Any]]:
        """Return the API's request log."""
        zero = self.timeline.killed_at
        return [
            {
                "t": None if zero is None else round(exchange.at - zero, 3),
                "node": self._name_at(exchange.address),
                "method": exchange.method,
                "path": exchange.path,
                "status": exchange.status,
                "message": exchange.message,
                "is_unknown": exchange.is_unknown,
                "request_id": exchange.request_id,
                "fault": exchange.fault,
            }
            for exchange in self.exchanges
        ]

    @property
    def unknown_requests(self) -> list[str]:
        """Name the requests that DigitalOcean's API does not have; one is enough to end a run."""
        return [f"{self._name_at(e.address)}: {e.method} {e.path}" for e in self.exchanges if e.is_unknown]

    async def kill_node(self, name: str) -> None:
        """End a node at once, with everything in it and its ends of the cables."""
        node = self.nodes[name]
        self.meter.forget(name)
        node.kill()
        port = node.host.public_link
        await until(lambda: not node.is_alive and not _has_link(port), f"{name} did not die", limit_s=10)

    async def assign(self, name: str) -> None:
        """POST an assign (to a node, or SPARE) as a person's tool would, from the fabric's side. LabError: the API's words of refusal."""
        tls = ssl.create_default_context(cafile=str(ROOT / "ca.pem"))
        collection = "reserved_ipv6" if self.plan.is_v6 else "reserved_ips"
        url = f"{p.API_URL}{collection}/{self.plan.reserved_ip}/actions"
        droplets = {droplet.name: droplet.id for droplet in self.region.droplets.values()}
        body = {"type": "assign", "droplet_id": droplets[name]}
        headers = {"Authorization": f"Bearer {self.token}"}
        async with aiohttp.ClientSession() as session, session.post(url, json=body, headers=headers, ssl=tls) as response:
            if response.status != HTTPStatus.CREATED:
                message = f"the API refused: {await response.text()}"
                raise LabError(message)

    @contextlib.asynccontextmanager
    async def standing(self) -> AsyncIterator[None]:
        """Build the region and start everything in it. Ending the process is what takes it down."""
        began = time.monotonic()
        await self._build()
        self.timeline.setup(f"{len(self.nodes)} nodes built in {time.monotonic() - began:.1f} s")
        async with contextlib.AsyncExitStack() as stack:
            self.api = await stack.enter_async_context(
                api.serve(
                    self.region,
                    token=self.token,
                    directory=ROOT,
                    host=p.API_ADDRESS,
                    port=443,
                    on_owner=self._own,
                    on_request=self._heard_request,
                ),
            )
            await stack.enter_async_context(
                metadata.serve(self.region, self._droplet_id_at, host=p.METADATA_ADDRESS, port=80),
            )
            self.services = Services(self.plan, self.nodes, self.timeline.add)
            ca_pem, tool = self.api.ca_file.read_bytes(), (self.options.with_tool, self.options.with_daemon)
            Equipment(self.plan, self.token, ca_pem, *tool, self.options.unarmed).write(self.nodes)
            fds = {host.name: self.nodes[host.name].net_fd for host in self.plan.sources}
            self.meter = Meter(NamespaceDoor(), fds, self.plan.reserved_ip, self._answer_changed)
            stack.push_async_callback(self.meter.stop)
            await self._start_services()
            self.set_up_s = round(time.monotonic() - began, 1)
            self.timeline.setup(f"everything stands after {self.set_up_s} s")
            yield

    async def _own(self, _address: str, droplet_id: int | None) -> None:
        """Make an action's effect real, at its completion."""
        host = self.plan.balancer_of(droplet_id)
        await self.fabric.set_owner(host)
        owner = "nobody" if droplet_id is None else self.region.droplets[droplet_id].name
        self.timeline.add("API", f"action completed: {owner} owns {self.plan.reserved_ip}")

    def _heard_request(self, exchange: api.Exchange) -> None:
        self.exchanges.append(exchange)
        what = f"{exchange.method} {exchange.path} → {exchange.status or 'no answer'} {exchange.message}"
        what = " ".join(what.split())
        if exchange.is_unknown:
            self.timeline.add(self._name_at(exchange.address), f"unknown request: {what}")
        elif exchange.fault:
            self.timeline.add(self._name_at(exchange.address) or "API", f"{what}, by the fault {exchange.fault}")
        elif exchange.method == "POST" or exchange.status >= HTTPStatus.BAD_REQUEST:
            self.timeline.add(self._name_at(exchange.address), what)

    def _answer_changed(self, source: str, answer: str | None) -> None:
        self.timeline.add_together(source, f"answered by {answer}" if answer else "no answer")

    def _name_at(self, address: str) -> str:
        host = self.plan.host_at(address)
        return host.name if host else address

    def _droplet_id_at(self, address: str) -> int | None:
        """Who asks the metadata service."""
        host = self.plan.host_at(address)
        return host.droplet_id if host else None

    async def _build(self) -> None:
        """Make nodes and cables, and the fabric between them."""
        if self.plan.is_v6:
            _check_kernel()
        for key, value in wiring.FABRIC_SYSCTLS:
            path = Path("/proc/sys") / key
            if path.exists():
                path.write_text(value, encoding="ascii")
        await run("ip", "-batch", "-", stdin=wiring.fabric_batch())
        await self._bind_etc()
        self.nodes = await start_nodes(self.plan.hosts, self.plan, ROOT / "nodes")
        if self.plan.is_v6:
            await run("sh", "-eu", stdin=wiring.fabric_v6_script())
        await self.fabric.start(self.plan.balancers[0])
        if self.plan.is_v6:
            await self._hear_all()

    async def _hear_all(self) -> None:
        """Wait until every node answered a ping: one whose link is just up hears no multicast, so no NS (measured, up to 1 s)."""
        end, gate = time.monotonic() + self._limit_s, asyncio.Semaphore(_PINGS_AT_ONCE)

        async def hear(host: Host) -> None:
            async with gate:
                while True:
                    try:
                        await run("ping", "-6", "-n", "-q", "-c", "1", "-W", "1", host.public_v6)
                    except LabError as error:
                        if time.monotonic() > end:
                            message = f"{host.name} does not answer on {host.public_v6}: {error.message}"
                            raise LabError(message) from None
                    else:
                        return

        async with asyncio.TaskGroup() as tasks:
            for host in self.plan.hosts:
                tasks.create_task(hear(host))

    async def _bind_etc(self) -> None:
        """Write the files that take the place of the host's in /etc; nodes inherit the mounts."""
        (ROOT / "etc").mkdir()
        etc = Path("/etc")
        for name, text in (
            ("passwd", files.passwd((etc / "passwd").read_text(encoding="utf-8"))),
            ("group", files.group((etc / "group").read_text(encoding="utf-8"))),
            ("shadow", files.SHADOW),
            ("hosts", files.hosts(self.plan)),
        ):
            path = ROOT / "etc" / name
            path.write_text(text, encoding="utf-8")
            await run("mount", "--bind", str(path), str(etc / name))

    async def _start_services(self) -> None:
        """Start the daemons; on return lb1 is MASTER and owner, and every source is answered by it.

        lb2's keepalived comes last: a thousand peers that do on these processors what lb1 tells them to can make lb1's check of
        HAProxy, which has a second, fail for a moment; then nobody is there yet to take over.
        """
        lb1, lb2 = self.plan.balancers
        await self.services.start_peers(self._limit_s)
        await self._start_daemons()
        self.services.start_balancers()
        await self._settle(lambda: self.services.vrrp_state.get(lb1.name) == "MASTER", "lb1 did not become MASTER")
        await self._learn_flows(lb1)
        self.meter.start()
        await self._settle(lambda: not self.meter.not_answered_by(lb1.name), "not every source is answered by lb1")
        if self.options.with_daemon:
            await self._arm()
        self.services.start(lb2.name, "keepalived")
        await self._settle(lambda: self.services.vrrp_state.get(lb2.name) == "BACKUP", "lb2 did not become BACKUP")

    async def _start_daemons(self) -> None:
        """Start do-failover's daemon on both load balancers, and wait until it reads: it is there before the first event."""
        if not self.options.with_daemon:
            return
        for lb in self.plan.balancers:
            self.services.start(lb.name, "daemon")
        for lb in self.plan.balancers:
            await self._wait_for_status(lb, lambda status: status is not None, "its daemon does not answer", self._limit_s)

    async def _arm(self) -> None:
        """Wait until both daemons keep a connection to every peer open, but for those that are to be unarmed."""
        peers = len(self.plan.peers) - self.options.unarmed
        limit_s = self._limit_s + _ARM_S * peers
        for lb in self.plan.balancers:
            await self._wait_for_status(lb, lambda status: daemon.is_armed(status, peers), "its daemon did not arm all peers", limit_s)

    async def list_all_peers(self) -> None:
        """Put the unarmed peers on the list, and wait until both daemons have read it: they begin to connect to them."""
        count = len(self.plan.peers)
        for lb in self.plan.balancers:
            path = self.nodes[lb.name].files / "lab/peers"
            draft = path.with_name("peers.new")
            draft.write_text(files.peers(self.plan.peers), encoding="utf-8")
            draft.replace(path)
        for lb in self.plan.balancers:
            await self._wait_for_status(lb, lambda status: daemon.has_peers(status, count), "its daemon read no longer list", self._limit_s)

    async def _wait_for_status(self, lb: Host, is_true: Callable[[dict[str, Any] | None], bool], complaint: str, limit_s: float) -> None:
        end = time.monotonic() + limit_s
        while not is_true(status := await daemon.ask_status(self.nodes[lb.name].files)):
            if time.monotonic() > end or not self.services.is_running(lb.name, "daemon"):
                message = f"{lb.name}: {complaint} within {limit_s:g} s: {status}"
                raise LabError("; ".join([message, *self.services.dead()]))
            await asyncio.sleep(_STATUS_EVERY_S)

    async def _learn_flows(self, owner: Host) -> None:
        """Let every peer talk to the owner once, so that the fabric has a flow for each.

        Every droplet has answered a ping before, so that no datagram is lost to address resolution.
        """
        if self.plan.fault is not Fault.FABRIC:
            return
        door, address = NamespaceDoor(), self.plan.public_of(owner)
        for peer in self.plan.peers:
            with door.socket(self.nodes[peer.name].net_fd, address, socket.SOCK_DGRAM) as sock:
                sock.sendto(b"hello", (address, _DISCARD_PORT))
        end = time.monotonic() + self._limit_s
        while await self.fabric.learned(owner) < len(self.plan.peers):
            if time.monotonic() > end:
                message = "the fabric did not learn every peer's flow"
                raise LabError(message)
            await asyncio.sleep(0.02)

    async def _settle(self, is_true: Callable[[], bool], complaint: str) -> None:
        try:
            await until(is_true, complaint, limit_s=self._limit_s)
        except LabError as error:
            dead = "; ".join(self.services.dead())
            raise LabError(f"{error.message}; {dead}" if dead else error.message) from None


def _check_kernel() -> None:
    """Raise LabError where the kernel has no IPv6."""
    if not Path("/proc/sys/net/ipv6").exists():
        message = "this kernel runs without IPv6 (ipv6.disable=1): a lab of a reserved IPv6 cannot stand here; use --family 4"
        raise LabError(message)


def _has_link(name: str) -> bool:
    """Whether the fabric has a link of that name. Not by /sys, which shows the host's links."""
    return name in {link for _, link in socket.if_nameindex()}
