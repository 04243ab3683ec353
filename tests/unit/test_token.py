from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from do_failover.errors import ConfigError
from do_failover.token import TokenSource

if TYPE_CHECKING:
    from pathlib import Path


def test_the_variable_wins_then_the_file_then_the_credential(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("from-file\n")
    (tmp_path / "token").write_text("from-credential\n")
    credentials = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    file = str(tmp_path / "file")
    assert TokenSource(file, {"DIGITALOCEAN_ACCESS_TOKEN": "from-variable", **credentials}).read() == ("from-variable",)
    assert TokenSource(file, credentials).read() == ("from-file",)
    assert TokenSource(None, credentials).read() == ("from-credential",)


def test_a_rotated_file_is_seen_at_the_next_use(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("one")
    source = TokenSource(str(file), {})
    assert source.read() == ("one",)
    file.write_text("two")
    assert source.read() == ("two",)


@pytest.mark.parametrize("content", [b"", b"  \n", b"secret one\n", b"secret\0", b"secret\n[x]", b"\xff\xfesecret", "s\u00e9cret".encode()])
def test_an_unusable_token_is_one_sentence_without_it(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        TokenSource(str(file), {}).read()
    assert "secret" not in caught.value.message
    assert str(file) in caught.value.message
    assert caught.value.exit_code == 6


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read \(No such file or directory\).*write the token to that file"):
        TokenSource(str(tmp_path / "none"), {}).read()
