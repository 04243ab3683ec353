"""`do-failover lab run --daemon` as a person starts it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

COMMAND = (sys.executable, "-m", "do_failover", "lab", "run", "--daemon", "-o", "json")


@pytest.mark.root
def test_a_run_with_the_daemon_is_well_and_its_report_is_the_daemons() -> None:
    arguments = ("--fault", "on-link", "--kill", "keepalived", "--peers", "3", "--unarmed", "1", "--action-time", "0.3")
    run = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=100, umask=0o077)
    result = json.loads(run.stdout)
    assert (run.returncode, result["problems"], result["with_daemon"], result["with_tool"]) == (0, [], True, True)
    report = result["report"]
    assert (report["decision"], report["outcome"], report["owner_after"], report["event"]["state"]) == ("assign", "done", 2, "MASTER")
    identify, assign = report["stages"][:2]
    assert (identify["name"], assign["name"]) == ("identify", "assign")
    assert identify["detail"] == "this is Droplet 2 in nyc3"
    assert [(peer["host"], peer["outcome"]) for peer in report["peers"]] == [(f"app{n}", "healed") for n in (1, 2, 3)]
    assert [entry["who"] for entry in result["timeline"] if entry["what"].startswith("POST")] == ["lb2"]


@pytest.mark.parametrize("arguments", [("--unarmed", "3", "--peers", "3"), ("--unarmed", "3", "--peers", "2")])
def test_not_all_peers_can_be_unarmed(arguments: tuple[str, ...]) -> None:
    run = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=30)
    assert run.returncode == 2
    assert "ask for fewer than --peers" in run.stderr


def test_a_control_has_no_daemon() -> None:
    run = subprocess.run([*COMMAND, "--without-tool"], capture_output=True, text=True, timeout=30)
    assert run.returncode == 2
    assert "--without-tool and --daemon" in run.stderr
