"""`do-failover peers authorize`: what it prints is complete, and lets a real sshd do what it says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from do_failover.cli.peers_authorize import HOME, PROGRAM, Authorization, render
from tests.cli_process import Ended, run
from tests.loopback import IP, Loopback, serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ROUTERS = 'routers = [{droplet_id = 1, address = "10.110.0.11"}, {droplet_id = 2, address = "10.110.0.12"}]'
SCRIPT = resources.files("do_failover").joinpath("share/do-failover-peer").read_text()
GIVEN = Authorization("do-failover", "ssh-ed25519 AAAAC3 lb", ("10.110.0.11", "10.110.0.12"), (IP, "198.18.0.11"))
needs_keygen = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")
pytestmark = needs_keygen


def keygen(*arguments: str) -> None:
    subprocess.run(["ssh-keygen", "-q", *arguments], check=True, capture_output=True)


@pytest.fixture
async def region(tmp_path: Path) -> AsyncIterator[Loopback]:
    async with serve(tmp_path) as served:
        keygen("-t", "ed25519", "-N", "", "-C", "lb key'", "-f", str(tmp_path / "id"))
        config = served.write_config()
        config.write_text(
            config.read_text().replace("[peers]\n", f'{ROUTERS}\n[peers]\nuser = "do-failover"\nidentity_file = "{tmp_path}/id"\n')
        )
        yield served


async def authorize(region: Loopback, *arguments: str) -> Ended:
    return await run(region, "peers", "authorize", "-c", str(region.config), *arguments)


async def test_the_line_allows_the_script_from_the_pair_on_their_addresses_only(region: Loopback) -> None:
    ended = await authorize(region, "-o", "json")
    answer = ended.json()
    assert (ended.code, ended.err, answer["outcome"], answer["nits"]) == (0, "", "done", [])
    key = (region.directory / "id.pub").read_text().split()
    assert answer["authorized_key"] == (
        f'restrict,from="10.110.0.11,10.110.0.12",command="{PROGRAM} --allow {IP},198.18.0.11,198.18.0.12" {key[0]} {key[1]} lb_key_'
    )
    assert answer["from"] == ["10.110.0.11", "10.110.0.12"]
    assert answer["allow"] == [IP, "198.18.0.11", "198.18.0.12"]
    assert answer["snippet"] == (await authorize(region)).out
    assert answer["authorized_key"] in answer["snippet"]


async def test_a_key_without_its_pub_is_computed_and_another_may_be_named(region: Loopback) -> None:
    line = (await authorize(region, "-o", "json")).json()["authorized_key"]
    (region.directory / "id.pub").rename(region.directory / "other.pub")
    assert (await authorize(region, "-o", "json")).json()["authorized_key"].split()[:4] == line.split()[:4]
    named = (await authorize(region, "-o", "json", "--key", str(region.directory / "other.pub"))).json()["authorized_key"]
    assert named == line
    ended = await authorize(region, "-o", "json", "--key", "/nonexistent")
    assert (ended.code, "name one by --key" in ended.json()["error"]["message"]) == (6, True)


async def test_an_encrypted_key_and_rubbish_are_said(region: Loopback) -> None:
    (region.directory / "id.pub").unlink()
    keygen("-p", "-N", "secret", "-f", str(region.directory / "id"))
    ended = await authorize(region)
    assert (ended.code, "without a passphrase" in ended.err, ended.out) == (6, True, "")
    (region.directory / "id.pub").write_text("rubbish\n")
    assert (await authorize(region)).code == 6


async def test_an_address_that_nobody_knows_is_an_error_until_it_is_named(region: Loopback) -> None:
    region.api.set_faults("droplet**:503")
    before = await authorize(region, "-o", "json")
    assert (before.code, before.json()["error"]["kind"]) == (1, "unknown_address")
    assert "load balancer 1" in before.json()["error"]["message"]
    ended = await authorize(region, "-o", "json", "--allow", "198.18.0.11")
    assert (ended.code, ended.json()["allow"]) == (0, [IP, "198.18.0.12", "198.18.0.11"])  # its own address the metadata knows
    assert "load balancer 1 is not known" in ended.err


async def test_without_routers_and_eth1_the_sources_have_to_be_named_and_one_is_too_few(region: Loopback) -> None:
    region.config.write_text(region.config.read_text().replace(ROUTERS, ""))
    if not Path("/sys/class/net/eth1").exists():
        ended = await authorize(region)
        assert (ended.code, ended.out, "--from" in ended.err) == (2, "", True)
    ended = await authorize(region, "--from", "10.110.0.12", "-o", "json")
    assert (ended.code, ended.json()["from"], ended.json()["allow"]) == (0, ["10.110.0.12"], [IP, "198.18.0.12"])
    assert "counts from 10.110.0.12 only" in ended.err
    ended = await authorize(region, "--from", "10.0.0.1", "--from", "10.0.1.0/24", "-o", "json")
    assert (ended.code, ended.json()["from"], ended.err) == (0, ["10.0.0.1", "10.0.1.0/24"], "")


async def test_this_droplets_private_address_is_known_from_the_kept_discovery(region: Loopback) -> None:
    region.config.write_text(region.config.read_text().replace(ROUTERS, "").replace("[peers]\n", '[peers]\ntag = "web"\n'))
    region.region.droplets[2] = replace(region.region.droplets[2], tags=("web",))
    assert (await run(region, "peers", "--refresh", "-c", str(region.config))).code == 0
    ended = await authorize(region, "-o", "json")
    assert (ended.code, ended.json()["from"], ended.json()["allow"]) == (0, ["10.110.0.12"], [IP, "198.18.0.12"])
    assert "only one load balancer is known" in ended.err


async def test_the_user_is_whom_do_failover_logs_in_as_and_another_one_is_said(region: Loopback) -> None:
    text = region.config.read_text()
    region.config.write_text(text.replace('user = "do-failover"', 'user = "pinger"'))
    answer = (await authorize(region, "-o", "json")).json()
    assert (answer["user"], answer["nits"]) == ("pinger", [])
    answer = (await authorize(region, "--user", "other", "-o", "json")).json()
    assert (answer["user"], 'so do-failover logs in as pinger; set user = "other"' in answer["nits"][0]) == ("other", True)
    region.config.write_text(text.replace('user = "do-failover"', 'user = "root"'))
    answer = (await authorize(region, "-o", "json")).json()
    assert (answer["user"], "so do-failover logs in as root; set" in answer["nits"][0]) == ("do-failover", True)
    region.config.write_text(text.replace('user = "do-failover"', ""))
    answer = (await authorize(region, "-o", "json")).json()
    assert (answer["user"], "peers.user is not set, so" in answer["nits"][0]) == ("do-failover", True)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--user", "root"),
        ("--user", "a;id"),
        ("--user", "-x"),
        ("--from", 'x",command="sh'),
        ("--from", "app1"),
        ("--allow", "0.0.0.0/0"),
        ("--allow", "10.0.0.1/8"),
        ("--allow", "224.0.0.1"),
        ("--allow", "$(id)"),
        ("--format", "chef"),
    ],
)
async def test_what_could_not_stand_in_the_line_is_refused(region: Loopback, arguments: tuple[str, str]) -> None:
    ended = await authorize(region, *arguments)
    assert (ended.code, ended.out) == (2, "")


def test_the_shell_snippet_is_sound_sh() -> None:
    snippet = render(GIVEN, "text")
    assert subprocess.run(["sh", "-n"], input=snippet, text=True).returncode == 0
    assert "@" not in re.sub(r"@do-failover|\$@|@\"", "", snippet.replace(SCRIPT.rstrip("\n"), ""))
    if shutil.which("shellcheck"):
        done = subprocess.run(
            ["shellcheck", "-s", "sh", "-"], input=snippet.replace(SCRIPT.rstrip("\n"), "x"), text=True, capture_output=True
        )
        assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.root
@pytest.mark.skipif(not all(map(shutil.which, ("useradd", "unshare"))), reason="needs useradd and unshare")
def test_the_shell_snippet_really_run_makes_a_peer() -> None:
    """In a mount namespace whose /etc, /var/lib and /usr/lib are a layer of its own."""
    again = render(replace(GIVEN, allowed=(IP,)), "text")
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "first").write_text(render(GIVEN, "text"))
        (Path(directory) / "again").write_text(again)
        look = (
            f'sh "$0/first" && sh "$0/again" && getent passwd do-failover && getent shadow do-failover | cut -d: -f2 && '
            f"stat -c '%U %a %n' {HOME} {HOME}/.ssh {HOME}/.ssh/authorized_keys {PROGRAM} && cat {HOME}/.ssh/authorized_keys && "
            f'cp {PROGRAM} "$0/script" && ls -A {HOME}/.ssh {PROGRAM.rpartition("/")[0]}'
        )
        layers = "".join(
            f'mkdir -p "$0/{name}/up" "$0/{name}/work" && '
            f'mount -t overlay -o "lowerdir={path},upperdir=$0/{name}/up,workdir=$0/{name}/work" x {path} && '
            for name, path in (("etc", "/etc"), ("var", "/var/lib"), ("lib", "/usr/lib"))
        )
        before = Path("/etc/passwd").read_text()
        prepare = f'mount -t tmpfs x "$0/layers" && {layers.replace("$0/", "$0/layers/")}{look}'
        (Path(directory) / "layers").mkdir()
        done = subprocess.run(["unshare", "-m", "sh", "-c", prepare, directory], capture_output=True, text=True, timeout=60)
        if "overlay" in done.stderr:
            pytest.skip(f"no overlay here: {done.stderr}")
        assert done.returncode == 0, done.stderr
        assert Path("/etc/passwd").read_text() == before
        lines = done.stdout.splitlines()
        assert re.fullmatch(rf"do-failover:x:\d+:\d+::{HOME}:/bin/sh", lines[0])
        assert lines[1] == "*"
        assert lines[2:6] == [f"root 755 {HOME}", f"root 755 {HOME}/.ssh", f"root 644 {HOME}/.ssh/authorized_keys", f"root 755 {PROGRAM}"]
        assert lines[6] == replace(GIVEN, allowed=(IP,)).line
        assert not [line for line in lines if line.endswith(".new")]
        assert (Path(directory) / "script").read_text() == SCRIPT


@pytest.mark.root
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare")
def test_the_shell_snippet_leaves_another_user_of_that_name_alone() -> None:
    snippet = render(replace(GIVEN, user="nobody"), "text")
    done = subprocess.run(["unshare", "-m", "sh"], input=snippet, capture_output=True, text=True, timeout=60)
    assert (done.returncode, "nothing was changed" in done.stderr) == (1, True)
    assert not Path(HOME).exists()


def test_the_cloud_init_snippet_does_the_same() -> None:
    import yaml

    snippet = render(GIVEN, "cloud-init")
    assert snippet.startswith("#cloud-config\n")
    document = yaml.safe_load(snippet)
    assert set(document) == {"write_files", "runcmd"}
    files = {file["path"]: file for file in document["write_files"]}
    assert files[PROGRAM]["content"] == SCRIPT
    assert (files[PROGRAM]["permissions"], files[PROGRAM]["owner"]) == ("0755", "root:root")
    assert files[f"{HOME}/.ssh/authorized_keys"]["content"] == f"{GIVEN.line}\n"
    assert all(isinstance(word, str) for command in document["runcmd"] for word in command)
    assert document["runcmd"][-1] == ["sh", "-c", "printf '%s:*\\n' do-failover | chpasswd -e"]


def test_the_ansible_tasks_do_the_same() -> None:
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc,name-defined]
        pass

    Loader.add_constructor("!unsafe", lambda loader, node: loader.construct_scalar(node))
    tasks = yaml.load(render(GIVEN, "ansible"), Loader=Loader)  # noqa: S506 - a SafeLoader of ours
    modules = [next(key for key in task if "." in key) for task in tasks]
    assert modules == ["ansible.builtin.user", "ansible.builtin.file", "ansible.builtin.copy", "ansible.builtin.copy"]
    user, script, key = tasks[0][modules[0]], tasks[2][modules[2]], tasks[3][modules[3]]
    assert (user["name"], user["home"], user["shell"], user["password"], user["system"]) == ("do-failover", HOME, "/bin/sh", "*", True)
    assert (script["dest"], script["mode"], script["content"]) == (PROGRAM, "0755", SCRIPT)
    assert (key["dest"], key["mode"], key["content"]) == (f"{HOME}/.ssh/authorized_keys", "0644", f"{GIVEN.line}\n")
    assert tasks[1]["loop"] == [PROGRAM.rpartition("/")[0], HOME, f"{HOME}/.ssh"]


@pytest.mark.parametrize("shape", ["cloud-init", "ansible"])
def test_both_carry_the_script_whole(shape: str) -> None:
    """Without a YAML reader: the block's margin taken away, it is the script and the line."""
    text = render(GIVEN, shape)
    for block in (SCRIPT, f"{GIVEN.line}\n"):
        margin = " " * 6
        assert "\n".join(margin + line if line else "" for line in block.rstrip("\n").split("\n")) in text
    assert not re.search(r"@[A-Z_]+@", text)
    assert os.linesep == "\n"
