"""`python -m do_failover`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit with the code of the contract."""
    from do_failover.cli import run  # noqa: PLC0415 - so that `-X importtime` shows what each command costs

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
