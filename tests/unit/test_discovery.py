"""The discovery by Droplet tag: asked, kept on disk, and read back."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from do_failover import discovery
from do_failover.discovery import Discovery, check_tag, load_discovery, refresh_discovery, save_discovery
from do_failover.errors import ConfigError, TemporaryError
from do_failover.model import Droplet, Identity

AT = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
WEB = (
    Droplet(5, "web1", "nyc3", ("198.18.0.5",), ("10.110.0.5",), ("2001:db8::5",), "active"),
    Droplet(6, "web2", None, (), (), (), None),
)
FOUND = Discovery("web", AT.isoformat(), WEB, 2, "nyc3", "lb2")


@dataclass
class Lister:
    droplets: tuple[Droplet, ...] = WEB
    asked: list[tuple[str, float]] = field(default_factory=list)
    error: Exception | None = None

    async def list_droplets(self, tag: str, timeout_s: float) -> tuple[Droplet, ...]:
        self.asked.append((tag, timeout_s))
        if self.error is not None:
            raise self.error
        return self.droplets


async def test_who_asked_and_when_are_part_of_the_answer() -> None:
    lister = Lister()
    found = await refresh_discovery(lister, "web", me=Identity(droplet_id=2, region="nyc3"), at=AT, timeout_s=3)
    assert found == replace(FOUND, hostname=os.uname().nodename)
    assert lister.asked == [("web", 3)]


@pytest.mark.parametrize("tag", ["", " ", "a b", "web&page=2", "wéb", "x" * 256, "web\n"])
async def test_what_is_no_tag_is_never_asked_for(tag: str) -> None:
    lister = Lister()
    with pytest.raises(ConfigError, match="is not a Droplet tag"):
        await refresh_discovery(lister, tag, me=Identity(), at=AT)
    assert lister.asked == []


def test_what_is_a_tag() -> None:
    assert [check_tag(tag) for tag in ("web", "env:prod_1-a", "x" * 255)] == [None] * 3


def test_what_is_kept_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "state" / "discovery.json"
    assert load_discovery(path) is None
    save_discovery(path, FOUND)
    assert load_discovery(path) == FOUND
    assert json.loads(path.read_text())["schema"] == 1
    save_discovery(path, replace(FOUND, droplets=()))
    assert load_discovery(path) == replace(FOUND, droplets=())
    assert [item.name for item in path.parent.iterdir()] == ["discovery.json"]


def test_a_strict_umask_changes_nothing(tmp_path: Path) -> None:
    before = os.umask(0o177)
    try:
        save_discovery(tmp_path / "d.json", FOUND)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "d.json").stat().st_mode) == 0o640


@pytest.mark.root
def test_written_by_root_it_belongs_to_whom_its_directory_belongs(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, 12346)
    save_discovery(tmp_path / "d.json", FOUND)
    status = (tmp_path / "d.json").stat()
    assert (status.st_uid, status.st_gid) == (12345, 12346)


def test_what_a_killed_writer_left_is_removed_and_a_living_ones_is_not(tmp_path: Path) -> None:
    dead, alive = tmp_path / ".d.json.999999999.tmp", tmp_path / ".d.json.1.tmp"
    dead.touch()
    alive.touch()
    save_discovery(tmp_path / "d.json", FOUND)
    assert sorted(item.name for item in tmp_path.iterdir()) == [".d.json.1.tmp", "d.json"]


def test_a_write_that_fails_leaves_the_older_one_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "d.json"
    save_discovery(path, FOUND)

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(TemporaryError, match="No space left on device.*use those of before") as caught:
        save_discovery(path, replace(FOUND, droplets=()))
    assert caught.value.kind == "discovery"
    assert load_discovery(path) == FOUND
    assert [item.name for item in tmp_path.iterdir()] == ["d.json"]


def change(**more: Any) -> bytes:
    return json.dumps({"schema": 1, "tag": "web", "asked_at": AT.isoformat(), "droplets": [], **more}).encode()


DROPLET = {"id": 5, "name": "web1", "region": "nyc3", "public_addresses": ["198.18.0.5"]}


def test_the_smallest_file_and_unknown_fields(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    path.write_bytes(change(droplets=[DROPLET], more=1))
    found = load_discovery(path)
    assert found is not None
    assert found.droplets == (Droplet(5, "web1", "nyc3", ("198.18.0.5",)),)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no discovery"),
        (b"\xff", "no discovery"),
        (b"[]", "no discovery"),
        (b"[" * 100_000, "no discovery"),
        (change(schema=2), "another version"),
        (change(droplets=[{"id": "5"}]), "no discovery"),
        (change(asked_at="yesterday"), "Invalid isoformat"),
        (change(asked_at="2026-03-01T12:00:00"), "no zone"),
        (change(droplets=[{**DROPLET, "private_addresses": ["-oProxyCommand=x"]}]), "is no address"),
        (change(droplets=[{**DROPLET, "private_addresses": ["127.0.0.1"]}]), "is no address"),
        (change(droplets=[{**DROPLET, "name": "\x1b[2J"}]), "not fit for a terminal"),
        (change(tag="\x1b[2J"), "not fit for a terminal"),
    ],
)
def test_a_file_that_is_no_discovery_is_one_sentence(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "d.json"
    path.write_bytes(data)
    with pytest.raises(TemporaryError, match="peers --refresh") as caught:
        load_discovery(path)
    assert (caught.value.kind, reason in caught.value.message) == ("discovery", True)
    assert "\x1b" not in caught.value.message


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, Path("/dev/zero")):
        with pytest.raises(TemporaryError):
            load_discovery(path)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    with path.open("wb") as file:
        file.truncate(discovery._LARGEST + 1)
    with pytest.raises(TemporaryError, match="sane size"):
        load_discovery(path)
