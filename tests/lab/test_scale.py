"""A thousand peers, all their sshd's on this machine: cold, armed, and some of each. Minutes each, so only with --long."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.root

PEERS = 1000
COMMAND = (sys.executable, "-m", "do_failover", "lab", "run", "--peers", str(PEERS), "--fault", "fabric", "-o", "json")
LIMIT_S = 900


@pytest.fixture(autouse=True)
def _only_when_long(request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--long"):
        pytest.skip("minutes: --long")


@pytest.mark.parametrize("arguments", [(), ("--daemon",), ("--daemon", "--unarmed", "300")], ids=["cold", "armed", "mixed"])
def test_a_thousand_peers_are_all_healed(arguments: tuple[str, ...]) -> None:
    run = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=LIMIT_S)
    result = json.loads(run.stdout)
    assert (run.returncode, result["problems"], result["cut_off_at_end"]) == (0, [], []), run.stderr
    # the last report: where a first round left some, of those
    assert {(row["outcome"], row["witnessed"]) for row in result["report"]["peers"]} == {("healed", True)}
    assert len(result["outage_s"]) == PEERS + 1


def test_nothing_is_left_when_a_person_ends_it_half_way() -> None:
    raised = Path("/run/do-failover-lab.host-limits")  # the host's neighbour limits
    before = spaces()
    with subprocess.Popen([*COMMAND, "--daemon"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        end = time.monotonic() + LIMIT_S
        while len(mine := spaces() - before) < PEERS:
            assert time.monotonic() < end
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    end = time.monotonic() + 60
    while mine & spaces() or raised.exists():
        assert time.monotonic() < end, f"{len(mine & spaces())} namespaces are still there"
        time.sleep(0.1)


def spaces() -> set[str]:
    """The network namespaces of all processes, but for this one's."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/ns/net"):
        try:
            found.add(str(path.readlink()))
        except OSError:
            continue
    return found - {str(Path("/proc/self/ns/net").readlink())}
