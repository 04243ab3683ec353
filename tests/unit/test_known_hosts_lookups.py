"""known_hosts is asked for each host by us and by asyncssh: the file's lines are gone through once for it, not at each question."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import asyncssh

from do_failover.ssh.settings import SshSettings
from do_failover.ssh.trust import Trust

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_each_host_is_looked_up_once_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    real = asyncssh.SSHKnownHosts.match

    def match(self: asyncssh.SSHKnownHosts, host: str, addr: str, port: int | None) -> Any:
        asked.append(host)
        return real(self, host, addr, port)

    monkeypatch.setattr(asyncssh.SSHKnownHosts, "match", match)
    key = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
    path = tmp_path / "known_hosts"
    path.write_text(f"app1 {key}")
    trust = Trust(SshSettings(None, None, str(path), None, 5.0, 5.0, 16))
    trusted = trust.load()
    assert trusted.knows("app1", "10.0.0.1", 22)
    assert not trusted.knows("app2", "10.0.0.2", 22)
    assert trusted.order_algorithms("app1", "10.0.0.1", 22)[0] == "ssh-ed25519"
    assert asked == ["app1", "app2"]
    path.write_text("")
    assert not trust.load().knows("app1", "10.0.0.1", 22)
