"""The lab's control socket: one JSON object a line in, one out. Separate from the API, so neither disturbs the other.

    {"op": "state"}                                  owner, VRRP states, request log, who answers each source, node pids
    {"op": "set_action_time", "seconds": 5}
    {"op": "set_faults", "text": "POST:503; action**:404"}    of the API, as in fault_text.py; "" is health
    {"op": "make_busy", "node": "lb2", "type": "snapshot", "seconds": 5}
    {"op": "service", "do": "start|stop|kill|restart", "node": "lb1", "name": "haproxy|keepalived|daemon|sshd"}
    {"op": "assign", "node": "lb1"}                  as a person would, through the API; returns when the action began
    {"op": "cut", "ways": [["lb1", "lb2"]]}          of the private network, from the first to the second; [] heals
    {"op": "kill_node", "node": "lb1"}
    {"op": "reports", "node": "lb2"}

An answer is {"ok": ...} or {"error": "one sentence"}. The socket lies on the lab's private tmpfs; from
outside it is reached through /proc/PID/root.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from do_failover.errors import FailoverError
from do_failover.lab.rehearsal import ROOT, Rehearsal

if TYPE_CHECKING:
    from pathlib import Path

SOCKET = ROOT / "control"


async def serve(lab: Rehearsal, path: Path = SOCKET) -> asyncio.Server:
    """Answer on the socket until the server is closed."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                writer.write(json.dumps(await _answer(lab, line)).encode() + b"\n")
                await writer.drain()
        except ConnectionError:
            return
        finally:
            writer.close()

    return await asyncio.start_unix_server(talk, path, limit=1 << 20)


async def _answer(lab: Rehearsal, line: bytes) -> dict[str, Any]:
    try:
        return {"ok": await _do(lab, json.loads(line))}
    except FailoverError as error:
        return {"error": error.message}
    except (KeyError, ValueError) as error:
        return {"error": f"the lab does not understand {line.decode(errors='replace').strip()}: {error!r}"}


async def _do(lab: Rehearsal, request: dict[str, Any]) -> object:
    match request["op"]:
        case "state":
            return _state(lab)
        case "set_action_time":
            lab.region.action_time_s = float(request["seconds"])
        case "set_faults":
            lab.api.set_faults(request["text"])
        case "make_busy":
            lab.api.make_busy(lab.plan.host(request["node"]).droplet_id, request["type"], time_s=float(request["seconds"]))
        case "service":
            await _service(lab, request["do"], request["node"], request["name"])
        case "assign":
            await lab.assign(request["node"])
        case "cut":
            await lab.fabric.cut([(lab.plan.host(a), lab.plan.host(b)) for a, b in request["ways"]])
        case "kill_node":
            await lab.kill_node(request["node"])
        case "reports":
            return lab.reports(request["node"])
        case unknown:
            raise ValueError(unknown)
    return None


async def _service(lab: Rehearsal, verb: str, node: str, name: str) -> None:
    match verb:
        case "start":
            lab.services.start(node, name)
        case "stop":
            await lab.services.stop(node, name)
        case "kill":
            await lab.services.kill(node, name)
        case "restart":
            await lab.services.restart(node, name)
        case unknown:
            raise ValueError(unknown)


def _state(lab: Rehearsal) -> dict[str, Any]:
    return {
        "owner": lab.owner.name if lab.owner else None,
        "owner_id": lab.region.reserved_ips[lab.plan.reserved_ip].droplet_id,
        "is_locked": lab.region.reserved_ips[lab.plan.reserved_ip].is_locked,
        "reserved_ip": lab.plan.reserved_ip,
        "vrrp": lab.services.vrrp_state,
        "requests": lab.requests(),
        "answers": {name: service.answer for name, service in lab.meter.services.items()},
        "nodes": {name: node.pid for name, node in lab.nodes.items() if node.is_alive},
        "token": lab.token,
    }
