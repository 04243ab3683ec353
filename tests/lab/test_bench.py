"""The bench in its quick form: that all of it works, not how fast anything is."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from bench import budget_case, event_case, ways, whole_case
from bench.figures import find_row
from bench.page import write_page
from tests.conftest import CAN_LAB

pytestmark = pytest.mark.root

TOP = Path(__file__).parent.parent.parent
PEERS = 2


def run_bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "bench", *arguments], capture_output=True, text=True, cwd=TOP, timeout=170)


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    if not CAN_LAB:
        pytest.skip("needs root on Linux")
    ended = run_bench("--quick", "-o", "json")
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def test_every_case_runs_every_way(result: dict[str, Any]) -> None:
    assert result["failed"] == {}
    ran = {name: {row["way"] for row in case["rows"]} for name, case in result["cases"].items()}
    missing = set(result["cases"]["fanout"]["missing"])
    assert missing == set(ways.find_missing())
    assert ran == {
        "event": {
            event_case.DAEMON,
            event_case.SHIM,
            event_case.ONE_SHOT,
            event_case.BARE,
            event_case.BARE_OTHERS,
            event_case.TUTORIAL,
            event_case.CURL,
        },
        "budget": {budget_case.DAEMON, budget_case.ONE_SHOT, budget_case.TUTORIAL, budget_case.FOLLOWING},
        "fanout": {*ways.OURS, *ways.THEIRS, ways.UDP, ways.PINGS} - missing,
        "whole": {whole_case.DAEMON},
    }


def test_the_wire_saw_every_peer_in_every_way_and_every_cost_was_counted(result: dict[str, Any]) -> None:
    for row in result["cases"]["fanout"]["rows"]:
        (sample,) = row["samples"]
        assert sample.get("trouble") == "", row
        assert row["way"] == ways.PINGS or sample["cpu_s"] > 0, row
        if row["way"] != ways.UDP:
            assert (sample["refreshed"], sample["proven"]) == (PEERS, PEERS), row
            assert 0 < sample["refreshed_s"] <= sample["proven_s"] <= sample["returned_s"], row


def test_everybody_is_served_after_the_whole(result: dict[str, Any]) -> None:
    row = find_row(result["cases"]["whole"]["rows"], whole_case.DAEMON, n=PEERS)
    assert row is not None
    (sample,) = row["samples"]
    assert (sample["cut_off"], sample["healed"]) == (0, PEERS)


def test_the_page_holds_every_table_and_its_plots_are_xml(result: dict[str, Any], tmp_path: Path) -> None:
    write_page(result, tmp_path)
    page = (tmp_path / "performance.md").read_text()
    for heading in (
        "Promises",
        "Event to POST",
        "API calls of one failover",
        f"All peers refreshed, and proven: {PEERS} peers",
        "lb1 dies",
    ):
        assert f"## {heading}" in page
    assert "dop_v1" not in page
    plots = sorted((tmp_path / "performance").glob("*.svg"))
    assert [plot.stem for plot in plots] == ["event", "fanout-cpu", "fanout-proven"]
    for plot in plots:
        assert ET.fromstring(plot.read_text()).tag == "{http://www.w3.org/2000/svg}svg"
        assert f"performance/{plot.name}" in page
    assert json.loads((tmp_path / "performance" / "raw.json").read_text()) == result


def test_nothing_that_it_started_is_left(result: dict[str, Any]) -> None:
    assert not list(Path("/sys/fs/cgroup").rglob("do-failover-bench-*"))
    ours = (b"bench.driver", b"bench.floor", b"bench.pings", b"bench.raw_api")
    left = [path for path in Path("/proc").glob("[0-9]*/cmdline") if any(name in _read(path) for name in ours)]
    assert left == []
    assert result["took_s"] > 0


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
