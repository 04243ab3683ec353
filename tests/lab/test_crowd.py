"""How many of our logins reach one sshd: told from the list and ssh_config, without connecting."""

from __future__ import annotations

from typing import TYPE_CHECKING

from do_failover.model import Peer
from do_failover.ssh.crowd import count_logins
from do_failover.ssh.settings import SshSettings

if TYPE_CHECKING:
    from pathlib import Path


def settings(ssh_config: Path | None) -> SshSettings:
    return SshSettings(None, None, "/nonexistent/known_hosts", str(ssh_config) if ssh_config is not None else None, 5.0, 5.0, 16)


async def test_names_of_one_address_count_together_and_a_jump_host_once_for_all_behind_it(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(
        "Host bastion\n HostName 127.0.0.9\nHost app*\n ProxyJump bastion\nHost one two three\n HostName 127.0.0.1\n Port 2222\n"
    )
    hosts = [*(f"app{number}" for number in range(60)), "one", "two", "three"]
    found = await count_logins([*(Peer(number, host) for number, host in enumerate(hosts)), Peer(99, "nowhere")], settings(config))
    assert found["127.0.0.9 port 22"] == 1
    assert found["127.0.0.1 port 2222"] == 3
    assert len(found) == 62
    assert max(found.values()) == 3


async def test_without_an_ssh_config_the_list_alone_counts() -> None:
    peers = [
        Peer(1, "127.0.0.1", None, 22),
        Peer(2, "localhost", None, 22),
        Peer(3, "127.0.0.1", "other", 22),
        Peer(4, "127.0.0.1", None, 23),
    ]
    found = await count_logins(peers, settings(None))
    assert found["127.0.0.1 port 22"] >= 2  # localhost may be ::1 first
    assert sum(found.values()) == 4
