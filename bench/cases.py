"""Which case runs how often: quick checks that all of it works, full measures."""

from __future__ import annotations

from collections.abc import Callable

Say = Callable[[str], None]
