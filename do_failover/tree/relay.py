"""The process in which ClusterShell runs: JSON lines on stdin, JSON lines on stdout. Started by `shell` as a file, on its own.

    to here      first the settings (Settings), then for each command
                 {"id": 1, "host": "app1", "command": "...", "stdin": "..."}   run it there, by way of the topology
                 {"drop": 1}                                                   nobody waits for it any more
    from here    {"gateways": ["gw1"], "root": "lb1"}, or {"problem": KIND, "said": "..."} and the end; then
                 {"id": 1, "out": "...", "err": "...", "gateway": "gw1"}
                 {"id": 1, "problem": "no way" | "lost" | "time" | "name", "said": "...", "gateway": "gw1"}

Why a process: ClusterShell's loop blocks, its tasks are global, and a signal to this process' group ends all that it
started. It ends with its stdin. Imports nothing of ours, so that it starts quickly.

What is done about ClusterShell 1.9 and 1.10 as they are (Gateway.py, Worker/Tree.py, Propagation.py, Communication.py):
- A gateway hands what is written to a worker's stdin to the worker that it was told of *last*, whichever that is. So the
  command, its stdin and that stdin's end go into the channel one right after the other (Branch).
- A RouteResolvingError, raised when the last gateway of a group is lost, ends the whole loop. Here it ends its command.
- What a gateway sends is unpickled, which lets it run code here. Here only plain data are (Data).
- A channel ends with its last command, and the next one logs in again. Here it stays (Keeper).
- What is written to a channel that then breaks is not sent again on the next gateway's. Here it is (Branch).
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import pickle
import resource
import shlex
import socket
import sys
from typing import Any, ClassVar

import ClusterShell.Communication
import ClusterShell.Task
from ClusterShell.Event import EventHandler
from ClusterShell.NodeSet import NodeSet, NodeSetException
from ClusterShell.Propagation import PropagationChannel, RouteResolvingError
from ClusterShell.Topology import TopologyError
from ClusterShell.Worker.Ssh import SshClient, WorkerSsh
from ClusterShell.Worker.Tree import TreeWorker
from ClusterShell.Worker.Worker import FANOUT_UNLIMITED, StreamWorker

MOST_OUT = 64 * 1024
MOST_ERR = 2 * 1024
_MOST_MEMORY = 2 << 30
_MOST_FILES = 65536
GATEWAY_COMMAND = f"ulimit -S -n {_MOST_FILES} 2>/dev/null || ulimit -S -n $(ulimit -H -n); exec python3 -m ClusterShell.Gateway -Bu"
"""ClusterShell keeps two descriptors of each command that a gateway ever ran, and sshd's soft limit is 1024."""


class Data(pickle.Unpickler):
    """Reads bytes, text and numbers; no class, no function."""

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 - it never returns
        """Refuse."""
        msg = f"a gateway sent {module}.{name} where data belong"
        raise pickle.UnpicklingError(msg)


class Pickle:
    """What ClusterShell.Communication uses of pickle."""

    UnpicklingError = pickle.UnpicklingError
    dumps = staticmethod(pickle.dumps)

    @staticmethod
    def loads(data: bytes) -> Any:  # noqa: ANN401 - plain data
        """Return the data. Raises UnpicklingError for anything else."""
        found = Data(io.BytesIO(data)).load()
        if not isinstance(found, bytes):
            msg = "a gateway sent something else than bytes"
            raise pickle.UnpicklingError(msg)
        return found


class Channel(PropagationChannel):  # type: ignore[misc] # ClusterShell has no types
    """The channel to one gateway: what it can't make sense of ends this one, and not the loop."""

    said: ClassVar[dict[str, str]] = {}  # what each gateway, or the ssh to it, wrote last

    def recv(self, msg: Any) -> None:  # noqa: ANN401 - a message of ClusterShell's
        """Take a message."""
        try:
            super().recv(msg)
        except Exception as error:  # noqa: BLE001 - whatever a broken or hostile gateway can provoke there
            self._note(f"it sent what is no answer: {type(error).__name__}: {error}")
            self.worker.abort()

    def ev_read(self, worker: Any, node: str, sname: str, msg: bytes) -> None:  # noqa: ANN401
        """Note what comes on stderr; read messages elsewhere."""
        if sname == self.SNAME_ERROR:
            self._note(msg.decode(errors="replace"))
        elif not self.opened and not msg.lstrip().startswith(b"<"):
            self._note(f"it wrote {msg[:80].decode(errors='replace')!r}: something else than ClusterShell.Gateway runs there")
            worker.abort()
        else:
            super().ev_read(worker, node, sname, msg)

    def _note(self, text: str) -> None:
        if text.strip():
            self.said[str(self.gateway)] = text.strip()[-300:]


class Keeper:
    """Stands for the run itself among those that use a channel: it stays open while this process lives."""

    def __init__(self, invoke_gateway: str) -> None:
        """Take the command that starts a gateway."""
        self.invoke_gateway = invoke_gateway

    def _relaunch(self, gateway: str) -> None:
        """Nothing runs for it."""

    def _gateway_abort(self, gateway: str) -> None:
        """Nothing ran for it."""


class Hop(SshClient):  # type: ignore[misc]
    """The ssh that starts here: to a gateway, or to a peer that the topology doesn't have."""

    settings: ClassVar[dict[str, Any]] = {}

    def _build_cmd(self) -> tuple[list[str], None]:
        is_gateway = isinstance(self.worker.eh, PropagationChannel)
        user = self.settings["gateway_user" if is_gateway else "user"]
        login = ["-l", user] if user else []
        program = ["ssh"] if is_gateway else self.settings["bounded"]
        return ([*program, *self.settings["ssh"], *login, "--", str(self.key), str(self.command)], None)


class HopWorker(WorkerSsh):  # type: ignore[misc]
    """As ClusterShell asks for it."""

    SHELL_CLASS = Hop


class Answer(EventHandler):  # type: ignore[misc]
    """Collects what one command writes, and tells of it once."""

    def __init__(self, relay: Relay, number: int, host: str) -> None:
        """Nothing has come yet."""
        self.relay, self.number, self.host = relay, number, host
        self.gateway: str | None = None
        self.out, self.err = bytearray(), bytearray()
        self.is_lost = self.is_over = False

    def ev_read(self, worker: Any, node: str, sname: str, msg: bytes) -> None:  # noqa: ANN401, ARG002
        """Keep all of stdout up to its bound, and the end of stderr."""
        if sname == "stdout" and len(self.out) <= MOST_OUT:
            self.out += msg + b"\n"
        elif sname == "stderr":
            self.err += msg + b"\n"
            del self.err[:-MOST_ERR]
        if len(self.out) > MOST_OUT:
            self.tell(problem="much")

    def ev_close(self, worker: Any, timedout: bool) -> None:  # noqa: ANN401, FBT001
        """Tell how it went."""
        self.relay.retire(worker)
        if timedout:
            self.tell(problem="time")
        elif self.is_lost:
            self.tell(problem="lost", said=Channel.said.get(self.gateway or "", ""))
        else:
            self.tell(out=self.out[:MOST_OUT].decode(errors="replace"), err=self.err.decode(errors="replace"))

    def tell(self, **words: object) -> None:
        """Tell, unless that is done or nobody waits."""
        if not self.is_over:
            self.is_over = True
            self.relay.tell(id=self.number, gateway=self.gateway, **words)
            self.relay.answers.pop(self.number, None)


class Branch(TreeWorker):  # type: ignore[misc]
    """One command on one peer, with the whole of its stdin."""

    def __init__(self, answer: Answer, command: str, stdin: bytes, timeout_s: float, keeper: Keeper) -> None:
        """Nothing is sent yet."""
        super().__init__(answer.host, answer, timeout_s, command=command, stderr=True)
        self.answer, self.stdin, self.keeper = answer, stdin, keeper
        self.invoke_gateway = keeper.invoke_gateway
        self.fed: list[Any] = []

    def _launch(self, nodes: Any) -> None:  # noqa: ANN401 - a NodeSet
        if self.answer.is_over:  # it comes back from a gateway that was lost, and nobody waits any more
            return
        try:
            super()._launch(nodes)
        except RouteResolvingError:
            gateways = sorted({gateway for network, hops in self.router.table if self.answer.host in network for gateway in hops})
            said = "; ".join(f"{gateway}: {Channel.said.get(gateway) or 'it gave no reason'}" for gateway in gateways)
            self.answer.tell(problem="no way", said=said)
            return
        for worker in self.workers:  # those that go there directly
            if worker not in self.fed:
                self.fed.append(worker)
                worker.write(self.stdin)
                worker.set_write_eof()

    def _execute_remote(self, cmd: str, targets: Any, gateway: Any, timeout: float) -> None:  # noqa: ANN401
        self.answer.gateway = str(gateway)
        super()._execute_remote(cmd, targets, gateway, timeout)
        channel = self.task._pchannel(gateway, self)  # noqa: SLF001 - see above
        channel.write(nodes=targets, buf=self.stdin, worker=self)
        channel.set_write_eof(nodes=targets, worker=self)
        self.task._pchannel(gateway, self.keeper)  # noqa: SLF001

    def _gateway_abort(self, gateway: str) -> None:
        self.answer.is_lost = True  # its channel has closed before the peer's end was told
        super()._gateway_abort(gateway)

    def end(self) -> None:
        """End what was started here. What runs by way of a gateway has its time-out there."""
        for worker in self.workers:
            worker.abort()


class Relay(EventHandler):  # type: ignore[misc]
    """Reads orders from stdin and starts them, all in one task."""

    def __init__(self, task: Any, settings: dict[str, Any], out: int) -> None:  # noqa: ANN401
        """`out`: the descriptor to write to."""
        self._task, self._out = task, out
        self._timeout_s = float(settings["timeout_s"])
        self._keeper = Keeper(GATEWAY_COMMAND)
        self._retired: list[Any] = []
        self.answers: dict[int, tuple[Answer, Branch]] = {}

    def ev_read(self, worker: Any, node: str, sname: str, msg: bytes) -> None:  # noqa: ANN401, ARG002
        """Take one order."""
        order = json.loads(msg)
        if "drop" in order:
            answer, branch = self.answers.pop(order["drop"], (None, None))
            if answer is not None and branch is not None:
                answer.is_over = True
                branch.end()
            return
        self._close_ports()
        answer = Answer(self, order["id"], order["host"])
        try:
            if str(NodeSet(answer.host)) != answer.host:
                answer.tell(problem="name")
                return
        except NodeSetException:
            answer.tell(problem="name")
            return
        branch = Branch(answer, order["command"], order["stdin"].encode(), self._timeout_s, self._keeper)
        self.answers[answer.number] = (answer, branch)
        self._task.schedule(branch)

    def ev_close(self, worker: Any, timedout: bool) -> None:  # noqa: ANN401, ARG002, FBT001
        """End everything: whoever gave the orders is gone."""
        self._task.abort()

    def retire(self, branch: Any) -> None:  # noqa: ANN401
        """Note that a command is over: its port holds two descriptors until the end, if nobody closes it."""
        self._retired.append(branch)

    def _close_ports(self) -> None:
        for branch in self._retired:
            for port in branch._engine_clients():  # noqa: SLF001
                if port.registered:
                    self._task.remove_port(port)
        self._retired.clear()

    def tell(self, **words: object) -> None:
        """Write one line."""
        data = memoryview(json.dumps(words).encode() + b"\n")
        while data:
            data = data[os.write(self._out, data) :]


def bound_oneself() -> None:
    """Room for many descriptors, and not for all of the memory."""
    for kind, most in ((resource.RLIMIT_NOFILE, _MOST_FILES), (resource.RLIMIT_AS, _MOST_MEMORY)):
        hard = resource.getrlimit(kind)[1]
        with contextlib.suppress(OSError, ValueError):  # a unit's SystemCallFilter may forbid it
            resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def prepare(task: Any, settings: dict[str, Any]) -> list[str]:  # noqa: ANN401
    """Set the task up; return the gateways. Raises TopologyError, LookupError."""
    ClusterShell.Communication.cPickle = Pickle
    ClusterShell.Task.PropagationChannel = Channel
    Hop.settings = settings
    os.environ.pop("PYTHONPATH", None)  # ClusterShell would send it along
    for key, value in {"distant_worker": HopWorker, "stdout_msgtree": False, "stderr_msgtree": False}.items():
        task.set_default(key, value)
    user = settings["user"]
    info = {"fanout": settings["fanout"], "grooming_delay": settings["grooming_s"], "connect_timeout": settings["connect_timeout_s"]}
    info |= {"ssh_options": shlex.join(settings["gateway_ssh"]), "command_timeout": 0, "debug": False}
    info |= {"ssh_path": shlex.join(settings["bounded"])}
    info |= {"ssh_user": user} if user else {}
    for name, setting in info.items():
        task.set_info(name, setting)
    if settings["topology"]:
        task.load_topology(settings["topology"])
    elif not task._default_tree_is_enabled() and task.topology is None:  # noqa: SLF001 - which looks where clush looks
        raise LookupError(", ".join(task.TOPOLOGY_CONFIGS[::-1]))
    children = task.topology.root.children()
    return sorted(gateway for group in children if group.children_len() for gateway in group.nodeset)


def main() -> None:
    """Serve until stdin ends."""
    bound_oneself()
    line = b""
    while not line.endswith(b"\n"):  # by single bytes: what follows is read elsewhere
        byte = os.read(0, 1)
        if not byte:
            return
        line += byte
    settings = json.loads(line)
    logging.disable()
    out = os.dup(1)
    os.dup2(2, 1)  # whoever prints doesn't print into our lines
    task = ClusterShell.Task.task_self()
    relay = Relay(task, settings, out)
    root = socket.gethostname().partition(".")[0]
    try:
        gateways = prepare(task, settings)
    except LookupError as error:
        relay.tell(problem="no topology", said=str(error))
        return
    except (TopologyError, RouteResolvingError, NodeSetException, ValueError) as error:
        relay.tell(problem="topology", said=str(error), root=root)
        return
    worker = StreamWorker(handler=relay)
    worker._fanout = FANOUT_UNLIMITED  # noqa: SLF001 - it takes nobody's turn, as Gateway.py does it
    os.set_blocking(0, False)
    worker.set_reader("orders", sys.stdin)
    task.schedule(worker)
    relay.tell(gateways=gateways, root=root)
    task.resume()


if __name__ == "__main__":
    main()
