"""`do-failover peers trust`: host keys of real sshd's get into known_hosts when their fingerprint was accepted, and never otherwise."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import select
import shutil
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.lab.sshd_bench import SSHD, Bench, free_port, mute_peer, open_bench, open_pool

if TYPE_CHECKING:
    from collections.abc import Iterator

    from do_failover.model import Peer

pytestmark = pytest.mark.skipif(SSHD is None or shutil.which("ssh-keygen") is None, reason="needs OpenSSH")


@dataclass
class Place:
    """Two sshd's nobody knows yet, and a configuration that lists them."""

    bench: Bench
    peers: list[Peer]

    @property
    def known_hosts(self) -> Path:
        return self.bench.known_hosts

    def write_config(self, *more: str) -> Path:
        hosts = [f"{peer.host}:{peer.port}" for peer in self.peers] + list(more)
        config = self.bench.directory / "config.toml"
        config.write_text(f"""
[[failover]]
reserved_ip = "203.0.113.47"
instance = "VI_1"
interface = "lo"
[peers]
hosts = {json.dumps(hosts)}
known_hosts = "{self.known_hosts}"
connect_timeout_s = 3
""")
        return config

    def fingerprint(self, index: int) -> str:
        done = subprocess.run(["ssh-keygen", "-lf", str(self.bench.host_key(index))], capture_output=True, text=True, check=True)
        return done.stdout.split()[1]

    def given(self, *indices: int) -> list[str]:
        return [word for index in indices for word in ("--fingerprint", f"{self.peers[index].host}={self.fingerprint(index)}")]

    def argv(self, *arguments: str) -> list[str]:
        config = self.bench.directory / "config.toml"
        return [
            sys.executable,
            "-m",
            "do_failover",
            "peers",
            "trust",
            "-c",
            str(config if config.exists() else self.write_config()),
            *arguments,
        ]

    def trust(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.argv(*arguments), capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)

    def json(self, *arguments: str) -> tuple[int, dict[str, dict[str, object]]]:
        done = self.trust(*arguments, "-o", "json")
        document = json.loads(done.stdout)
        assert document["exit_code"] == done.returncode
        return done.returncode, {row["entry"]: row for row in document["peers"]}

    def entry(self, index: int) -> str:
        return f"[{self.peers[index].host}]:{self.peers[index].port}"

    def logs_in(self, index: int) -> None:
        async def log_in() -> None:
            async with open_pool(self.bench.settings()) as pool:
                await pool.connect(self.peers[index])

        asyncio.run(log_in())


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with open_bench(tmp_path) as bench:
        yield Place(bench, [bench.add_peer(number, is_known=False) for number in (0, 1)])


def answer_at_terminal(argv: list[str], answer: str) -> tuple[int, str]:
    """Run it at a terminal and answer its question."""
    parent, child = pty.openpty()
    with subprocess.Popen(argv, stdin=child, stdout=child, stderr=child, close_fds=True) as process:
        os.close(child)
        said, is_answered = b"", False
        try:
            while select.select([parent], [], [], 30)[0]:
                try:
                    data = os.read(parent, 4096)
                except OSError:
                    break
                if not data:
                    break
                said += data
                if b"[y/N]" in said and not is_answered:
                    os.write(parent, f"{answer}\n".encode())
                    is_answered = True
        finally:
            os.close(parent)
        return process.wait(30), said.decode().replace("\r", "")


def test_given_fingerprints_are_recorded_and_then_known(place: Place) -> None:
    code, rows = place.json(*place.given(0, 1))
    assert (code, [row["state"] for row in rows.values()]) == (0, ["recorded", "recorded"])
    assert rows[place.entry(0)]["fingerprint"] == place.fingerprint(0)
    assert len(place.known_hosts.read_text().splitlines()) == 2
    assert stat.S_IMODE(place.known_hosts.stat().st_mode) == 0o644
    place.logs_in(0)
    place.logs_in(1)
    before = place.known_hosts.stat().st_ino
    code, rows = place.json("--fingerprint", place.fingerprint(0))
    assert (code, {row["state"] for row in rows.values()}) == (0, {"known"})
    assert place.known_hosts.stat().st_ino == before, "nothing to write"


def test_a_person_is_shown_the_fingerprints_and_asked(place: Place) -> None:
    place.known_hosts.unlink()
    code, said = answer_at_terminal(place.argv(), "n")
    assert (code, place.known_hosts.exists()) == (10, False)
    assert place.fingerprint(0) in said
    assert place.fingerprint(1) in said
    code, said = answer_at_terminal(place.argv(), "y")
    assert (code, said.count("recorded")) == (0, 2)
    place.logs_in(1)


@pytest.mark.parametrize(
    "arguments", [(), ("--yes",), ("-o", "json"), ("--fingerprint", "MD5:aa"), ("--fingerprint", "SHA256:"), ("--fingerprint", "aSHA256:b")]
)
def test_nothing_is_accepted_silently(place: Place, arguments: tuple[str, ...]) -> None:
    done = place.trust(*arguments)
    assert (done.returncode, place.known_hosts.read_text()) == (2, "")
    code, _ = answer_at_terminal(place.argv("--yes"), "y")
    assert (code, place.known_hosts.read_text()) == (2, "")


def test_a_fingerprint_counts_for_its_host_only_and_a_wrong_one_for_nobody(place: Place) -> None:
    swapped = ["--fingerprint", f"{place.peers[0].host}={place.fingerprint(1)}"]
    code, rows = place.json("--yes", *swapped)
    assert (code, {row["state"] for row in rows.values()}, place.known_hosts.read_text()) == (10, {"declined"}, "")
    code, rows = place.json("--yes", *place.given(1))
    assert (code, [row["state"] for row in rows.values()]) == (10, ["declined", "recorded"])


def test_a_changed_key_is_shown_with_the_old_one_and_replaced_only_by_name(place: Place) -> None:
    place.known_hosts.write_text("# mine\n" + f"{place.entry(0)},other {place.bench.host_key(1).read_text()}")
    code, rows = place.json(*place.given(0, 1))
    row = rows[place.entry(0)]
    assert (code, row["state"], row["fingerprint"], row["old"]) == (10, "changed", place.fingerprint(0), [place.fingerprint(1)])
    assert f"--replace {place.peers[0].host}" in str(row["error"])
    assert place.bench.host_key(0).read_text().split()[1] not in place.known_hosts.read_text()
    code, rows = place.json("--replace", place.peers[0].host, "--yes", *place.given(1))
    assert rows[place.entry(0)]["state"] == "changed", "named, but its new fingerprint was accepted by nobody"
    code, rows = place.json("--replace", place.peers[0].host, *place.given(0))
    assert (code, rows[place.entry(0)]["state"]) == (0, "replaced")
    lines = place.known_hosts.read_text().splitlines()
    assert lines[0] == "# mine"
    assert [line for line in lines if line.startswith("other ")], "what the line said of another host stays"
    place.logs_in(0)
    assert place.trust("--replace", "app9", *place.given(0)).returncode == 2


def test_hashed_names_stay_hashed_and_are_found(place: Place) -> None:
    place.known_hosts.write_text(f"{place.entry(0)} {place.bench.host_key(0).read_text()}")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(place.known_hosts)], check=True, capture_output=True)
    code, rows = place.json(*place.given(1))
    assert (code, [row["state"] for row in rows.values()]) == (0, ["known", "recorded"])
    lines = place.known_hosts.read_text().splitlines()
    assert all(line.startswith("|1|") for line in lines)
    assert len(lines) == 2
    found = subprocess.run(["ssh-keygen", "-F", place.entry(1), "-f", str(place.known_hosts)], capture_output=True, text=True)
    assert found.returncode == 0
    place.logs_in(1)


def test_a_peer_that_is_down_or_mute_stops_no_other(place: Place) -> None:
    with mute_peer() as mute:
        place.write_config(f"127.0.0.7:{free_port('127.0.0.7')}", f"{mute.host}:{mute.port}")
        code, rows = place.json(*place.given(0, 1))
    assert (code, [row["state"] for row in rows.values()]) == (10, ["recorded", "recorded", "unreachable", "unreachable"])
    assert len(place.known_hosts.read_text().splitlines()) == 2


def test_one_named_host_only(place: Place) -> None:
    code, rows = place.json(f"{place.peers[1].host}:{place.peers[1].port}", *place.given(1))
    assert (code, list(rows)) == (0, [place.entry(1)])
    assert place.trust("a b", *place.given(1)).returncode == 2


def test_a_host_ca_is_recorded_for_the_peers_after_its_fingerprint_was_accepted(place: Place) -> None:
    authority, key = place.bench.directory / "ca", place.bench.host_key(0)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(authority)], check=True)
    sign = ["ssh-keygen", "-q", "-s", str(authority), "-I", "x", "-h", "-n", place.peers[0].host, str(key)]
    subprocess.run(sign, check=True)
    place.bench.reconfigure(0, f"HostCertificate {key.with_name('host_key-cert.pub')}")
    public = str(authority.with_suffix(".pub"))
    shown = subprocess.run(["ssh-keygen", "-lf", public], capture_output=True, text=True, check=True).stdout.split()[1]
    assert place.json("--ca", public, *place.given(0))[0] == 10
    assert place.known_hosts.read_text() == ""
    code, rows = place.json("--ca", public, "--fingerprint", shown)
    assert (code, {row["state"] for row in rows.values()}) == (0, {"recorded"})
    assert re.fullmatch(r"@cert-authority \[127\.0\.0\.1\]:\d+,\[127\.0\.0\.2\]:\d+ ssh-ed25519 \S+\n", place.known_hosts.read_text())
    place.logs_in(0)
    assert {row["state"] for row in place.json("--ca", public, "--fingerprint", shown)[1].values()} == {"known"}
    assert len(place.known_hosts.read_text().splitlines()) == 1
    assert place.trust("--ca", "/nonexistent", "--fingerprint", shown).returncode == 6


def test_a_file_that_cannot_be_written_is_said_and_the_old_one_stays(place: Place) -> None:
    place.known_hosts.unlink()
    place.known_hosts.mkdir()
    done = place.trust(*place.given(0))
    assert (done.returncode, "nothing was recorded" in done.stderr) == (1, True)
