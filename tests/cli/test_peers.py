"""`do-failover peers` as a process, and how a failover uses what it keeps."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from dataclasses import replace
from typing import TYPE_CHECKING

import click
import pytest

from do_failover.cli.peers import make_answer, peers, show_peers
from do_failover.fanout import FoundPeers, SkippedPeer
from do_failover.model import Peer
from tests.cli_process import run
from tests.loopback import TOKEN, Loopback, serve

if TYPE_CHECKING:
    from pathlib import Path

ROUTERS = 'routers = [{droplet_id = 1, address = "10.110.0.11"}, {droplet_id = 2, address = "10.110.0.12"}]'


def configure(region: Loopback, *, listed: str = "", tag: str = "web") -> str:
    config = region.write_config(peers=listed)
    text = config.read_text().replace("[peers]\n", f'{ROUTERS}\n[peers]\ntag = "{tag}"\n')
    config.write_text(text)
    return str(config)


def tag_droplets(region: Loopback) -> None:
    """The pair, and Droplets 3 to 8: of them one off, one elsewhere, one without a private network."""
    droplets = region.region.droplets
    for number in (1, 2):
        droplets[number] = replace(droplets[number], tags=("web",))
    for number, more in {3: {}, 4: {"status": "off"}, 5: {"region": "sfo3"}, 6: {"private": ""}, 7: {"tags": ("db",)}, 8: {}}.items():
        whole = replace(droplets[1], id=number, name=f"web{number}", public=f"198.18.1.{number}", private=f"10.110.1.{number}")
        droplets[number] = replace(whole, tags=("web",))
        droplets[number] = replace(droplets[number], **more)


async def test_all_that_is_known_and_from_where(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        tag_droplets(region)
        region.api.set_faults("list**:split 2")
        config = configure(region, listed="app1\ndeploy@10.110.1.8:2222\nbad one\n")
        ended = await run(region, "peers", "--refresh", "-c", config, "-o", "json")
        answer = ended.json()
        assert (ended.code, answer["schema"], answer["outcome"], answer["exit_code"]) == (0, 1, "done", 0)
        names = ("host", "user", "port", "source", "address", "droplet_id", "name", "armed")
        assert [tuple(peer[name] for name in names) for peer in answer["peers"]] == [
            ("app1", None, 22, f"file {tmp_path}/peers:1", None, None, None, None),
            ("10.110.1.8", "deploy", 2222, f"file {tmp_path}/peers:2, tag web", "198.18.1.8", 8, "web8", None),
            ("10.110.1.3", None, 22, "tag web", "198.18.1.3", 3, "web3", None),
            ("198.18.1.6", None, 22, "tag web", "198.18.1.6", 6, "web6", None),
        ]
        assert [skip["host"] for skip in answer["skipped"]] == ["10.110.0.11", "10.110.0.12", "10.110.1.4", "10.110.1.5"]
        for skip, reason in zip(answer["skipped"], ("other load balancer", "this very Droplet", "was off", "is in sfo3"), strict=True):
            assert reason in skip["reason"]
        (nit,) = answer["nits"]
        assert "peers:3: 'bad one'" in nit
        assert nit in ended.err
        assert len(region.calls()) == 4


async def test_what_was_kept_is_shown_without_the_api_and_as_text(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        tag_droplets(region)
        config = configure(region, listed="app1\n")
        assert (await run(region, "peers", "--refresh", "-c", config)).code == 0
        region.api.requests.clear()
        ended = await run(region, "peers", "-c", config)
        assert (ended.code, ended.err, region.calls()) == (0, "", [])
        lines = ended.out.splitlines()
        assert lines[0] == "PEERS  4 would be refreshed, 4 are skipped; none is armed: no daemon runs here"
        assert lines[1].split() == ["PEER", "DROPLET", "PUBLIC", "ADDRESS", "ARMED", "KNOWN", "FROM"]
        assert lines[2].split() == ["app1", "-", "-", "-", "file", f"{tmp_path}/peers:1"]
        assert lines[3].split() == ["10.110.1.3", "web3", "198.18.1.3", "-", "tag", "web"]
        assert lines[6].split() == ["SKIPPED", "WHY"]
        assert "Droplet 1 (lb1) is the other load balancer" in lines[7]
        assert "\x1b" not in ended.out


@pytest.mark.parametrize(
    "fault",
    [
        "list**:503",
        "list**:502 html",
        "list:split 2; list**:truncated",
        "list**:cut-body",
        "list**:empty",
        "list**:bare",
        "list**:wrong-types",
    ],
)
async def test_an_api_that_fails_leaves_what_was_kept_and_says_so(tmp_path: Path, fault: str) -> None:
    async with serve(tmp_path) as region:
        tag_droplets(region)
        config = configure(region)
        before = (await run(region, "peers", "--refresh", "-c", config, "-o", "json")).json()["peers"]
        kept = (tmp_path / "discovery.json").read_bytes()
        region.api.set_faults(fault)
        ended = await run(region, "peers", "--refresh", "-c", config, "-o", "json")
        assert (ended.code, ended.json()["outcome"]) == (1, "failed")
        assert "a failover uses those that were known before" in ended.err
        assert (tmp_path / "discovery.json").read_bytes() == kept
        assert (await run(region, "peers", "-c", config, "-o", "json")).json()["peers"] == before


async def test_a_refused_token_is_exit_4_and_the_token_stands_nowhere(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        config = configure(region)
        region.api.set_faults("list**:403")
        ended = await run(region, "peers", "--refresh", "-c", config, "-o", "json")
        assert (ended.code, ended.json()["error"]["kind"]) == (4, "forbidden")
        assert "tag:read" in ended.json()["error"]["message"]
        region.api.set_faults("")
        await run(region, "peers", "--refresh", "-c", config)
        assert TOKEN not in (tmp_path / "discovery.json").read_text()


async def test_refresh_without_a_tag_asks_nobody_and_says_so(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        config = str(region.write_config(peers="app1\n"))
        ended = await run(region, "peers", "--refresh", "-c", config, "-o", "json")
        assert (ended.code, len(ended.json()["peers"]), region.calls()) == (0, 1, [])
        assert "peers.tag is not set" in ended.json()["nits"][0]


async def test_notify_uses_what_was_kept_and_never_asks_for_droplets(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        tag_droplets(region)
        config = configure(region)
        await run(region, "peers", "--refresh", "-c", config)
        region.region.droplets.pop(3)
        region.api.requests.clear()
        ended = await run(region, "notify", "INSTANCE", "VI_1", "MASTER", "-c", config, "-o", "json")
        assert [peer["host"] for peer in ended.json()["peers"]] == ["10.110.1.3", "198.18.1.6", "10.110.1.8"]
        assert not [call for call in region.calls() if "/v2/droplets" in call]


async def test_notify_without_a_discovery_moves_the_ip_and_says_what_to_run(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        tag_droplets(region)
        config = configure(region)
        ended = await run(region, "notify", "INSTANCE", "VI_1", "MASTER", "-c", config, "-o", "json")
        assert (ended.code, ended.json()["owner_after"], ended.json()["peers"]) == (0, 2, [])
        assert any("do-failover peers --refresh" in warning for warning in ended.json()["warnings"])
        assert not [call for call in region.calls() if "/v2/droplets" in call]
        check = await run(region, "config", "check", "-c", config, "-o", "json")
        assert check.code == 6
        assert "tag web are not known yet" in check.json()["error"]["message"]


async def test_a_person_who_was_never_told_asks_first(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        tag_droplets(region)
        config = configure(region)
        ended = await run(region, "assign", "-c", config, "-o", "json")
        assert [peer["host"] for peer in ended.json()["peers"]] == ["10.110.1.3", "198.18.1.6", "10.110.1.8"]
        asked = [call for call in region.calls() if "/v2/droplets" in call]
        assert len(asked) == 1
        assert region.calls()[0] == asked[0]
        await run(region, "refresh", "-c", config)
        assert [call for call in region.calls() if "/v2/droplets" in call] == asked


async def test_a_person_moves_the_ip_also_when_the_list_of_droplets_fails(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        config = configure(region)
        region.api.set_faults("list**:503")
        ended = await run(region, "assign", "-c", config, "-o", "json")
        assert (ended.code, ended.json()["owner_after"]) == (0, 2)
        assert any(warning.startswith("the Droplets of tag web: ") for warning in ended.json()["warnings"])


async def test_a_person_uses_an_answer_that_could_not_be_kept(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        tag_droplets(region)
        config = configure(region)
        (tmp_path / "discovery.json").mkdir()
        ended = await run(region, "assign", "-c", config, "-o", "json")
        assert [peer["host"] for peer in ended.json()["peers"]] == ["10.110.1.3", "198.18.1.6", "10.110.1.8"]
        assert any("can't be kept" in warning for warning in ended.json()["warnings"])


async def test_a_dry_run_asks_for_no_droplets(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        config = configure(region)
        ended = await run(region, "assign", "--dry-run", "-c", config)
        assert (ended.code, region.calls()) == (0, [])
        assert "do-failover peers --refresh" in ended.err


async def test_the_metadata_service_is_not_needed(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        tag_droplets(region)
        config = configure(region)
        await run(region, "peers", "--refresh", "-c", config)
        before = (await run(region, "peers", "-c", config, "-o", "json")).json()
        gone = region.config.read_text().replace(region.metadata_url, "http://127.0.0.1:1/metadata/v1")
        region.config.write_text(gone)
        assert (await run(region, "peers", "-c", config, "-o", "json")).json() == before


async def test_the_help_ends_in_an_example(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        ended = await run(region, "peers", "-h")
        assert (ended.code, "Example: do-failover peers" in ended.out.splitlines()[-1]) == (0, True)
        assert (await run(region, "peers", "conjure", "-c", configure(region))).code == 2


def test_a_command_below_it_lists_nothing_and_gets_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    below = click.Command("probe", callback=click.pass_context(lambda context: seen.append(context.obj)))
    monkeypatch.setitem(peers.commands, "probe", below)
    with redirect_stdout(io.StringIO()) as out:
        peers.main(["-c", "/nonexistent/config.toml", "probe"], standalone_mode=False)
    assert (seen, out.getvalue()) == (["/nonexistent/config.toml"], "")


FOUND = FoundPeers(
    (Peer(0, "app1", "deploy", 2222), Peer(1, "2001:db8::5"), Peer(2, "10.110.1.3", None, 22, 3, "web3", ("198.18.1.3",))),
    (SkippedPeer("lb2", "it is this very Droplet"),),
    (),
    ("hosts[0]", "hosts[1]", "tag web"),
)


def test_what_the_daemon_says_of_each_peer() -> None:
    armed = {"app1": "armed", "10.110.1.3": "connecting"}
    with redirect_stdout(io.StringIO()) as out:
        show_peers(FOUND, armed)
    lines = out.getvalue().splitlines()
    assert lines[0] == "PEERS  3 would be refreshed, 1 are skipped; 1 are armed"
    assert lines[2].split() == ["deploy@app1:2222", "-", "-", "armed", "hosts[0]"]
    assert lines[3].split() == ["[2001:db8::5]", "-", "-", "unknown", "to", "the", "daemon", "hosts[1]"]
    assert lines[4].split() == ["10.110.1.3", "web3", "198.18.1.3", "connecting", "tag", "web"]
    answer = json.loads(json.dumps(make_answer(FOUND, armed, ["first"])))
    assert [peer["armed"] for peer in answer["peers"]] == ["armed", "unknown to the daemon", "connecting"]
    assert answer["nits"] == ["first"]
    assert answer["skipped"] == [{"host": "lb2", "reason": "it is this very Droplet"}]
