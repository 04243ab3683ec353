"""Signals at any moment, and events close together: the process ends with its report, and nothing new is started."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from pathlib import Path

import pytest

from tests.cli_process import end, run, start, until
from tests.loopback import IP, serve

MASTER = ("notify", "INSTANCE", "VI_1", "MASTER", "150")
BACKUP = ("notify", "INSTANCE", "VI_1", "BACKUP", "100")


def has_posted(calls: list[str]) -> bool:
    return any(call.startswith("POST") for call in calls)


async def test_backup_that_was_heard_before_master_got_so_far_comes_before_its_first_request(tmp_path: Path) -> None:
    """MASTER is older, by its start time in /proc, and slower: its process stops before Python has begun."""
    async with serve(tmp_path) as region:
        config = str(region.write_config())
        argv = ("sh", "-c", 'kill -STOP $$; exec "$@"', "sh", *region.command(*MASTER, "-c", config, "-o", "json"))
        pipe = asyncio.subprocess.PIPE
        master = await asyncio.create_subprocess_exec(*argv, stdout=pipe, stderr=pipe, env=region.environment())
        await until(lambda: Path(f"/proc/{master.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
        assert (await run(region, *BACKUP, "-c", config)).code == 0
        master.send_signal(signal.SIGCONT)
        ended = await end(master)
        assert (ended.code, ended.json()["outcome"]) == (11, "superseded")
        assert region.calls() == []


async def test_backup_started_after_master_comes_before_its_post(tmp_path: Path) -> None:
    """MASTER is on its way to the API, whose handshake hangs, when BACKUP starts."""
    async with serve(tmp_path) as region:
        region.api.set_faults("*:hang-tls")
        config = str(region.write_config())
        master = await start(region, *MASTER, "-c", config, "-o", "json")
        await until(lambda: region.api.requests)
        backup = await start(region, *BACKUP, "-c", config)
        ended, other = await asyncio.gather(end(master), end(backup))
        assert (ended.code, ended.json()["outcome"], other.code) == (11, "superseded", 0)
        assert not has_posted(region.calls())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 11), (signal.SIGINT, 130)])
async def test_a_signal_during_the_start(tmp_path: Path, number: signal.Signals, code: int) -> None:
    async with serve(tmp_path, action_time_s=1.0) as region:
        config = str(region.write_config())
        for delay_s in (0.06, 0.1, 0.15, 0.2, 0.25):
            process = await start(region, *MASTER, "-c", config, "-o", "json")
            await asyncio.sleep(delay_s)
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)
            ended = await end(process)
            if ended.out == "":
                assert ended.code in {-number, code}  # before the command line was read, or even Python had begun
                continue
            assert "Traceback" not in ended.err
            assert (ended.code, ended.json()["exit_code"]) in {(code, code), (0, 0)}


async def test_the_terminal_that_is_closed_means_stop_and_is_recorded(tmp_path: Path) -> None:
    async with serve(tmp_path, action_time_s=1.0) as region:
        config = str(region.write_config())
        process = await start(region, "assign", "-c", config, "-o", "json")
        await until(lambda: has_posted(region.calls()))
        process.send_signal(signal.SIGHUP)
        ended = await end(process)
        assert (ended.code, ended.json()["outcome"], ended.json()["owner_after"]) == (11, "superseded", 2)
        assert len(list((tmp_path / "history").glob("*.json"))) == 1


async def test_who_prints_its_report_is_not_ended_any_more(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        config = str(region.write_config())
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writing, b"x" * 4096)
        os.set_blocking(writing, True)
        process = await asyncio.create_subprocess_exec(
            *region.command("assign", "-c", config, "-o", "json"), stdout=writing, stderr=asyncio.subprocess.PIPE, env=region.environment()
        )
        os.close(writing)
        await until(lambda: list((tmp_path / "history").glob("*Z-*.json")))
        stat = Path(f"/proc/{process.pid}/wchan")
        await until(lambda: "pipe" in stat.read_text())
        assert (await run(region, *MASTER, "-c", config)).code == 0
        process.send_signal(signal.SIGTERM)
        with os.fdopen(reading, "rb") as out:
            printed = await asyncio.to_thread(out.read)
        assert await process.wait() == 0
        assert json.loads(printed.lstrip(b"x"))["outcome"] == "done"
        await end(process)


async def test_a_persons_patience_ends_at_the_deadline_and_the_pause_between_rounds_is_theirs(tmp_path: Path) -> None:
    async with serve(tmp_path, action_time_s=6.0) as region:
        config = str(region.write_config(deadline_s="1"))
        other = await start(region, "assign", "-c", str(region.write_config(deadline_s="20")), "-o", "json")
        await until(lambda: has_posted(region.calls()))
        region.write_config(deadline_s="1")
        ended = await run(region, "assign", "-c", config, "-o", "json")
        assert (ended.code, ended.json()["error"]["kind"]) == (1, "busy")
        assert f"process {other.pid}" in ended.json()["error"]["message"]
        assert (await end(other)).code == 0


async def test_a_person_gets_a_turn_between_masters_failing_rounds(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        config = str(region.write_config(deadline_s="1", api_url="https://127.0.0.1:9/v2/"))
        master = await start(region, *MASTER, "-c", config, "-o", "json")
        await until(lambda: list((tmp_path / "history").glob("*Z-*.json")))
        ended = await run(region, "assign", "-c", config, "-o", "json")
        assert ended.code == 1
        assert ended.json()["error"]["kind"] in {"deadline", "busy"}
        master.terminate()
        await end(master)


async def test_a_priority_event_supersedes_nothing(tmp_path: Path) -> None:
    async with serve(tmp_path, action_time_s=1.5) as region:
        config = str(region.write_config())
        master = await start(region, *MASTER, "-c", config, "-o", "json")
        await until(lambda: has_posted(region.calls()))
        assert (await run(region, "notify", "INSTANCE", "VI_1", "MASTER_PRIORITY", "120", "-c", config)).code == 0
        assert (await end(master)).json()["outcome"] == "done"


async def test_a_person_who_waits_yields_to_a_newer_master(tmp_path: Path) -> None:
    async with serve(tmp_path, action_time_s=1.5) as region:
        config = str(region.write_config())
        first = await start(region, *MASTER, "-c", config, "-o", "json")
        await until(lambda: has_posted(region.calls()))
        person = await start(region, "assign", "--to", "1", "-c", config, "-o", "json")
        assert person.stderr is not None
        while b"waiting for process" not in (line := await person.stderr.readline()):
            assert line
        second = await start(region, *MASTER, "-c", config, "-o", "json")
        ended = [await end(process) for process in (first, person, second)]
        assert [each.json()["outcome"] for each in ended] == ["superseded", "superseded", "done"]
        assert region.region.reserved_ips[IP].droplet_id == 2


async def test_a_move_by_hand_to_another_droplet_ends_masters_rounds(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        bad = tmp_path / "bad.toml"
        bad.write_text(region.write_config(deadline_s="1", api_url="https://127.0.0.1:9/v2/").read_text())
        config = str(region.write_config())
        master = await start(region, *MASTER, "-c", str(bad), "-o", "json")
        await until(lambda: list((tmp_path / "history").glob("*Z-*.json")))
        moved = await run(region, "assign", "--to", "1", "-c", config, "-o", "json")
        assert (moved.code, moved.json()["owner_after"]) == (0, 1)
        ended = await end(master)
        assert ended.code == 11
        assert "superseded by a person" in ended.json()["error"]["message"]
        again = await run(region, *MASTER, "-c", config, "-o", "json")  # a new VRRP event overrules it
        assert (again.code, again.json()["owner_after"]) == (0, 2)
