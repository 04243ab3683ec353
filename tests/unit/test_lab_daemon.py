"""A lab with the daemon, as text: configuration, hook, rules that cut VRRP."""

from __future__ import annotations

import dataclasses
import tomllib
from importlib import resources
from pathlib import Path

import pytest

from do_failover.config import Router, load_config
from do_failover.lab import daemon, files, keepalived
from do_failover.lab.errors import LabError
from do_failover.lab.fabric import cut_rules
from do_failover.lab.options import LabOptions
from do_failover.lab.plan import make_plan
from do_failover.lab.result import problems_of

PLAN = make_plan(LabOptions())
LB1, LB2 = PLAN.balancers


def test_options_with_a_daemon_survive_the_way_and_a_control_has_none() -> None:
    options = LabOptions(with_daemon=True)
    assert LabOptions.from_json(options.to_json()) == options
    with pytest.raises(ValueError, match="without the tool"):
        dataclasses.replace(options, with_tool=False)


def test_the_daemons_configuration_is_one_without_nits_and_names_the_pair(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(files.config_toml(PLAN, with_daemon=True))
    config = load_config(path)
    assert config.nits == ()
    assert config.failover[0].routers == (Router(1, "10.110.0.11"), Router(2, "10.110.0.12"))
    assert (config.keepalived.pid_file, config.keepalived.fifo) == (keepalived.PID_FILE, keepalived.FIFO)
    assert "keepalived" not in tomllib.loads(files.config_toml(PLAN))


def test_keepalived_writes_the_fifo_and_calls_the_shim_only_with_a_daemon() -> None:
    example = keepalived.example()
    line = f"\n    vrrp_notify_fifo {keepalived.FIFO}\n"
    assert line in keepalived.configuration(LB1, PLAN, example, with_daemon=True)
    assert line not in keepalived.configuration(LB1, PLAN, example)
    with pytest.raises(LabError, match="vrrp_notify_fifo"):
        keepalived.configuration(LB1, PLAN, example.replace("# vrrp_notify_fifo", "# vrrp_notify_fifos"), with_daemon=True)
    assert "/run/lab/do-failover-notify" in files.notify_with_daemon()


def test_the_shim_is_the_shipped_one_with_the_labs_program() -> None:
    shipped = resources.files("do_failover").joinpath("share/do-failover-notify").read_text()
    changed = [(old, new) for old, new in zip(shipped.splitlines(), daemon.shim().splitlines(), strict=True) if old != new]
    assert [new for _, new in changed] == [f"program={files.PROGRAM}", "config=/run/lab/config.toml"]
    with pytest.raises(LabError, match="program="):
        files.shim(shipped.replace("program=", "programme="))


def test_a_cut_is_one_way_and_replaces_the_one_before() -> None:
    rules = cut_rules([(LB1, LB2)])
    assert "ip saddr 10.110.0.11 ip daddr 10.110.0.12 drop" in rules
    assert "saddr 10.110.0.12" not in rules
    assert rules.startswith("add table bridge cut\ndelete table bridge cut\n")
    assert "drop" not in cut_rules([])


def test_armed_means_every_peer() -> None:
    peers = [{"host": "app1", "armed": True}, {"host": "app2", "armed": True}]
    assert daemon.is_armed({"peers": peers}, 2)
    assert not daemon.is_armed({"peers": peers}, 3)
    assert not daemon.is_armed({"peers": [*peers, {"host": "app3", "armed": False}]}, 3)
    assert not daemon.is_armed(None, 0)


def test_a_daemons_run_is_judged_like_any_other() -> None:
    result = {"unknown_requests": [], "owner": "lb2", "with_tool": True, "with_daemon": True, "report": None, "cut_off_at_end": []}
    assert problems_of(result) == ["lb2 wrote no failover report"]
