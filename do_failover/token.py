"""Finds the API token: environment, token file, or systemd credential; re-reads it at each use.

The token is never logged, never part of an error, and never leaves by any other way than
`TokenSource.read`, whose only caller is the DigitalOcean edge (I8).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from do_failover.errors import ConfigError
from do_failover.whole_file import read_small

if TYPE_CHECKING:
    from collections.abc import Mapping

VARIABLE = "DIGITALOCEAN_ACCESS_TOKEN"
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]+")
DEFAULT_FILE = "/etc/do-failover/token"


class TokenSource:
    """Where the token comes from; the first that is set wins: variable, configured file, credential, default file."""

    def __init__(self, token_file: str | None, environ: Mapping[str, str]) -> None:
        """Nothing is read yet: a rotated file is seen at the next use."""
        self._variable = environ.get(VARIABLE, "").strip()
        credentials = environ.get("CREDENTIALS_DIRECTORY")
        if token_file is not None:
            self._file = Path(token_file)
        elif credentials and (Path(credentials) / "token").exists():
            self._file = Path(credentials) / "token"
        else:
            self._file = Path(DEFAULT_FILE)

    def read(self) -> tuple[str, ...]:
        """Return the tokens, one a line (or comma in the variable); the later ones stand in for the first.

        Raises ConfigError (kind "token"), without the file's content, when there is none.
        """
        if self._variable:
            return self._checked(self._variable.split(","), f"${VARIABLE}")
        try:
            text = read_small(str(Path(self._file).expanduser())).decode()
        except (OSError, ValueError, RuntimeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text, or its path is none"
            msg = (
                f"no API token: {self._file} cannot be read ({reason}), and ${VARIABLE} is not set; "
                f"write the token to that file (mode 0600) or name another in digitalocean.token_file"
            )
            raise ConfigError(msg, kind="token") from None
        return self._checked(text.splitlines(), str(self._file))

    @staticmethod
    def _checked(lines: list[str], source: str) -> tuple[str, ...]:
        tokens = tuple(line.strip() for line in lines if line.strip())
        if not tokens:
            msg = f"no API token: {source} is empty"
            raise ConfigError(msg, kind="token")
        if not all(_TOKEN.fullmatch(token) for token in tokens):
            msg = f"no API token: {source} must hold one token a line, and nothing else"
            raise ConfigError(msg, kind="token")
        return tokens
