"""What README and the docs say is run: the configuration loads, the commands exist, the example is the shipped one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from importlib import resources
from pathlib import Path

import pytest

from bench.quote import BEGIN, END, compose_quote
from do_failover.config import FailoverConfig, load_config
from do_failover.daemon.table import TABLE
from do_failover.errors import FailoverError
from do_failover.model import PeerOutcome

TOP = Path(__file__).parents[2]
README = (TOP / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return [textwrap.dedent(block) for block in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)]


def test_the_configuration_of_the_readme_loads_without_a_nit(tmp_path: Path) -> None:
    (text,) = blocks("toml")
    path = tmp_path / "config.toml"
    path.write_text(text)
    config = load_config(path)
    assert config.nits == ()
    assert (config.failover[0].reserved_ip, config.failover[0].instance) == ("203.0.113.47", "VI_1")
    assert len(text.strip().splitlines()) <= 10, "the real set-up in ten lines"


def test_the_two_commands_of_the_readme_are_there() -> None:
    text, _ = blocks("sh")
    scripts = re.findall(r"sudo (scripts/\w+)", text)
    assert scripts == ["scripts/demo", "scripts/test"]
    for script in (*scripts, "scripts/check", ".ci/run"):
        assert (TOP / script).stat().st_mode & 0o111, script
    assert "scripts/test" in (TOP / ".ci/run").read_text()


@pytest.mark.parametrize("command", sorted(set(re.findall(r"`do-failover ([a-z]+(?: [a-z]+)?)", README))))
def test_every_command_that_the_readme_names_has_a_help(command: str) -> None:
    done = subprocess.run([sys.executable, "-m", "do_failover", *command.split()[:2], "-h"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_options_that_the_readme_names_exist() -> None:
    shown = subprocess.run([sys.executable, "-m", "do_failover", "assign", "-h"], capture_output=True, text=True).stdout
    for option in ("--to DROPLET_ID", "--no-refresh", "--dry-run"):
        assert option in shown


def test_the_example_is_the_one_that_is_shipped_and_used_by_the_lab() -> None:
    shipped = resources.files("do_failover").joinpath("share/keepalived.conf.example").read_text()
    assert (TOP / "keepalived.conf.example").read_text() == shipped
    (line,) = re.findall(r'^ *(notify ".*")$', shipped, re.MULTILINE)
    assert line in README


def test_exit_codes_of_the_readme_are_those_of_the_errors() -> None:
    def walk(kind: type[FailoverError]) -> set[int]:
        return {kind.exit_code}.union(*(walk(sub) for sub in kind.__subclasses__()))

    sentence = README[README.index("Exit codes:") :].partition("`-o json`")[0]
    listed = {int(number) for number in re.findall(r"(?:^|[·:] |\n)(\d+) ", sentence)}
    assert walk(FailoverError) <= listed
    assert {0, 2, 130} <= listed


def test_every_outcome_is_explained() -> None:
    for outcome in PeerOutcome:
        assert f"`{outcome}`" in README


def test_links_lead_somewhere() -> None:
    for page in (TOP / "README.md", *(TOP / "docs").rglob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page}: {target}"


def test_the_state_table_of_the_docs_is_the_one_that_is_coded() -> None:
    page = (TOP / "docs" / "daemon.md").read_text()
    shown = re.findall(r"^\| (.+) \| (tell|reassert|look|refresh|wait) \| (.+) \|$", page, re.MULTILINE)
    assert shown == [(row.when, str(row.then), row.why) for row in TABLE]


def test_the_numbers_of_the_daemons_page_are_the_defaults() -> None:
    page, entry = (TOP / "docs" / "daemon.md").read_text(), FailoverConfig("203.0.113.47", instance="VI_1")
    for name in ("settle_s", "guard_s", "cool_off_s", "refresh_s"):
        assert f"`{name}` ({getattr(entry, name):g}" in page, name


def test_every_test_that_the_security_page_names_is_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", (TOP / "docs" / "security.md").read_text()))
    there = {
        name
        for path in (TOP / "tests").rglob("test_*.py")
        for name in re.findall(r"^ *(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    assert named - there == set()
    assert len(named) > 40


def test_the_readmes_numbers_are_those_of_the_page() -> None:
    result = json.loads((TOP / "docs" / "performance" / "raw.json").read_text())
    assert f"{BEGIN}{compose_quote(result)}{END}" in README
