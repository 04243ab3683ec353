"""What all tests share: the mark `root` needs root on Linux, and says so in one sentence where it isn't there."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# No database in the checkout (its owner may be somebody else), and no time limit an example: machines are noisy.
settings.register_profile("house", database=None, deadline=None, print_blob=True)
settings.load_profile("house")

CAN_LAB = sys.platform == "linux" and os.geteuid() == 0


@pytest.fixture(autouse=True)
def _same_umask() -> Iterator[None]:
    """Give the next test the umask of this one: commands that run in this process set their own."""
    before = os.umask(0o022)
    os.umask(before)
    yield
    os.umask(before)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="the long form of the slow suites: every fault in the lab")
    parser.addoption("--seeds", type=int, default=2000, help="how many histories the simulation plays (tests/sim)")
    parser.addoption("--seed", type=int, default=None, help="play this one history and print it (tests/sim)")


def pytest_collection_modifyitems(items: Iterable[pytest.Item]) -> None:
    for item in items:
        if "root" in item.keywords:  # with two workers: the machine's own things, one after the other, beside all else
            item.add_marker(pytest.mark.xdist_group("machine"))
    if CAN_LAB:
        return
    needs_root = pytest.mark.skip(reason="needs root on Linux (network namespaces, raw sockets, real sshd)")
    for item in items:
        if "root" in item.keywords:
            item.add_marker(needs_root)
