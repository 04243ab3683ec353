"""What all tests share: the mark `root` needs root on Linux, and says so in one sentence where it isn't there."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

CAN_LAB = sys.platform == "linux" and os.geteuid() == 0


def pytest_collection_modifyitems(items: Iterable[pytest.Item]) -> None:
    if CAN_LAB:
        return
    needs_root = pytest.mark.skip(reason="needs root on Linux (network namespaces, raw sockets, real sshd)")
    for item in items:
        if "root" in item.keywords:
            item.add_marker(needs_root)
