from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from do_failover.lab.outage import Service
from do_failover.lab.result import exit_code, is_telling, problems_of
from do_failover.lab.timeline import name_range


@given(st.lists(st.tuples(st.floats(0.01, 2), st.sampled_from(["lb1", "lb2", None])), max_size=40), st.floats(0, 20))
def test_the_outage_ends_where_the_final_unbroken_run_of_served_probes_starts(
    steps: list[tuple[float, str | None]], killed_at: float
) -> None:
    service, probes, at = Service(), [], 0.0
    for gap, answer in steps:
        at += gap
        probes.append((at, answer))
        service.add(at, answer)
    ended_at = max(at, killed_at) + 1
    final_run: list[float] = []
    for started_at, answer in probes:
        final_run = [*final_run, started_at] if answer == "lb2" else []
    expected = max(0.0, (final_run[0] if final_run else ended_at) - killed_at)
    assert service.outage_s("lb2", killed_at, ended_at) == round(expected, 3)
    assert service.is_served_by("lb2") is bool(final_run)


def test_names_are_written_short() -> None:
    assert name_range(["app2", "client", "app1", "app3", "app7"]) == "client, app1..app3, app7"
    assert name_range(["app1", "app2"]) == "app1, app2"
    assert name_range([]) == ""
    assert name_range(["client", "app1", "app3", "app4", "app5"], most=2) == "client, app1 and 3 more"
    assert name_range(["client", "app1"], most=2) == "client, app1"


def result(**more: Any) -> dict[str, Any]:
    made = {"unknown_requests": [], "owner": "lb2", "with_tool": True, "report": {"outcome": "done"}, "cut_off_at_end": []} | more
    made.setdefault("outage_s", {"client": 1.0, "app1": 2.0})
    return {**made, "problems": problems_of(made)}


def test_only_a_run_without_any_problem_is_well() -> None:
    assert exit_code(result()) == 0
    assert exit_code(result(cut_off_at_end=["app1"])) == 10
    assert exit_code(result(cut_off_at_end=["app1"], with_tool=False, report=None)) == 10
    for broken in ({"report": None}, {"report": {"outcome": "partial"}}, {"owner": "lb1"}, {"unknown_requests": ["lb2: GET /v2/x"]}):
        assert exit_code(result(**broken)) == 1
        assert exit_code(result(**broken, cut_off_at_end=["app1"])) == 1


def test_a_pair_tells_only_when_the_control_fails_as_it_should() -> None:
    control = result(with_tool=False, report=None, cut_off_at_end=["app1"])
    assert is_telling(control, result())
    assert not is_telling(result(with_tool=False, report=None), result())
    assert not is_telling(result(with_tool=False, report=None, cut_off_at_end=["client", "app1"]), result())
    assert not is_telling(control, result(report={"outcome": "partial"}))
