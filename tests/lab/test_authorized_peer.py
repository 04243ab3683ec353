"""`do-failover peers authorize`, really carried out: by sh, and by the tools that its other formats are for; then a real sshd
lets the key do its work, with all of its own checks (StrictModes) on."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from forced_command import have
from sshd_bench import SSHD, free_port, make_key, open_pool

from do_failover.cli.peers_authorize import HOME, Authorization, render
from do_failover.model import Peer
from do_failover.peer_words import PeerCommand, ask_to_arm
from do_failover.ssh import SshSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.root, pytest.mark.skipif(SSHD is None or not have("unshare", "useradd"), reason="scripts/test installs them")]
RESERVED, PUBLIC = "203.0.113.47", "198.51.100.12"
needs_ansible = pytest.mark.skipif(shutil.which("ansible-playbook") is None, reason="needs ansible-core")
needs_cloud_init = pytest.mark.skipif(shutil.which("cloud-init") is None, reason="needs cloud-init")
PLAYBOOK = """- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.import_tasks: tasks.yaml
"""
# Its /etc, /var/lib, /usr/lib are a layer of its own, its /run is empty: what is installed there, nobody else sees.
LAYER = """set -eu
mkdir "$1/layers"; mount -t tmpfs x "$1/layers"; mount -t tmpfs x /run; mkdir /run/sshd
for place in /etc /var/lib /usr/lib; do
    mkdir -p "$1/layers$place/up" "$1/layers$place/work"
    mount -t overlay -o "lowerdir=$place,upperdir=$1/layers$place/up,workdir=$1/layers$place/work" x "$place"
done
. "$1/apply"
exec "$2" -D -e -f "$1/sshd_config"
"""
APPLY = {
    "text": 'sh "$1/snippet"; sh "$1/snippet"\n',
    "ansible": """cd "$1"
export HOME="$1" ANSIBLE_NOCOLOR=1
for run in 1 2; do ansible-playbook -c local -i localhost, -e ansible_python_interpreter=/usr/bin/python3 playbook.yaml; done
""",
}


class Droplet:
    """A machine of its own for accounts and programs, on which the snippet was carried out twice, and its sshd."""

    def __init__(self, directory: Path, shape: str) -> None:
        self.directory = directory
        self.identity = make_key(directory / "id")
        host_key, port = make_key(directory / "host_key"), free_port("127.0.0.1")
        self.peer = Peer(0, "127.0.0.1", "do-failover", port)
        public = self.identity.with_suffix(".pub").read_text().rsplit(" ", 1)[0]
        given = Authorization("do-failover", f"{public} lb", ("127.0.0.1",), (RESERVED, PUBLIC))
        snippet = "tasks.yaml" if shape == "ansible" else "snippet"
        (directory / snippet).write_text(render(given, shape))
        (directory / "playbook.yaml").write_text(PLAYBOOK)
        (directory / "apply").write_text(APPLY[shape])
        (directory / "sshd_config").write_text(
            f"ListenAddress 127.0.0.1:{port}\nHostKey {host_key}\nPidFile none\nUsePAM no\nPasswordAuthentication no\n"
        )
        (directory / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key.with_suffix('.pub').read_text()}")
        command = ["unshare", "-m", "sh", "-c", LAYER, "sh", str(directory), str(SSHD)]
        with (directory / "log").open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        with contextlib.ExitStack() as undo:
            undo.callback(self.end)
            end = time.monotonic() + 60  # two playbooks, on a busy machine
            while "Server listening" not in self.log and self.process.poll() is None:
                assert time.monotonic() < end, self.log
                time.sleep(0.02)
            undo.pop_all()

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text()

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(10)

    async def arm(self) -> str:
        settings = SshSettings("do-failover", str(self.identity), str(self.directory / "known_hosts"), None, 5.0, 5.0, 4)
        async with open_pool(settings) as pool:
            return (await pool.run(self.peer, PeerCommand("echo a shell", ask_to_arm(RESERVED, PUBLIC)))).stdout


@pytest.fixture(params=["text", pytest.param("ansible", marks=needs_ansible)])
def droplet(request: pytest.FixtureRequest) -> Iterator[Droplet]:
    with tempfile.TemporaryDirectory() as directory:
        made = Droplet(Path(directory), request.param)
        try:
            if "overlay" in made.log and made.process.poll() is not None:
                pytest.skip(f"no overlay here: {made.log}")
            assert made.process.poll() is None, made.log
            yield made
        finally:
            made.end()


async def test_carried_out_twice_the_key_does_its_work_and_the_second_time_changes_nothing(droplet: Droplet) -> None:
    answer = await droplet.arm()
    assert "@do-failover kind\nmarked\n" in answer
    assert "a shell" not in answer
    if "PLAY RECAP" in droplet.log:
        first, second = (line for line in droplet.log.splitlines() if "changed=" in line)
        assert "changed=4 " in first
        assert "changed=0 " in second
    assert not Path(HOME).exists(), "nothing of it is outside its layer"


@needs_cloud_init
@pytest.mark.parametrize("probe_port", [None, 443])
def test_the_cloud_init_snippet_is_what_cloud_init_takes(tmp_path: Path, probe_port: int | None) -> None:
    given = Authorization("do-failover", "ssh-ed25519 AAAAC3 lb", ("10.110.0.11",), (RESERVED, PUBLIC), probe_port)
    (tmp_path / "user-data").write_text(render(given, "cloud-init"))
    done = subprocess.run(["cloud-init", "schema", "-c", str(tmp_path / "user-data")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
