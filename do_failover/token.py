"""Finds the API token: environment, token file, or systemd credential; re-reads it at each use.

The token is never logged, never part of an error, and never leaves by any other way than
`TokenSource.read`, whose only caller is the DigitalOcean edge (I8).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from do_failover.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

VARIABLE = "DIGITALOCEAN_ACCESS_TOKEN"
DEFAULT_FILE = "/etc/do-failover/token"


class TokenSource:
    """Where the token comes from; the first that is set wins: variable, configured file, credential, default file."""

    def __init__(self, token_file: str | None, environ: Mapping[str, str]) -> None:
        """Nothing is read yet: a rotated file is seen at the next use."""
        self._variable = environ.get(VARIABLE, "").strip()
        credentials = environ.get("CREDENTIALS_DIRECTORY")
        if token_file is not None:
            self._file = Path(token_file).expanduser()
        elif credentials and (Path(credentials) / "token").exists():
            self._file = Path(credentials) / "token"
        else:
            self._file = Path(DEFAULT_FILE)

    def read(self) -> str:
        """Return the token. Raises ConfigError, without the file's content, when there is none."""
        if self._variable:
            return self._checked(self._variable, f"${VARIABLE}")
        try:
            text = self._file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            msg = (
                f"no API token: {self._file} cannot be read ({reason}), and ${VARIABLE} is not set; "
                f"write the token to that file (mode 0600) or name another in digitalocean.token_file"
            )
            raise ConfigError(msg) from None
        return self._checked(text.strip(), str(self._file))

    @staticmethod
    def _checked(token: str, source: str) -> str:
        if not token:
            msg = f"no API token: {source} is empty"
            raise ConfigError(msg)
        if not token.isascii() or not token.isprintable() or " " in token:
            msg = f"no API token: {source} must hold one token and nothing else"
            raise ConfigError(msg)
        return token
