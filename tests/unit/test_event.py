from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from do_failover.errors import ConfigError
from do_failover.event import parse_arguments, parse_line
from do_failover.model import NotifyEvent, NotifyType, VrrpState

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\n"), min_size=1)


def test_arguments_of_keepalived() -> None:
    assert parse_arguments("INSTANCE", "VI_1", "MASTER", "150") == NotifyEvent(NotifyType.INSTANCE, "VI_1", VrrpState.MASTER, 150)
    assert parse_arguments("GROUP", "VG", "BACKUP") == NotifyEvent(NotifyType.GROUP, "VG", VrrpState.BACKUP)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_arguments("THING", "", "LEADER", "-1")
    text = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 4
    assert "'THING'" in text
    assert "'LEADER'" in text
    assert "'-1'" in text
    assert caught.value.exit_code == 6


@given(NAMES, st.sampled_from(VrrpState), st.one_of(st.none(), st.integers(0, 255)))
def test_a_line_is_read_from_both_ends(name: str, state: VrrpState, priority: int | None) -> None:
    event = NotifyEvent(NotifyType.INSTANCE, name, state, priority)
    assert parse_line(str(event) + "\n") == event


@pytest.mark.parametrize(
    "line", ["", "\n", "MASTER", 'INSTANCE "VI_1"', "INSTANCE VI_1 MASTER 1", 'INSTANCE "VI_1" MASTER x', "\0\xff" * 9]
)
def test_a_malformed_line_is_one_clear_error(line: str) -> None:
    with pytest.raises(ConfigError):
        parse_line(line)


@given(st.text())
def test_no_line_raises_anything_else(line: str) -> None:
    try:
        parse_line(line)
    except ConfigError:
        return
