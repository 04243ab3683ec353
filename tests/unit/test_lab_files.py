from __future__ import annotations

import json
import os
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from do_failover.config import load_config, parse_config
from do_failover.errors import MissingProgramError
from do_failover.lab import files, keepalived, requirements, state_file
from do_failover.lab.errors import LabError, NotHereError
from do_failover.lab.options import LabOptions
from do_failover.lab.plan import make_plan

PLAN = make_plan(LabOptions(peers=2))
LB2 = PLAN.balancers[1]


def test_the_example_that_operators_find_is_the_one_that_the_lab_runs() -> None:
    top = Path(__file__).parents[2] / "keepalived.conf.example"
    assert top.read_text(encoding="utf-8") == keepalived.example()


def test_only_the_marked_lines_of_the_example_change() -> None:
    example = keepalived.example()
    made = keepalived.configuration(LB2, PLAN, example)
    changed = [line.strip() for line in made.splitlines() if line not in example.splitlines()]
    assert changed == ["router_id lb2", "priority 100", "unicast_src_ip 10.110.0.12", "10.110.0.11", 'notify "/run/lab/notify"']
    for needed in ("enable_script_security", "script_user root", "nopreempt", "track_script", "advert_int 1"):
        assert needed in made


def test_an_example_that_lost_a_line_is_an_error_that_names_it() -> None:
    without = keepalived.example().replace("    priority 150\n", "")
    with pytest.raises(LabError, match="priority"):
        keepalived.configuration(LB2, PLAN, without)


@pytest.mark.parametrize(
    ("line", "state"),
    [
        ("Tue Nov 24 11:48:40 2026: (VI_1) Entering MASTER STATE", "MASTER"),
        ("(VI_1) Entering BACKUP STATE (init)", "BACKUP"),
        ("(VI_2) Entering FAULT STATE", None),
        ("(VI_1) Receive advertisement timeout", None),
    ],
)
def test_keepaliveds_log_tells_its_state(line: str, state: str | None) -> None:
    assert keepalived.state_in(line) == state


def test_the_labs_config_is_one_that_do_failover_reads(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(files.config_toml(PLAN), encoding="utf-8")
    assert tomllib.loads(path.read_text(encoding="utf-8"))["failover"][0]["reserved_ip"] == PLAN.reserved_ip
    assert load_config(path).nits == ()


def test_time_outs_grow_with_the_peers_that_share_the_machine() -> None:
    def limits(peers: int) -> tuple[float, float, float]:
        config = parse_config(tomllib.loads(files.config_toml(make_plan(LabOptions(peers=peers)))), "config.toml")
        return config.failover[0].deadline_s, config.peers.connect_timeout_s, config.peers.command_timeout_s

    assert limits(5) == (30, 3, 5)
    assert limits(1000) == (80, 8, 25)


@pytest.mark.parametrize("options", [{"unarmed": 1}, {"unarmed": 5, "with_daemon": True}, {"unarmed": -1, "with_daemon": True}])
def test_only_some_peers_of_a_daemon_can_be_unarmed(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="unarmed"):
        LabOptions(peers=5, **options)


def test_the_host_keeps_its_accounts_and_no_hash_of_it_is_copied() -> None:
    text = files.passwd("root:x:0:0:root:/root:/bin/bash\ndo-failover:x:7:7::/:/bin/false\n")
    assert text.splitlines()[0] == "root:x:0:0:root:/root:/bin/bash"
    assert [line for line in text.splitlines() if line.startswith("do-failover:")] == ["do-failover:x:990:990::/run/home:/bin/sh"]
    assert all(line.split(":")[1] == "*" for line in files.SHADOW.splitlines())


def test_a_lab_that_is_gone_is_forgotten(tmp_path: Path) -> None:
    directory = tmp_path / "labs"
    state_file.write("here", os.getpid(), directory)
    (directory / "gone.json").write_text(json.dumps({"pid": os.getpid(), "started": "0"}), encoding="ascii")
    assert state_file.standing(directory) == {"here": os.getpid()}
    assert state_file.pid_of(None, directory) == ("here", os.getpid())
    with pytest.raises(LabError, match="no lab 'gone'.*these stand: here"):
        state_file.pid_of("gone", directory)
    with pytest.raises(LabError, match="stands already"):
        state_file.check_free("here", directory)


def test_what_is_missing_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(NotHereError, match="sudo") as refused:
        requirements.check_machine()
    assert refused.value.exit_code == 4
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(requirements, "PATH", "/nowhere")
    with pytest.raises(MissingProgramError, match=r"apt-get install .*keepalived.*openssh-server") as missing:
        requirements.check_machine()
    assert missing.value.exit_code == 5
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(NotHereError, match="darwin"):
        requirements.check_machine()
