"""`peers.probe`: read from the configuration, and handed to the story by a person's commands and by the daemon alike."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from do_failover.cli.resident import Outside
from do_failover.cli.wiring import LazyPeers, make_api, make_edges
from do_failover.config import load_config
from do_failover.errors import ConfigError
from do_failover.refresh import TcpProber

if TYPE_CHECKING:
    from do_failover.config import Config


def load(directory: Path, probe: str | None) -> Config:
    line = "" if probe is None else f'probe = "{probe}"\n'
    path = directory / "config.toml"
    path.write_text(
        f'[paths]\nrun_dir = "{directory}/run"\nhistory_dir = "{directory}/history"\n[peers]\n{line}'
        '[[failover]]\nreserved_ip = "203.0.113.47"\ninstance = "VI_1"\n'
    )
    return load_config(path)


@pytest.mark.parametrize(("probe", "port"), [(None, None), ("icmp", None), ("tcp:443", 443), ("tcp:1", 1), ("tcp:65535", 65535)])
async def test_both_hand_the_port_to_the_story(tmp_path: Path, probe: str | None, port: int | None) -> None:
    config = load(tmp_path, probe)
    assert config.nits == ()
    api = make_api(config)
    assert make_edges(config, config.failover[0], api).probe_port == port
    api.close()
    outside = Outside(config, logging.getLogger("test"), lambda _: None)
    try:
        assert outside.make_edges(config.failover[0]).probe_port == port
        assert isinstance(outside.armed, TcpProber)
    finally:
        await outside.close()
    assert isinstance(LazyPeers(config.peers), TcpProber)


@pytest.mark.parametrize(
    "probe", ["", "tcp", "tcp:", "tcp:0", "tcp:65536", "tcp:99999", "tcp:-1", "tcp:443 ", "udp:443", "ICMP", "tcp:٤٤٣", "443"]
)
def test_anything_else_is_a_problem(tmp_path: Path, probe: str) -> None:
    with pytest.raises(ConfigError, match='peers.probe: .* is neither "icmp" nor "tcp:PORT"'):
        load(tmp_path, probe)
