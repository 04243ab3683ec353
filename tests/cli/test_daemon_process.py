"""The daemon as a process: what it hears by FIFO, socket and signal, and what it keeps."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

from tests import cli_process
from tests.cli_process import until
from tests.daemon_process import BACKUP, MASTER, STOP, configure, running, start
from tests.loopback import IP, TOKEN, serve


def assigns(region: object) -> list[str]:
    return [call for call in region.calls() if call.startswith("POST")]  # type: ignore[attr-defined]


async def test_a_master_line_moves_the_ip_and_the_next_process_knows_it(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        configure(region)
        async with running(region) as daemon:
            daemon.say(BACKUP)
            await daemon.wait_for_report()
            daemon.say(MASTER)
            report = await daemon.wait_for_report(2)
            assert (report["decision"], report["owner_after"]) == ("assign", 2)
            assert region.region.reserved_ips[IP].droplet_id == 2
            assert (await daemon.status())["failovers"][0]["why"].endswith("guarding")
            ended = await daemon.end()
            assert ended.code == 0
            assert TOKEN not in ended.err
        for file in tmp_path.rglob("*"):
            if file.is_file() and file.name != "token":
                assert TOKEN.encode() not in file.read_bytes(), file


async def test_a_second_daemon_says_so_and_ends(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        configure(region)
        async with running(region) as daemon:
            second = await cli_process.run(region, "daemon", "-c", str(region.config), "-o", "json")
            assert second.code == 1
            assert f"a daemon runs here already (process {daemon.process.pid})" in second.err
            assert second.json()["error"]["kind"] == "daemon_runs"


async def test_backup_supersedes_a_failover_and_the_report_accounts_for_the_post(tmp_path: Path) -> None:
    async with serve(tmp_path, action_time_s=4.0) as region:
        configure(region)
        async with running(region) as daemon:
            daemon.say(MASTER)
            await until(lambda: assigns(region))
            daemon.say(BACKUP)
            report = await daemon.wait_for_report()
            assert report["outcome"] == "superseded"
            assert "one assign was sent" in next(stage["detail"] for stage in report["stages"] if stage["name"] == "assign")
            assert (await daemon.wait_for_report(2))["decision"] == "ignore"
            assert len(assigns(region)) == 1


async def test_killed_in_the_middle_the_next_one_finishes_while_keepalived_is_the_same(tmp_path: Path) -> None:
    async with serve(tmp_path, action_time_s=2.0) as region:
        configure(region)
        (tmp_path / "keepalived.pid").write_text(f"{os.getpid()}\n")
        async with running(region) as daemon:
            daemon.say(MASTER)
            await until(lambda: assigns(region))
            await daemon.end(signal.SIGKILL)
        async with running(region) as daemon:
            report = await daemon.wait_for_report()
            assert report["event"]["state"] == "MASTER"
            assert report["owner_after"] == 2


async def test_another_keepalived_makes_a_stored_master_worthless(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        configure(region)
        pid_file = tmp_path / "keepalived.pid"
        keepalived = await asyncio.create_subprocess_exec("sleep", "1000")
        pid_file.write_text(f"{keepalived.pid}\n")
        async with running(region) as daemon:
            daemon.say(MASTER)
            await daemon.wait_for_report()
            await daemon.end(signal.SIGKILL)
        keepalived.kill()
        await keepalived.wait()
        another = await asyncio.create_subprocess_exec("sleep", "1000")
        pid_file.write_text(f"{another.pid}\n")
        region.region.reserved_ips[IP].droplet_id = 1
        async with running(region) as daemon:
            await until(lambda: b"observing until it says something" in daemon.log)
            assert region.region.reserved_ips[IP].droplet_id == 1
        another.kill()
        await another.wait()


async def test_what_a_script_heard_while_no_daemon_lived_counts_for_the_next_one(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        configure(region)
        (tmp_path / "keepalived.pid").write_text(f"{os.getpid()}\n")
        async with running(region) as daemon:
            daemon.say(b'SCRIPT 1 1 INSTANCE "VI_1" MASTER 150\n')
            await daemon.wait_for_report()
            await daemon.end(signal.SIGKILL)
        alone = await cli_process.run(region, "notify", "INSTANCE", "VI_1", "BACKUP", "150", "-c", str(region.config))
        assert alone.code == 0
        region.region.reserved_ips[IP].droplet_id = 1
        async with running(region) as daemon:
            assert await daemon.claim() == "BACKUP"
        assert region.region.reserved_ips[IP].droplet_id == 1


async def test_a_script_that_still_runs_ends_when_the_daemon_hears_something_newer(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        configure(region)
        region.api.set_faults("***:503")
        script = await cli_process.start(region, "notify", "INSTANCE", "VI_1", "MASTER", "150", "-c", str(region.config), "-o", "json")
        await until(region.calls)
        async with running(region) as daemon:
            daemon.say(BACKUP)
            ended = await cli_process.end(script)
            assert ended.code == 11, ended.err
            assert "superseded by the newer event INSTANCE" in ended.json()["error"]["message"]


async def test_a_memory_that_can_not_be_written_is_none_rather_than_an_old_one(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        configure(region)
        (tmp_path / "keepalived.pid").write_text(f"{os.getpid()}\n")
        async with running(region) as daemon:
            daemon.say(MASTER)
            await daemon.wait_for_report()
            await until(lambda: b"guarding" in daemon.log)
            (tmp_path / "run" / "daemon.memory.tmp").mkdir()
            daemon.say(BACKUP)
            await daemon.has_logged("after a restart this daemon will wait for the next event")
            assert not (tmp_path / "run" / "daemon.memory").exists()


async def test_keepalived_that_dies_counts_as_stop(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        configure(region)
        keepalived = await asyncio.create_subprocess_exec("sleep", "1000")
        (tmp_path / "keepalived.pid").write_text(f"{keepalived.pid}\n")
        async with running(region) as daemon:
            daemon.say(MASTER)
            await daemon.wait_for_report()
            keepalived.kill()
            await keepalived.wait()
            await daemon.has_logged(f"keepalived (process {keepalived.pid}) has ended, which counts as STOP")
            assert await daemon.claim() == "STOP"


async def test_assign_by_hand_goes_through_the_daemon_and_a_move_away_is_left_alone(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        configure(region)
        async with running(region) as daemon:
            moved = await cli_process.run(region, "assign", "-c", str(region.config), "-o", "json")
            assert moved.code == 0, moved.err
            assert moved.json()["owner_after"] == 2
            assert daemon.reports()[0]["id"] == moved.json()["id"]
            daemon.say(MASTER)
            await daemon.wait_for_report(2)
            away = await cli_process.run(region, "assign", "--to", "1", "-c", str(region.config), "-o", "json")
            assert away.code == 0, away.err
            await daemon.has_logged("a person moved it to Droplet 1 by hand")
            assert region.region.reserved_ips[IP].droplet_id == 1


async def test_ctrl_c_ends_an_order_and_its_report_comes_all_the_same(tmp_path: Path) -> None:
    async with serve(tmp_path, action_time_s=3.0) as region:
        configure(region)
        async with running(region):
            asking = await cli_process.start(region, "assign", "-c", str(region.config), "-o", "json")
            await until(lambda: assigns(region))
            asking.send_signal(signal.SIGINT)
            ended = await cli_process.end(asking)
            assert ended.code == 130, ended.err
            assert ended.json()["error"]["kind"] == "interrupted"


async def test_a_broken_configuration_is_refused_and_the_old_one_stays(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        config = configure(region)
        async with running(region) as daemon:
            good = config.read_text()
            config.write_text(good.replace("deadline_s = 10", "deadline_s = -1"))
            daemon.process.send_signal(signal.SIGHUP)
            await daemon.has_logged("deadline_s: -1")
            await daemon.has_logged("the old one stays in effect")
            config.write_text(good.replace("deadline_s = 10", "deadline_s = 11"))
            daemon.process.send_signal(signal.SIGHUP)
            await daemon.has_logged("the configuration was read again")
            daemon.say(MASTER)
            assert (await daemon.wait_for_report())["owner_after"] == 2


async def test_notify_hands_its_event_to_the_daemon_and_a_late_script_is_ignored(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        configure(region)
        async with running(region) as daemon:
            passed = await cli_process.run(region, "notify", "INSTANCE", "VI_1", "MASTER", "150", "-c", str(region.config), "-o", "json")
            assert passed.code == 0, passed.err
            assert f"passed on to this machine's daemon (process {daemon.process.pid})" in passed.json()["reason"]
            assert (await daemon.wait_for_report())["owner_after"] == 2
            daemon.say(b'SCRIPT 1 1 INSTANCE "VI_1" BACKUP 150\n', b'SCRIPT 1 x INSTANCE "VI_1" BACKUP 150\n')
            await daemon.has_logged("is not a script's line")
            assert await daemon.claim() == "MASTER"


async def test_garbage_is_logged_once_and_what_follows_counts(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        configure(region)
        async with running(region) as daemon:
            daemon.say(b"\xff\x00garbage\n" * 50, b"x" * 3000, b"y" * 3000 + b"\n", MASTER)
            assert (await daemon.wait_for_report())["owner_after"] == 2
            assert daemon.log.count(b"garbage") == 1
            assert daemon.log.count(b"a line of more than 4096 octets") == 1


async def test_a_full_pipe_is_not_trusted(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        configure(region)
        async with running(region) as daemon:
            daemon.process.send_signal(signal.SIGSTOP)
            try:
                line = 0
                while True:
                    daemon.say(MASTER if line % 2 else BACKUP)
                    line += 1
            except BlockingIOError:
                pass
            daemon.process.send_signal(signal.SIGCONT)
            await daemon.has_logged("keepalived's newest lines may have been dropped; observing")
            assert (await daemon.status())["failovers"][0]["claim"] is None
            daemon.say(MASTER)
            await until(lambda: region.region.reserved_ips[IP].droplet_id == 2)


async def test_as_a_script_of_keepalived_it_hears_stop_after_sigterm(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        configure(region)
        fifo = tmp_path / "other.fifo"
        os.mkfifo(fifo)
        async with running(region, str(fifo)) as daemon:
            with fifo.open("r+b", buffering=0) as keepalived:
                keepalived.write(MASTER)
                await daemon.wait_for_report()
                daemon.process.send_signal(signal.SIGTERM)
                keepalived.write(STOP)
                await daemon.process.wait()
            memory = json.loads((tmp_path / "run" / "daemon.memory").read_text())
            assert memory["kept"][IP]["claim"] == "STOP"


async def test_what_is_no_fifo_is_said(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        configure(region)
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "vrrp.fifo").write_text("")
        daemon = await start(region)
        assert await daemon.process.wait() == 6
        await daemon.reading  # type: ignore[attr-defined]
        assert b"is no FIFO" in daemon.log


async def test_a_fifo_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        configure(region)
        async with running(region) as daemon:
            daemon.fifo.unlink()
            os.mkfifo(daemon.fifo)
            with daemon.fifo.open("r+b", buffering=0) as keepalived:  # it holds its FIFO open
                keepalived.write(MASTER)
                assert (await daemon.wait_for_report())["owner_after"] == 2


async def test_a_fifo_that_became_a_file_is_said_once_and_the_old_one_is_still_read(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        configure(region)
        async with running(region) as daemon:
            with daemon.fifo.open("r+b", buffering=0) as keepalived:
                daemon.fifo.unlink()
                daemon.fifo.write_text("")
                await daemon.has_logged("is no FIFO")
                keepalived.write(MASTER)
                await daemon.wait_for_report()
            ticks = daemon.log.count(b"no FIFO")
            daemon.fifo.unlink()
            os.mkfifo(daemon.fifo)
            with daemon.fifo.open("r+b", buffering=0) as keepalived:
                keepalived.write(BACKUP)
                await daemon.wait_for_report(2)
            assert ticks == daemon.log.count(b"no FIFO") == 1


async def test_a_configuration_that_breaks_the_reader_is_refused_too(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        config = configure(region)
        async with running(region) as daemon:
            config.write_text("x = " + "[" * 5000)
            daemon.process.send_signal(signal.SIGHUP)
            await daemon.has_logged("the old one stays in effect")
