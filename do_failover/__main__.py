"""`python -m do_failover`."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

from do_failover.errors import InterruptedByPersonError, SupersededError

if TYPE_CHECKING:
    from types import FrameType


def _stop(number: int, _: FrameType | None) -> None:
    """Until a story handles signals itself, one ends the command where it is: nothing has been started yet."""
    if number == signal.SIGINT:
        msg = "interrupted by a person (Ctrl-C)"
        raise InterruptedByPersonError(msg)
    msg = "SIGTERM, which means STOP: nothing was started"
    raise SupersededError(msg)


def main() -> None:
    """Run the command line and exit with the code of the contract."""
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _stop)
        from do_failover.cli import run  # noqa: PLC0415 - so that `-X importtime` shows what each command costs

        code = run(sys.argv[1:])
    except SupersededError as error:  # it came while the command was still being imported
        sys.stderr.write(f"do-failover: {error.message}\n")
        code = error.exit_code
    sys.exit(code)


if __name__ == "__main__":
    main()
