"""Opens the claims for a command. It imports little: a newer event's first act is to be known as the newest."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from do_failover.claims import Claims
from do_failover.errors import FailoverError

if TYPE_CHECKING:
    from do_failover.config import Config


def open_claims(config: Config, *, is_daemon: bool = False) -> tuple[Claims | None, str | None]:
    """Return the claims; or None and a warning where run_dir can't be used: the failover goes on (I9)."""
    # keepalived's scripts inherit its umask of 0177 (keepalived.conf(5)): a directory made under it can't be entered.
    # This is the first file of a run; the history's come later.
    os.umask(0o027)
    try:
        return Claims(Path(config.paths.run_dir), is_daemon=is_daemon), None
    except FailoverError as error:
        return None, error.message
