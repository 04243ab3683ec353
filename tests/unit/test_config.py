from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from do_failover.config import Config, find_failover, find_file_nits, load_config
from do_failover.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

GOOD = """
[[failover]]
reserved_ip = "203.0.113.47"
instance = "VI_1"
deadline_s = 30
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return path


def problems_of(tmp_path: Path, text: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text))
    assert caught.value.exit_code == 6
    return caught.value.problems


def load(tmp_path: Path, text: str) -> Config:
    return load_config(write(tmp_path, text))


def test_the_smallest_configuration(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD)
    assert config.failover[0].reserved_ip == "203.0.113.47"
    assert config.failover[0].deadline_s == 30.0
    assert config.digitalocean.api_url == "https://api.digitalocean.com/v2/"
    assert config.nits == ()


def test_all_problems_at_once_with_their_keys(tmp_path: Path) -> None:
    text = """
    [digitalocean]
    droplet_id = "two"
    [[failover]]
    reserved_ip = "not an address"
    instance = "VI_1"
    [[failover]]
    instance = 7
    deadline_s = -1
    [peers]
    hosts = "app1"
    concurrency = 0
    [keepalived]
    fifo = []
    """
    text = "\n".join(problems_of(tmp_path, text))
    for key in (
        "digitalocean.droplet_id: expected `int | null`, got `str`",
        "failover[0].reserved_ip: 'not an address'",
        "failover[1].reserved_ip: missing",
        "failover[1].instance: expected `str | null`, got `int`",
        "failover[1].deadline_s: -1.0 is out of range",
        "peers.hosts: expected `array`, got `str`",
        "peers.concurrency: 0 is out of range",
        "keepalived.fifo: expected `str`, got `array`",
    ):
        assert key in text


def test_malformed_toml_names_the_line(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, "[digitalocean]\ntoken_file = = 1\n")
    assert "line 2" in problem


@pytest.mark.parametrize("text", ["", "failover = 3", "[failover]\nreserved_ip='1.2.3.4'", "failover = [1]", "peers = []\n" + GOOD])
def test_wrong_shapes_are_problems(tmp_path: Path, text: str) -> None:
    problems_of(tmp_path, text)


@pytest.mark.parametrize("value", ["nan", "inf", "1e300"])
def test_absurd_numbers_are_problems(tmp_path: Path, value: str) -> None:
    (problem,) = problems_of(tmp_path, GOOD.replace("30", value))
    assert "failover[0].deadline_s" in problem


def test_instance_and_group_exclude_each_other(tmp_path: Path) -> None:
    assert "exactly one of instance and group" in problems_of(tmp_path, GOOD + 'group = "VG"\n')[0]
    assert "exactly one of instance and group" in problems_of(tmp_path, '[[failover]]\nreserved_ip = "2001:db8::1"\n')[0]


def test_an_unknown_key_is_a_nit_with_the_nearest_known_one(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD + "dead_line_s = 3\n[peer]\n[peers]\nfyle = 'x'\n")
    text = "\n".join(config.nits)
    assert "failover[0].dead_line_s: unknown key; did you mean deadline_s?" in text
    assert "peer: unknown key; did you mean peers?" in text
    assert "peers.fyle: unknown key; did you mean file?" in text


def test_the_peers_come_from_file_hosts_and_tag(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD + '[peers]\nfile = "peers"\nhosts = ["app[1-2]"]\ntag = "web"\n')
    assert (config.peers.file, config.peers.hosts, config.peers.tag, config.nits) == ("peers", ("app[1-2]",), "web", ())
    assert "peers.tag: expected `str | null`" in problems_of(tmp_path, GOOD + "[peers]\ntag = 7\n")[0]


def test_a_token_never_goes_over_plain_http(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, GOOD + '[digitalocean]\napi_url = "http://api.example.com/v2/"\n')
    assert "plain http" in problem
    assert load(tmp_path, GOOD + '[digitalocean]\napi_url = "http://127.0.0.1:1/v2/"\n').nits == ()


def test_addresses_are_canonical_and_unique(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD.replace("203.0.113.47", "2001:DB8:0::1"))
    assert config.failover[0].reserved_ip == "2001:db8::1"
    assert "more than once" in problems_of(tmp_path, GOOD + GOOD)[0]


def test_missing_and_unreadable_files_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(binary)


def test_find_failover(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD + GOOD.replace(".47", ".48"))
    assert find_failover(config, "203.0.113.48").reserved_ip == "203.0.113.48"
    for wanted, sentence in ((None, "say which one"), ("203.0.113.9", "is not a reserved IP of"), ("x", "is not an IP address")):
        with pytest.raises(ConfigError, match=sentence):
            find_failover(config, wanted)


def test_a_secret_that_others_can_read_is_a_nit(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("t")
    config = load(tmp_path, GOOD + f'[digitalocean]\ntoken_file = "{token}"\n')
    token.chmod(0o644)
    (nit,) = find_file_nits(config)
    assert "0644" in nit
    assert "chmod" in nit
    token.chmod(0o640)
    assert find_file_nits(config) == []
