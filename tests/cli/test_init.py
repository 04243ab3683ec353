"""`do-failover init`: what it writes is what config check, systemd and keepalived accept; it never takes a person's file away."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib import resources
from pathlib import Path

import pytest

from do_failover.config import Config, load_config

PROGRAM = Path(sys.executable).with_name("do-failover")
ETHERNET = next((path.parent.name for path in Path("/sys/class/net").glob("*/type") if path.read_text() == "1\n"), "")
FILES = {
    "etc/do-failover/config.toml": 0o644,
    "etc/do-failover/peers": 0o644,
    "etc/do-failover/known_hosts": 0o644,
    "etc/systemd/system/do-failover.service": 0o644,
    "etc/sysusers.d/do-failover.conf": 0o644,
    "etc/tmpfiles.d/do-failover.conf": 0o644,
    "usr/lib/do-failover/do-failover-notify": 0o755,
}


def init(*arguments: str, umask: int = 0o022, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DO_FAILOVER")} | more
    argv = [str(PROGRAM), "init", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, umask=umask, env=environment)


def tree(top: Path) -> dict[str, str]:
    return {str(path.relative_to(top)): path.read_text() for path in top.rglob("*") if path.is_file()}


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o177])
def test_all_files_are_written_with_their_modes_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    done = init("--systemd", "--directory", str(tmp_path), umask=umask)
    assert (done.returncode, done.stderr) == (0, "")
    assert {path: (tmp_path / path).stat().st_mode & 0o7777 for path in tree(tmp_path)} == FILES
    for path, mode in FILES.items():
        assert (tmp_path / path).parent.stat().st_mode & 0o7777 == 0o755
        assert re.search(rf"^written +{mode:04o}  /{re.escape(path)}  \(.+\)$", done.stdout, re.MULTILINE)


def test_without_systemd_there_is_only_the_configuration(tmp_path: Path) -> None:
    done = init("--directory", str(tmp_path))
    assert set(tree(tmp_path)) == {path for path in FILES if "etc/do-failover" in path}
    assert "systemctl" not in done.stdout
    assert 'notify "/usr/bin/do-failover notify"' in done.stdout


@pytest.mark.skipif(not ETHERNET, reason="this machine has no Ethernet interface")
def test_the_configuration_is_accepted_once_it_is_filled_in_and_not_before(tmp_path: Path) -> None:
    where = ("-c", str(tmp_path / "config.toml"))
    assert init(*where).returncode == 0
    env = {**os.environ, "DIGITALOCEAN_ACCESS_TOKEN": "dop_v1_x"}
    check = [str(PROGRAM), "config", "check", *where]
    before = subprocess.run(check, capture_output=True, text=True, env=env)
    assert (before.returncode, "reserved_ip: 'CHANGE' is not" in before.stderr) == (6, True)
    filled = init(*where, "--force", "--reserved-ip", "203.0.113.47", "--instance", 'V "I" 1', "--interface", ETHERNET)
    assert filled.returncode == 0
    (tmp_path / "peers").write_text("app1\n")
    after = subprocess.run(check, capture_output=True, text=True, env=env)
    assert (after.returncode, after.stderr) == (0, "")
    (entry,) = load_config(tmp_path / "config.toml").failover
    assert (entry.reserved_ip, entry.instance, entry.interface) == ("203.0.113.47", 'V "I" 1', ETHERNET)


def test_what_is_commented_out_as_a_default_is_the_default() -> None:
    text = resources.files("do_failover").joinpath("share/config.toml").read_text()
    document = tomllib.loads(re.sub(r"^# (\w+ = )", r"\1", text, flags=re.MULTILINE))
    config = load_config_of(document)
    plain = load_config_of(tomllib.loads(text))
    assert (config.keepalived, config.failover) == (plain.keepalived, plain.failover)
    assert config.digitalocean.token_file == "/etc/do-failover/token"


def load_config_of(document: dict[str, object]) -> Config:
    from do_failover.config import parse_config

    document["failover"][0]["reserved_ip"] = "203.0.113.47"  # type: ignore[index]
    config = parse_config(document, "x")
    assert config.nits == ()
    return config


def test_another_place_of_the_configuration_is_followed_everywhere(tmp_path: Path) -> None:
    done = init("--systemd", "--directory", str(tmp_path), "-c", "/srv/fo/lb.toml")
    assert done.returncode == 0
    text = (tmp_path / "srv/fo/lb.toml").read_text()
    assert '\ntoken_file = "/srv/fo/token"' in text
    assert "/etc/do-failover" not in text
    assert "-c /srv/fo/lb.toml\n" in (tmp_path / "etc/systemd/system/do-failover.service").read_text()
    assert "\nconfig=/srv/fo/lb.toml\n" in (tmp_path / FILES_SHIM).read_text()
    assert "do-failover config check -c /srv/fo/lb.toml" in done.stdout


FILES_SHIM = "usr/lib/do-failover/do-failover-notify"


def test_unit_and_shim_name_the_program_that_runs_here(tmp_path: Path) -> None:
    init("--systemd", "--directory", str(tmp_path))
    unit = (tmp_path / "etc/systemd/system/do-failover.service").read_text()
    (line,) = re.findall(r"^ExecStart=(\S+) daemon -c /etc/do-failover/config.toml$", unit, re.MULTILINE)
    assert Path(line).samefile(PROGRAM)
    (line,) = re.findall(r"^program=(\S+)$", (tmp_path / FILES_SHIM).read_text(), re.MULTILINE)
    assert Path(line).samefile(PROGRAM)


def test_the_installed_shim_becomes_that_program_with_that_configuration(tmp_path: Path) -> None:
    init("--systemd", "--directory", str(tmp_path), "-c", str(tmp_path / "none.toml"), "--force")
    environment = {"PATH": "/usr/bin:/bin", "DO_FAILOVER_RUN_DIR": str(tmp_path)}
    shim = subprocess.run([tmp_path / FILES_SHIM, "INSTANCE", "VI_1", "MASTER", "1"], capture_output=True, text=True, env=environment)
    assert (shim.returncode, f"{tmp_path}/none.toml: no such file" in shim.stderr) == (6, True)


def test_options_come_from_variables_too(tmp_path: Path) -> None:
    where = {"DO_FAILOVER_DIRECTORY": str(tmp_path), "DO_FAILOVER_SYSTEMD": "1"}
    assert init(DO_FAILOVER_RESERVED_IP="203.0.113.9", DO_FAILOVER_INSTANCE="VI_9", DO_FAILOVER_INTERFACE="ens3", **where).returncode == 0
    (entry,) = load_config(tmp_path / "etc/do-failover/config.toml").failover
    assert (entry.reserved_ip, entry.instance, entry.interface) == ("203.0.113.9", "VI_9", "ens3")
    assert (tmp_path / FILES_SHIM).exists()


def test_twice_is_unchanged_and_a_persons_file_is_kept(tmp_path: Path) -> None:
    init("--systemd", "--directory", str(tmp_path))
    (tmp_path / "etc/do-failover/peers").write_text("app1\n")
    before = tree(tmp_path)
    done = init("--systemd", "--directory", str(tmp_path), "-o", "json")
    states = {row["path"]: row["state"] for row in json.loads(done.stdout)["files"]}
    assert done.returncode == 0
    assert states == {f"/{path}": "kept" if path.endswith("peers") else "unchanged" for path in FILES}
    assert tree(tmp_path) == before
    assert "--force" in init("--directory", str(tmp_path)).stdout


def test_force_replaces_what_differs_and_leaves_the_old_one_beside_it(tmp_path: Path) -> None:
    init("--systemd", "--directory", str(tmp_path))
    fresh = tree(tmp_path)
    peers = tmp_path / "etc/do-failover/peers"
    peers.write_text("app1\n")
    peers.chmod(0o600)
    assert init("--systemd", "--force", "--directory", str(tmp_path)).returncode == 0
    assert tree(tmp_path) == {**fresh, "etc/do-failover/peers.old": "app1\n"}
    assert peers.with_name("peers.old").stat().st_mode & 0o777 == 0o600
    assert peers.stat().st_mode & 0o777 == 0o644


def test_options_that_had_no_effect_are_no_success(tmp_path: Path) -> None:
    init("--directory", str(tmp_path))
    done = init("--directory", str(tmp_path), "--reserved-ip", "203.0.113.47", "-o", "json")
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["exit_code"], answer["outcome"]) == (1, 1, "failed")
    assert "reserved_ip did not get into it" in done.stderr


@pytest.mark.parametrize("is_there", [True, False])
def test_a_dry_run_writes_nothing(tmp_path: Path, is_there: bool) -> None:
    if is_there:
        (tmp_path / "etc/do-failover").mkdir(parents=True)
        (tmp_path / "etc/do-failover/peers").write_text("app1\n")
    before = sorted(tmp_path.rglob("*"))
    done = init("--systemd", "-n", "--force", "--directory", str(tmp_path), "-o", "json")
    answer = json.loads(done.stdout)
    assert (answer["is_dry_run"], answer["files"][1]["state"]) == (True, "replaced" if is_there else "written")
    assert sorted(tmp_path.rglob("*")) == before
    assert "would be written" in init("-n", "--directory", str(tmp_path)).stdout


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--reserved-ip", "203.0.113"),
        ("--reserved-ip", "224.0.0.1"),
        ("--instance", ""),
        ("--instance", "a\nb"),
        ("--interface", "eth 0"),
        ("--interface", "e" * 16),
        ("-c", "/etc/a b.toml"),
        ("-c", "/etc/50%.toml"),
    ],
)
def test_odd_values_are_refused_before_anything_is_written(tmp_path: Path, option: str, value: str) -> None:
    done = init("--directory", str(tmp_path), option, value)
    assert (done.returncode, list(tmp_path.iterdir())) == (2, [])


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "etc").write_text("a file")
    done = init("--directory", str(tmp_path), "-o", "json")
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["error"]["kind"]) == (1, "not_written")
    assert "was not written; run it as root" in done.stderr


def test_no_token_is_asked_for_or_written_and_its_place_is_said(tmp_path: Path) -> None:
    done = init("--systemd", "--directory", str(tmp_path), DIGITALOCEAN_ACCESS_TOKEN="dop_v1_secret")
    assert "dop_v1_secret" not in done.stdout + done.stderr + "".join(tree(tmp_path).values())
    assert "install -m 0640 -g do-failover /dev/stdin /etc/do-failover/token" in done.stdout


def test_what_comes_next_is_said_in_both_forms(tmp_path: Path) -> None:
    text = init("--systemd", "--directory", str(tmp_path)).stdout
    steps = json.loads(init("--systemd", "--directory", str(tmp_path), "-o", "json").stdout)["next"]
    assert all(step in text for step in steps)
    for needed in ("systemd-sysusers", "systemd-tmpfiles --create", "systemctl enable --now do-failover", "vrrp_notify_fifo "):
        assert any(needed in step for step in steps)
