"""`do-failover peers trust` reaches hosts as the story does: by ssh_config, and through jump hosts whose keys come first."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest

from do_failover.model import Peer
from tests.lab.sshd_bench import SSHD, Bench, make_key, open_bench, open_pool

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(SSHD is None or shutil.which("ssh-keygen") is None, reason="needs OpenSSH")

LAX = "StrictHostKeyChecking no\nUserKnownHostsFile none\nGlobalKnownHostsFile none\n"


@dataclass
class Place:
    """A jump host and a peer behind it, which nobody knows yet: sshd 0 and 1; and a configuration for both."""

    bench: Bench
    sshd: list[Peer]

    @property
    def known(self) -> list[str]:
        return self.bench.known_hosts.read_text().splitlines()

    def write(self, ssh_config: str, *hosts: str) -> None:
        (self.bench.directory / "ssh_config").write_text(LAX + ssh_config)
        (self.bench.directory / "config.toml").write_text(f"""
[[failover]]
reserved_ip = "203.0.113.47"
instance = "VI_1"
interface = "lo"
[peers]
hosts = {json.dumps(hosts)}
identity_file = "{self.bench.identity}"
known_hosts = "{self.bench.known_hosts}"
ssh_config = "{self.bench.directory}/ssh_config"
connect_timeout_s = 5
""")

    def host(self, name: str, index: int, jump: str = "none", more: str = "") -> str:
        sshd = self.sshd[index]
        return f"Host {name}\n HostName {sshd.host}\n Port {sshd.port}\n ProxyJump {jump}\n{more}"

    def entry(self, index: int) -> str:
        return f"[{self.sshd[index].host}]:{self.sshd[index].port}"

    def fingerprint(self, index: int) -> str:
        done = subprocess.run(["ssh-keygen", "-lf", str(self.bench.host_key(index))], capture_output=True, text=True, check=True)
        return done.stdout.split()[1]

    def argv(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "do_failover", "peers", "trust", "-c", str(self.bench.directory / "config.toml"), *arguments]

    def trust(self, *arguments: str) -> tuple[int, dict[str, dict[str, object]]]:
        argv = self.argv(*arguments, "-o", "json")
        done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
        document = json.loads(done.stdout)
        assert document["exit_code"] == done.returncode
        return done.returncode, {row["host"]: row for row in document.get("peers", [])}

    def logs_in(self, name: str) -> None:
        async def log_in() -> None:
            async with open_pool(self.bench.settings(ssh_config=str(self.bench.directory / "ssh_config"))) as pool:
                await pool.connect(Peer(0, name))

        asyncio.run(log_in())


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with open_bench(tmp_path) as bench:
        place = Place(bench, [bench.add_peer(number, is_known=False, config="LogLevel DEBUG1\n") for number in (0, 1)])
        place.write(place.host("bastion", 0) + place.host("app1", 1, "bastion"), "app1")
        yield place


def answer(argv: list[str], *answers: str) -> tuple[int, list[str]]:
    """Run it at a terminal and answer its questions in turn; return what it said before each, and at the end."""
    parent, child = pty.openpty()
    with subprocess.Popen(argv, stdin=child, stdout=child, stderr=child, close_fds=True) as process:
        os.close(child)
        left, said = list(answers), [""]
        while select.select([parent], [], [], 30)[0]:
            try:
                data = os.read(parent, 4096)
            except OSError:
                break
            said[-1] += data.decode().replace("\r", "")
            if "[y/N]" in said[-1]:
                os.write(parent, f"{left.pop(0)}\n".encode())
                said.append("")
        os.close(parent)
        assert left == []
        return process.wait(30), said


def test_the_jump_hosts_key_is_asked_for_first_and_then_those_behind_it(place: Place) -> None:
    code, said = answer(place.argv(), "n")
    assert (code, place.known) == (10, [])
    assert f"{place.entry(0)} (bastion)  {place.fingerprint(0)}  (jump host, " in said[0]
    assert re.search(r"app1: not reached, for jump host 127\.0\.0\.1: its host key .* is not in", said[1])
    assert "Connection from" not in place.bench.log(1), "nothing behind a jump host that nobody trusts is looked at"
    assert "Accepted" not in place.bench.log(0), "and nobody logs in to it"

    code, said = answer(place.argv(), "y", "n")
    assert (code, [line.split()[0] for line in place.known]) == (10, [place.entry(0)])
    assert f"{place.entry(1)} (app1)  {place.fingerprint(1)}  (ssh-ed25519, new)" in said[1]

    code, said = answer(place.argv(), "y")
    assert (code, [line.split()[0] for line in place.known]) == (0, [place.entry(0), place.entry(1)])
    assert "Accepted" not in place.bench.log(1), "the peer is sent a key exchange, no more"
    place.logs_in("app1")


def test_fingerprints_given_for_both_need_no_question_and_one_for_the_peer_alone_is_too_few(place: Place) -> None:
    of_app1 = ("--fingerprint", f"app1={place.fingerprint(1)}")
    code, rows = place.trust(*of_app1, "--fingerprint", f"app1={place.fingerprint(0)}")
    assert (code, rows["bastion"]["state"], rows["app1"]["state"], place.known) == (10, "declined", "unreachable", [])
    assert (rows["bastion"]["is_jump"], rows["app1"]["is_jump"]) == (True, False)
    code, rows = place.trust(*of_app1, "--fingerprint", f"bastion={place.fingerprint(0)}")
    assert (code, rows["bastion"]["state"], rows["app1"]["state"]) == (0, "recorded", "recorded")
    place.logs_in("app1")
    code, rows = place.trust(*of_app1)
    assert (code, {row["state"] for row in rows.values()}, len(place.known)) == (0, {"known"}, 2)


def test_a_changed_jump_host_is_refused_until_it_is_replaced_by_name(place: Place) -> None:
    place.bench.know(place.sshd[0], place.bench.host_key(1))
    given = [word for name, index in (("bastion", 0), ("app1", 1)) for word in ("--fingerprint", f"{name}={place.fingerprint(index)}")]
    code, rows = place.trust(*given)
    assert (code, rows["bastion"]["state"], rows["app1"]["state"]) == (10, "changed", "unreachable")
    assert "key changed" in str(rows["app1"]["error"])
    assert "Accepted" not in place.bench.log(0)
    code, rows = place.trust("--replace", "bastion", *given)
    assert (code, rows["bastion"]["state"], rows["app1"]["state"]) == (0, "replaced", "recorded")


def test_two_jump_hosts_come_in_their_order_and_names_ports_and_aliases_are_ssh_configs(place: Place) -> None:
    place.sshd.append(place.bench.add_peer(2, is_known=False, config="LogLevel DEBUG1\n"))
    inner = place.host("inner", 1, "outer")
    place.write(place.host("outer", 0) + inner + place.host("app9", 2, "inner", " HostKeyAlias store9\n"), "app9")
    code, said = answer(place.argv(), "y", "y", "y")
    assert code == 0
    assert [name in text for name, text in zip(("(outer)", "(inner)", "(app9)"), said, strict=False)] == [True] * 3
    assert [line.split()[0] for line in place.known] == [place.entry(0), place.entry(1), f"[store9]:{place.sshd[2].port}"]
    place.logs_in("app9")
    assert place.bench.log(2).count("Accepted publickey") == 1


def test_a_host_ca_vouches_for_the_jump_host_too_and_what_it_signed_is_known(place: Place) -> None:
    authority = make_key(place.bench.directory / "ca")
    for index in (0, 1):
        key = place.bench.host_key(index)
        sign = ["ssh-keygen", "-q", "-s", str(authority), "-I", "x", "-h", "-n", place.sshd[index].host, str(key)]
        subprocess.run(sign, check=True)
        if index == 0:
            place.bench.reconfigure(index, f"HostCertificate {key.with_name('host_key-cert.pub')}")
    public = authority.with_suffix(".pub")
    shown = subprocess.run(["ssh-keygen", "-lf", str(public)], capture_output=True, text=True, check=True).stdout.split()[1]
    code, _ = place.trust("--ca", str(public), "--fingerprint", shown)
    assert (code, [line.split()[:2] for line in place.known]) == (0, [["@cert-authority", f"{place.entry(0)},{place.entry(1)}"]])
    code, rows = place.trust("--yes", "--fingerprint", "SHA256:none")
    assert (code, rows["bastion"]["state"], rows["app1"]["state"]) == (10, "known", "declined"), "app1 shows no certificate"


def test_what_the_story_refuses_or_accepts_is_what_is_shown(place: Place) -> None:
    first = place.sshd[0]
    place.write("", f"{first.host}:{first.port}")
    given = ("--fingerprint", place.fingerprint(0))
    place.bench.known_hosts.write_text(f"@revoked * {place.bench.host_key(0).read_text()}")
    code, rows = place.trust(*given)
    assert (code, rows[first.host]["state"], len(place.known)) == (10, "revoked", 1)

    of_port_22 = f"{first.host} {place.bench.host_key(1).read_text()}"
    place.bench.known_hosts.write_text(of_port_22)
    assert place.trust(*given)[1][first.host]["state"] == "changed", "lines without a port count where the port has none"
    code, rows = place.trust("--replace", first.host, *given)
    assert (code, rows[first.host]["state"]) == (0, "replaced")
    assert place.known[0] == of_port_22.strip(), "that of the sshd at port 22 stays"
    assert place.known[1].startswith(place.entry(0))

    place.bench.known_hosts.write_text(f"{place.entry(0)} {place.bench.host_key(0).read_text()}")
    place.write(f"Host app7\n HostName localhost\n Port {first.port}\n AddressFamily inet\n", "app7")
    code, rows = place.trust("app7", *given)
    assert (code, rows["app7"]["state"], rows["app7"]["entry"]) == (0, "known", f"[localhost]:{first.port}"), "known by its address"
    place.logs_in("app7")


def test_a_config_that_cannot_be_used_is_each_peers_row(place: Place) -> None:
    place.write("Host app1\n ProxyCommand touch x\n", "app1", f"{place.sshd[1].host}:{place.sshd[1].port}")
    code, rows = place.trust("--fingerprint", place.fingerprint(1))
    assert (code, rows["app1"]["state"], rows[place.sshd[1].host]["state"]) == (10, "unreachable", "recorded")
    assert "ProxyCommand, which is never run" in str(rows["app1"]["error"])
    place.bench.reconfigure(0, "AllowTcpForwarding no")
    place.bench.know(replace(place.sshd[0]), place.bench.host_key(0))
    place.write(place.host("bastion", 0) + place.host("app1", 1, "bastion"), "app1")
    code, rows = place.trust("--fingerprint", place.fingerprint(1))
    assert (code, rows["app1"]["state"]) == (10, "unreachable")
    assert "the jump host 127.0.0.1 does not permit a channel" in str(rows["app1"]["error"])
