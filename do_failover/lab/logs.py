"""Everything a run leaves to read, copied to a directory outside of the lab."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

from do_failover.lab.errors import LabError
from do_failover.lab.files import HISTORY

if TYPE_CHECKING:
    from pathlib import Path

    from do_failover.lab.rehearsal import Rehearsal


async def collect(lab: Rehearsal, target: Path) -> None:
    """Write each node's logs and reports, the API's request log, the timeline and the fabric's rules into `target`."""
    target.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240  the end of a run: nobody waits
    for name, node in lab.nodes.items():
        for part in ("log", HISTORY):
            if (node.files / part).is_dir():
                shutil.copytree(node.files / part, target / name, dirs_exist_ok=True)
    _write_lines(target / "api.jsonl", lab.requests())
    _write_lines(target / "timeline.jsonl", lab.timeline.entries)
    try:
        rules = await lab.fabric.describe()
    except LabError as error:
        rules = error.message
    (target / "nft").write_text(rules, encoding="utf-8")


def _write_lines(path: Path, items: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
