"""The real command, as a process, against a region on loopback: exit codes, stdout, stderr."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import signal
import stat
from pathlib import Path

import pytest

from tests.cli_process import end, run, start, until
from tests.loopback import IP, TOKEN, serve


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["notify", "INSTANCE", "VI_9", "MASTER"], 6, "no reserved IP for INSTANCE 'VI_9' (it has: INSTANCE VI_1); nothing was done"),
        (["notify", "GROUP", "VI_1", "MASTER"], 6, "no reserved IP for GROUP 'VI_1'"),
        (["notify", "INSTANCE", "VI_1", "LEADER"], 6, "unknown VRRP state 'LEADER'"),
        (["notify", "INSTANCE", "VI_1"], 2, "Missing argument 'STATE'"),
        (["assign", "203.0.113.99"], 6, "is not a reserved IP of"),
        (["assign", "nonsense"], 6, "is not an IP address"),
        (["assign", "--to", "0"], 2, "--to"),
        (["assign", "--frobnicate"], 2, "No such option"),
        (["conjure"], 2, "No such command"),
        (["-c", "/nonexistent/config.toml", "assign"], 6, "no such file"),
    ],
)
async def test_bad_input_is_one_clear_error(tmp_path: Path, arguments: list[str], code: int, sentence: str) -> None:
    async with serve(tmp_path) as region:
        region.write_config()
        ended = await run(region, *arguments, "-o", "json", DO_FAILOVER_CONFIG=str(region.config))
        assert ended.code == code
        assert sentence in ended.err
        assert ended.json()["exit_code"] == code
        assert "Traceback" not in ended.err
        assert region.calls() == []


async def test_a_broken_configuration_lists_all_problems(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        region.config.write_text("[[failover]]\nreserved_ip = 3\n[peers]\nconcurrency = 'many'\n")
        ended = await run(region, "-c", str(region.config), "notify", "INSTANCE", "VI_1", "MASTER")
        assert ended.code == 6
        assert "failover[0].reserved_ip: expected `str`, got `int`" in ended.err
        assert "peers.concurrency: expected `int`, got `str`" in ended.err
        assert ended.out == ""


@pytest.mark.parametrize("trouble", ["missing", "empty", "directory"])
async def test_a_token_that_cannot_be_read(tmp_path: Path, trouble: str) -> None:
    async with serve(tmp_path) as region:
        config = region.write_config()
        token = tmp_path / "token"
        token.unlink()
        if trouble == "directory":
            token.mkdir()
        elif trouble == "empty":
            token.touch()
        ended = await run(region, "assign", "-c", str(config), "-o", "json")
        assert ended.code == 6
        report = ended.json()
        assert report["outcome"] == "failed"
        assert "no API token" in report["error"]["message"]
        assert region.calls() == []


async def test_a_wrong_token_is_exit_4(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        config = region.write_config()
        ended = await run(region, "assign", "-c", str(config), "-o", "json", DIGITALOCEAN_ACCESS_TOKEN="wrong")
        assert ended.code == 4
        assert ended.json()["error"]["kind"] == "token"
        assert ended.json()["error"]["request_id"]


async def test_assign_by_hand(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        config = region.write_config()
        ended = await run(region, "assign", "-c", str(config), "-o", "json")
        report = ended.json()
        assert (ended.code, report["outcome"], report["owner_before"], report["owner_after"]) == (0, "done", 1, 2)
        assert any("the fan-out list is empty" in warning for warning in report["warnings"])
        assert "warning: the fan-out list is empty" in ended.err
        posts = [call for call in region.calls() if call.startswith("POST")]
        assert posts == [f"POST /v2/reserved_ips/{IP}/actions 201"]
        again = await run(region, "assign", "-c", str(config))
        assert again.code == 0
        assert again.out.startswith(f"DONE  {IP} is on this Droplet")
        assert [call for call in region.calls() if call.startswith("POST")] == posts
        assert len(list((tmp_path / "history").glob("*.json"))) == 2


async def test_assign_to_another_droplet(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        config = region.write_config()
        await run(region, "assign", "-c", str(config))
        ended = await run(region, "assign", "--to", "1", "-c", str(config), "-o", "json")
        report = ended.json()
        assert (ended.code, report["droplet_id"], report["owner_after"]) == (0, 2, 1)
        unknown = await run(region, "assign", "--to", "77", "-c", str(config))
        assert unknown.code == 1
        assert "the API knows no Droplet 77" in unknown.out


async def test_a_reserved_ip_of_another_region_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        config = region.write_config(digitalocean='region = "ams3"')
        ended = await run(region, "assign", "-c", str(config), "-o", "json")
        assert (ended.code, ended.json()["outcome"]) == (6, "failed")
        assert "is of region nyc3, Droplet 2 of ams3" in ended.json()["error"]["message"]
        assert not any(call.startswith("POST") for call in region.calls())


async def test_on_a_terminal_progress_is_live_and_coloured_and_elsewhere_neither(tmp_path: Path) -> None:
    async with serve(tmp_path, action_time_s=1.0) as region:
        config = str(region.write_config())
        ours, theirs = os.openpty()
        environment = {**region.environment(), "TERM": "xterm", "COLUMNS": "120"}
        command = region.command("assign", "-c", config)
        process = await asyncio.create_subprocess_exec(*command, stdout=theirs, stderr=theirs, stdin=theirs, env=environment)
        os.close(theirs)
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(ours, "rb", buffering=0)
        )
        shown = ""
        while "POST" not in " ".join(region.calls()) or "assign ..." not in shown:
            shown += (await reader.read(4096)).decode()
        assert region.region.reserved_ips[IP].droplet_id == 1, "it was shown while the action was running"
        with contextlib.suppress(OSError):  # a terminal whose other side has closed
            while chunk := await reader.read(4096):
                shown += chunk.decode()
        transport.close()
        assert await process.wait() == 0
        for stage in ("identify", "assign", "verify"):
            assert stage in shown
        assert "\x1b[" in shown
        plain = await run(region, "assign", "-c", config)
        assert "\x1b" not in plain.out + plain.err


async def test_a_dry_run_sends_nothing(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        config = region.write_config(peers="deploy@app1:2222\n", interface="eth-none")
        text = (await run(region, "assign", "-n", "-c", str(config))).out
        assert f"POST {region.api.url}reserved_ips/{IP}/actions" in text
        assert '{"type": "assign", "droplet_id": 2}' in text
        assert "ssh deploy@app1:2222" in text
        assert "-n -i 0.2 -p 646f666f" in text
        as_json = (await run(region, "assign", "-n", "-c", str(config), "-o", "json")).json()
        assert as_json["dry_run"] is True
        assert region.calls() == []
        assert not (tmp_path / "history").exists()


@pytest.mark.parametrize("state", ["BACKUP", "FAULT", "STOP", "DELETED"])
async def test_other_states_change_nothing(tmp_path: Path, state: str) -> None:
    async with serve(tmp_path) as region:
        config = region.write_config()
        ended = await run(region, "notify", "INSTANCE", "VI_1", state, "100", "-c", str(config), "-o", "json")
        assert (ended.code, ended.json()["decision"]) == (0, "ignore")
        assert region.calls() == []


async def test_nits_are_warnings_at_failover_and_errors_by_daylight(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        config = region.write_config(peers="one two three\n", rest="[keepalved]\nx = 1\n")
        (tmp_path / "token").chmod(0o644)
        check = await run(region, "config", "check", "-c", str(config), "-o", "json")
        assert check.code == 6
        for sentence in (
            "keepalved: unknown key; did you mean keepalived?",
            "has mode 0644",
            "peers:1: 'one two three' is not",
            "list is empty",
        ):
            assert sentence in check.json()["error"]["message"]
        notify = await run(region, "notify", "INSTANCE", "VI_1", "MASTER", "150", "-c", str(config), "-o", "json")
        assert (notify.code, notify.json()["owner_after"]) == (0, 2)
        assert "did you mean keepalived?" in notify.err
        assert "has mode 0644" in notify.err


async def test_a_clean_configuration_checks_out(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        ethernet = [path.name for path in Path("/sys/class/net").iterdir() if (path / "type").read_text() == "1\n"]
        config = region.write_config(peers="app1\n", interface=min(ethernet, default="lo"))
        (tmp_path / "known_hosts").touch()
        ended = await run(region, "config", "check", "-c", str(config))
        if ethernet:
            assert (ended.code, ended.out) == (0, f"OK  {config}: {IP}; 1 peers\n")
        else:
            assert [line for line in ended.err.splitlines() if "interface" not in line] == []


async def test_backup_supersedes_a_running_failover(tmp_path: Path) -> None:
    async with serve(tmp_path, action_time_s=2.0) as region:
        config = str(region.write_config())
        master = await start(region, "notify", "INSTANCE", "VI_1", "MASTER", "150", "-c", config, "-o", "json")
        await until(lambda: any(call.startswith("POST") for call in region.calls()))
        backup = await run(region, "notify", "INSTANCE", "VI_1", "BACKUP", "100", "-c", config)
        assert backup.code == 0
        ended = await end(master)
        report = ended.json()
        assert (ended.code, report["outcome"]) == (11, "superseded")
        assert "superseded by the newer event INSTANCE" in report["error"]["message"]
        assert report["owner_after"] == 2  # what was sent is followed to its end
        assert len([call for call in region.calls() if call.startswith("POST")]) == 1


async def test_started_at_the_same_moment_the_later_one_wins(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        config = str(region.write_config())
        master = await start(region, "notify", "INSTANCE", "VI_1", "MASTER", "150", "-c", config, "-o", "json")
        backup = await start(region, "notify", "INSTANCE", "VI_1", "BACKUP", "100", "-c", config)
        ended, other = await asyncio.gather(end(master), end(backup))
        assert other.code == 0
        assert ended.code == 11
        assert ended.json()["exit_code"] == 11


async def test_backup_then_master_at_the_same_moment_moves_the_ip(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        config = str(region.write_config())
        backup = await start(region, "notify", "INSTANCE", "VI_1", "BACKUP", "100", "-c", config)
        master = await start(region, "notify", "INSTANCE", "VI_1", "MASTER", "150", "-c", config, "-o", "json")
        ended, _ = await asyncio.gather(end(master), end(backup))
        assert (ended.code, ended.json()["owner_after"]) == (0, 2)


async def test_two_masters_take_turns(tmp_path: Path) -> None:
    async with serve(tmp_path, action_time_s=1.0) as region:
        config = str(region.write_config())
        first = await start(region, "notify", "INSTANCE", "VI_1", "MASTER", "150", "-c", config, "-o", "json")
        await until(lambda: any(call.startswith("POST") for call in region.calls()))
        second = await run(region, "notify", "INSTANCE", "VI_1", "MASTER", "150", "-c", config, "-o", "json")
        ended = await end(first)
        assert ended.json()["outcome"] == "superseded"
        assert (second.code, second.json()["decision"]) == (0, "already_owner")
        assert len([call for call in region.calls() if call.startswith("POST")]) == 1


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGTERM, 11, "SIGTERM, which means STOP"), (signal.SIGINT, 130, "interrupted")]
)
async def test_a_signal_follows_the_post_to_its_end_and_is_recorded(tmp_path: Path, number: signal.Signals, code: int, word: str) -> None:
    async with serve(tmp_path, action_time_s=1.5) as region:
        config = str(region.write_config())
        process = await start(region, "assign", "-c", config, "-o", "json")
        await until(lambda: any(call.startswith("POST") for call in region.calls()))
        process.send_signal(number)
        ended = await end(process)
        report = ended.json()
        assert ended.code == code
        assert report["outcome"] == "superseded"
        assert word in report["error"]["message"]
        assert report["owner_after"] == 2
        (record,) = (tmp_path / "history").glob("*.json")
        assert json.loads(record.read_text())["id"] == report["id"]


async def test_rounds_follow_each_other_while_master(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        config = str(region.write_config(deadline_s="1", api_url="https://127.0.0.1:9/v2/"))
        master = await start(region, "notify", "INSTANCE", "VI_1", "MASTER", "150", "-c", config, "-o", "json")
        await until(lambda: len(list((tmp_path / "history").glob("*Z-*.json"))) >= 2)
        stop = await run(region, "notify", "INSTANCE", "VI_1", "STOP", "-c", config)
        assert stop.code == 0
        ended = await end(master)
        assert ended.json()["round"] >= 2
        by_hand = await run(region, "assign", "-c", config, "-o", "json")
        assert (by_hand.code, by_hand.json()["round"]) == (1, 1)
        assert "the connection to the API failed" in by_hand.json()["error"]["message"]


async def test_assign_on_a_backup_warns(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        config = str(region.write_config())
        await run(region, "notify", "INSTANCE", "VI_1", "BACKUP", "-c", config)
        ended = await run(region, "assign", "-c", config, "-o", "json")
        assert ended.code == 0
        assert any("VRRP says that INSTANCE VI_1 is BACKUP" in warning for warning in ended.json()["warnings"])


async def test_a_history_and_a_run_dir_that_cannot_be_written_stop_nothing(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        config = region.write_config()
        (tmp_path / "run").write_text("not a directory")
        (tmp_path / "history").write_text("not a directory")
        ended = await run(region, "notify", "INSTANCE", "VI_1", "MASTER", "-c", str(config), "-o", "json")
        assert (ended.code, ended.json()["owner_after"]) == (0, 2)
        assert "is not in the history" in ended.err
        assert "check paths.run_dir" in ended.err


async def test_a_run_dir_that_cannot_be_used_any_more_stops_nothing(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        config = region.write_config()
        (tmp_path / "run" / f"{IP}.running").mkdir(parents=True)
        ended = await run(region, "assign", "-c", str(config), "-o", "json")
        assert (ended.code, ended.json()["owner_after"]) == (0, 2)
        assert "check paths.run_dir" in ended.err


async def test_under_keepaliveds_umask_our_directories_can_be_entered(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        config = region.write_config()
        command = shlex.join(region.command("notify", "INSTANCE", "VI_1", "MASTER", "-c", str(config)))
        process = await asyncio.create_subprocess_exec(
            *("sh", "-c", f"umask 0177; exec {command}"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=region.environment(),
        )
        assert (await end(process)).code == 0
        assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("run", "history")} == {0o750}


async def test_the_token_is_nowhere(tmp_path: Path) -> None:
    async with serve(tmp_path, action_time_s=1.0) as region:
        config = str(region.write_config())
        process = await start(region, "assign", "-v", "-c", config)
        seen = ""
        while process.returncode is None and not any(call.startswith("POST") for call in region.calls()):
            seen += _read(f"/proc/{process.pid}/cmdline") + _read(f"/proc/{process.pid}/environ")
            await asyncio.sleep(0)
        ended = await end(process)
        left = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "token"]
        assert left
        for path in left:
            assert TOKEN.encode() not in path.read_bytes(), path
        assert TOKEN not in seen + ended.out + ended.err
        for path in (tmp_path / "history").iterdir():
            assert stat.S_IMODE(path.stat().st_mode) & stat.S_IRWXO == 0


def _read(path: str) -> str:
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except OSError:
        return ""


@pytest.mark.parametrize(
    "command",
    [
        "notify",
        "assign",
        "announce",
        "refresh",
        "verify",
        "lab",
        "lab run",
        "lab up",
        "lab shell",
        "lab down",
        "lab compare",
        "config",
        "config check",
        "",
    ],
)
async def test_every_help_ends_in_an_example(tmp_path: Path, command: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *("python", "-m", "do_failover", *command.split(), "-h"),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PATH": f"{os.path.dirname(os.sys.executable)}:{os.environ['PATH']}"},
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    assert "Example: do-failover" in " ".join(out.decode().split())


async def test_notify_imports_neither_lab_nor_rich(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        config = str(region.write_config())
        process = await asyncio.create_subprocess_exec(
            *(os.sys.executable, "-X", "importtime", "-m", "do_failover", "notify", "INSTANCE", "VI_1", "MASTER", "-c", config),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=region.environment(),
        )
        _, err = await process.communicate()
        assert process.returncode == 0
        imported = {line.rpartition(b"|")[2].strip().decode() for line in err.splitlines() if line.startswith(b"import time")}
        assert "do_failover.failover" in imported
        unused = {"rich", "aiohttp", "trustme", "do_failover.lab", "asyncssh", "scapy", "pytest"}
        assert imported & unused == set()
