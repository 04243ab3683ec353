"""A process of its own with a real daemon in it: what Python does between an event and its POST, by audit hooks.

python hot_path_costs.py CONFIG    prints {"between": {audit event: count}, "post_octets": n, "sends": n} as JSON

An audit hook can't be taken off again: so not in the tests' own process.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from do_failover.cli.resident import Outside
from do_failover.config import load_config
from do_failover.daemon.daemon import Daemon

MASTER, BACKUP = (f'INSTANCE "VI_1" {state} 150\n'.encode() for state in ("MASTER", "BACKUP"))


class Recorder:
    """Counts audit events from `begin` to the POST, and the POST's own octets."""

    def __init__(self) -> None:
        self.between: Counter[str] = Counter()
        self.posts: list[int] = []
        self._is_on = self._is_posting = False

    def begin(self) -> None:
        self._is_on = True

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._is_on:
            return
        if event == "http.client.send":
            self._hear_send(bytes(arguments[1]))
        elif not self._is_posting:
            self.between[event] += 1

    def _hear_send(self, data: bytes) -> None:
        if data.startswith(b"POST "):
            self._is_posting = True
        if self._is_posting and not data.startswith(b"GET "):
            self.posts.append(len(data))
        if data.startswith(b"GET "):
            self._is_on = not self._is_posting
            self.between["a GET before the POST"] += not self._is_posting


async def main(config: str) -> None:
    log = logging.getLogger("costs")
    log.addHandler(logging.NullHandler())
    log.propagate = False
    outside = Outside(load_config(Path(config)), log, lambda _: None)
    world = outside.make_world()
    daemon = Daemon(outside.config.failover, world)
    running = asyncio.create_task(daemon.run())
    keeper = next(iter(daemon.keepers.values()))
    daemon.feed(BACKUP)
    await until(lambda: keeper.identity is not None and keeper.standing.is_served)
    await keeper.edges.api.read_reserved_ip(keeper.entry.reserved_ip, 5.0)  # the kept connection is up, as the guard keeps it
    recorder = Recorder()
    sys.addaudithook(recorder.hear)
    recorder.begin()
    daemon.feed(MASTER)
    await until(lambda: keeper.standing.is_ours and not keeper.is_acting)
    daemon.end("the end")
    await running
    await outside.close()
    print(json.dumps({"between": recorder.between, "post_octets": sum(recorder.posts), "sends": len(recorder.posts)}))  # noqa: T201 - its result


async def until(is_true: Any) -> None:
    for _ in range(2000):
        if is_true():
            return
        await asyncio.sleep(0.005)
    message = "it never happened"
    raise RuntimeError(message)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
