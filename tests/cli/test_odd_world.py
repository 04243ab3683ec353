"""Odd files, odd services, a full disk: never a traceback, and where it is possible, the IP moves."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from do_failover.do_api.client import DigitalOceanApi
from do_failover.errors import TemporaryError
from do_failover.token import TokenSource
from tests.cli_process import end, run, start
from tests.loopback import IP, TOKEN, serve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MASTER = ("notify", "INSTANCE", "VI_1", "MASTER", "150")


def change(config: Path, old: str, new: str) -> str:
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new))
    return str(config)


@pytest.mark.parametrize(
    ("key", "value"), [("peers", "~nobodyhere/peers"), ("peers", "a\\u0000b"), ("known_hosts", "~nobodyhere/kh"), ("peers", "/dev/zero")]
)
async def test_odd_paths_of_peers_stop_nothing(tmp_path: Path, key: str, value: str) -> None:
    async with serve(tmp_path) as region:
        config = change(region.write_config(peers="127.0.0.1:1\n"), f'"{tmp_path}/{key}"', f'"{value}"')
        ended = await run(region, *MASTER, "-c", config, "-o", "json")
        assert ended.json()["owner_after"] == 2
        assert ended.code in {0, 10}


async def test_an_odd_path_of_the_token_is_one_sentence(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        config = change(region.write_config(), f'"{tmp_path}/token"', '"~nobodyhere/token"')
        ended = await run(region, "assign", "-c", config, "-o", "json")
        assert (ended.code, ended.json()["error"]["kind"]) == (6, "token")


@pytest.mark.parametrize(
    ("key", "value", "code"),
    [
        ("metadata_url", "http://[", 6),
        ("api_url", "https://[", 6),
        ("api_url", "https://h:99999/v2", 6),
        ("api_url", "https://" + "a" * 70 + ".invalid/v2/", 1),
        ("api_url", "https://.x/", 1),
        ("ca_file", "/nonexistent/ca.pem", 6),
    ],
)
async def test_odd_urls_and_files_are_one_sentence(tmp_path: Path, key: str, value: str, code: int) -> None:
    async with serve(tmp_path) as region:
        config = region.write_config(deadline_s="1")
        config.write_text("\n".join(f'{key} = "{value}"' if line.startswith(key) else line for line in config.read_text().splitlines()))
        ended = await run(region, "assign", "-c", str(config), "-o", "json")
        assert ended.code == code
        assert ended.json()["error"]["message"]
        assert "Traceback" not in ended.err
        if key == "ca_file":
            assert value in ended.json()["error"]["message"]


@contextlib.contextmanager
def answering(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A service that does to each connection what it is told."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve_all() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                answer(connection)

    thread = threading.Thread(target=serve_all, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/metadata/v1"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def say(data: bytes) -> Callable[[socket.socket], None]:
    def answer(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(data)

    return answer


def drip(connection: socket.socket) -> None:
    connection.recv(4096)
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n{")
    connection.settimeout(0.2)
    with contextlib.suppress(OSError):
        while True:
            connection.sendall(b" ")
            with contextlib.suppress(TimeoutError):
                if connection.recv(1) == b"":
                    return


GARBAGE = [
    b"garbage\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 100_000,
    b'HTTP/1.1 200 OK\r\n\r\n{"droplet_id": "two"}',
]


@pytest.mark.parametrize("data", GARBAGE)
async def test_a_metadata_service_that_talks_garbage_is_as_good_as_none(tmp_path: Path, data: bytes) -> None:
    async with serve(tmp_path) as region:
        with answering(say(data)) as url:
            known = region.write_config(digitalocean='droplet_id = 2\nregion = "nyc3"')
            ended = await run(region, "assign", "-c", change(known, region.metadata_url, url), "-o", "json")
            assert (ended.code, ended.json()["owner_after"]) == (0, 2)
            unknown = region.write_config(deadline_s="1")
            failed = await run(region, "assign", "-c", change(unknown, region.metadata_url, url), "-o", "json")
            assert failed.code == 1
            assert "did not say who this Droplet is" in failed.json()["error"]["message"]


async def test_a_metadata_service_that_drips_keeps_nobody(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        with answering(drip) as url:
            config = change(region.write_config(digitalocean='droplet_id = 2\nregion = "nyc3"'), region.metadata_url, url)
            ended = await run(region, "assign", "-c", config, "-o", "json")
            identify = next(stage for stage in ended.json()["stages"] if stage["name"] == "identify")
            assert ended.code == 0
            assert identify["end_s"] - identify["start_s"] < 2.0


async def test_backup_with_an_unusable_run_dir_says_so(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        config = region.write_config()
        (tmp_path / "run").write_text("x")
        ended = await run(region, "notify", "INSTANCE", "VI_1", "BACKUP", "-c", str(config))
        assert ended.code == 0
        assert "check paths.run_dir" in ended.err


@pytest.mark.root
async def test_a_full_run_dir_stops_nothing(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        config = region.write_config()
        (tmp_path / "run").mkdir()
        full = f"mount -t tmpfs -o size=4k none {tmp_path}/run && (cat /dev/zero > {tmp_path}/run/fill || true)"
        for command in (MASTER, ("assign",)):
            inside = " ".join(region.command(*command, "-c", str(config), "-o", "json"))
            process = await asyncio.create_subprocess_exec(
                *("unshare", "-m", "sh", "-c", f"({full}) 2>/dev/null; exec {inside}"),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=region.environment(),
            )
            ended = await end(process)
            assert (ended.code, ended.json()["owner_after"]) == (0, 2)
            assert "No space left on device" in ended.err


async def test_a_result_that_cannot_be_printed_changes_nothing(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        config = str(region.write_config())
        with Path("/dev/full").open("w") as full:
            process = await asyncio.create_subprocess_exec(
                *region.command("assign", "-c", config, "-o", "json"), stdout=full, stderr=asyncio.subprocess.PIPE, env=region.environment()
            )
            ended = await end(process)
        assert ended.code == 0
        assert "Traceback" not in ended.err
        assert "could not be printed" in ended.err


async def test_several_reserved_ips_of_one_instance_are_one_object_and_the_worst_exit_code(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        second = '[[failover]]\nreserved_ip = "203.0.113.99"\ninstance = "VI_1"\ninterface = "lo"\ndeadline_s = 1\n'
        config = region.write_config(peers="127.0.0.1:1\n", rest=second, deadline_s="8")
        process = await start(region, *MASTER, "-c", str(config), "-o", "json")
        await asyncio.to_thread(_wait_for_records, tmp_path / "history")
        process.terminate()
        ended = await end(process)
        answer = ended.json()
        assert [report["reserved_ip"] for report in answer["reports"]] == [IP, "203.0.113.99"]
        assert answer["reports"][0]["owner_after"] == 2
        assert (answer["exit_code"], answer["outcome"]) == (ended.code, answer["reports"][1]["outcome"])
        assert ended.code == answer["reports"][1]["exit_code"] != 0
        region.api.requests[:] = [request for request in region.api.requests if "203.0.113.99" not in request.path]


def _wait_for_records(directory: Path) -> None:
    limit = time.monotonic() + 20
    while len(list(directory.glob("*Z-*.json"))) < 2:
        assert time.monotonic() < limit
        threading.Event().wait(0.02)


@pytest.mark.parametrize("form", [("-vo", "json"), ("--output=json",), ("-o", "text", "-o", "json"), ("-ojson",)])
async def test_every_way_to_ask_for_json_gets_one_object_on_failure(tmp_path: Path, form: tuple[str, ...]) -> None:
    async with serve(tmp_path) as region:
        ended = await run(region, "assign", "1.2.3.4", "-c", str(region.write_config()), *form)
        assert (ended.code, ended.json()["exit_code"]) == (6, 6)


async def test_config_check_looks_at_what_the_night_needs(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        config = region.write_config(peers="app1\n", interface="eth-none")
        change(config, str(region.api.ca_file), "/nonexistent/ca.pem")
        ended = await run(region, "config", "check", "-c", str(config))
        assert ended.code == 6
        for sentence in ("digitalocean.ca_file: /nonexistent/ca.pem cannot be read", "peers.known_hosts:", "eth-none"):
            assert sentence in ended.err


@pytest.mark.parametrize("address", ["127.0.0.1", "224.0.0.1", "0.0.0.0", "fe80::1%eth0", "fe80::1%$(id)"])
async def test_what_no_droplet_can_own_is_no_reserved_ip(tmp_path: Path, address: str) -> None:
    async with serve(tmp_path) as region:
        ended = await run(region, "config", "check", "-c", change(region.write_config(), IP, address))
        assert ended.code == 6
        assert "is not a unicast IPv4 or IPv6 address" in ended.err


async def test_options_are_variables_too(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        config = str(region.write_config())
        ended = await run(
            region, "assign", DO_FAILOVER_TO="1", DO_FAILOVER_DRY_RUN="1", DO_FAILOVER_OUTPUT="json", DO_FAILOVER_CONFIG=config
        )
        assert (ended.json()["dry_run"], ended.json()["droplet_id"]) == (True, 1)


def test_what_ends_a_notify_is_in_syslog(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(str(tmp_path / "log"))
    listener.settimeout(10)
    code = f"""
import pathlib, sys
from do_failover.cli import output, run
output._SYSLOG = pathlib.Path({str(tmp_path / "log")!r})
sys.exit(run(["-c", {str(tmp_path / "none.toml")!r}, "notify", "INSTANCE", "VI_1", "MASTER", "150"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 6
    assert b"no such file" in listener.recv(4096)
    assert done.stderr.count("no such file") == 1
    listener.close()


async def test_a_post_that_was_given_up_is_not_sent_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import urllib3.util.connection as dialling

    async with serve(tmp_path) as region:
        tokens = TokenSource(None, {"DIGITALOCEAN_ACCESS_TOKEN": TOKEN})
        api = DigitalOceanApi(api_url=region.api.url, tokens=tokens, ca_file=str(region.api.ca_file))
        real, may_go_on, has_ended = dialling.create_connection, threading.Event(), threading.Event()

        def slow(*args: object, **more: object) -> socket.socket:
            may_go_on.wait(10)
            connection = real(*args, **more)
            has_ended.set()
            return connection

        monkeypatch.setattr(dialling, "create_connection", slow)
        before = set(threading.enumerate())
        with pytest.raises(TemporaryError):
            await api.post_assign(IP, 2, 0.2)
        worker = next(thread for thread in threading.enumerate() if thread.name == "beside-the-loop" and thread not in before)
        may_go_on.set()
        await asyncio.to_thread(worker.join)
        assert has_ended.is_set()
        assert region.calls() == []
        api.close()


async def test_a_second_token_stands_in_for_the_first(tmp_path: Path) -> None:
    async with serve(tmp_path) as region:
        config = region.write_config()
        (tmp_path / "token").write_text(f"dop_v1_refused\n{TOKEN}\n")
        ended = await run(region, "assign", "-c", str(config), "-o", "json")
        assert (ended.code, ended.json()["owner_after"]) == (0, 2)
        assert [call.rsplit(" ", 1)[1] for call in region.calls()][:2] == ["401", "200"]
        assert not any(call.endswith("401") for call in region.calls()[1:])
