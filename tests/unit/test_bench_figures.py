"""The bench's arithmetic, and what it calls met."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bench import tables, targets
from bench.figures import find_row, fit_slope, make_row, median_of, ratio_of
from bench.merge import merge_results
from bench.quote import BEGIN, END, write_quote

if TYPE_CHECKING:
    from pathlib import Path


def test_a_row_has_median_least_and_most_and_leaves_out_what_one_sample_lacks() -> None:
    row = make_row("armed", [{"cpu_s": 3.0, "proven_s": 1.0}, {"cpu_s": 1.0, "proven_s": None}, {"cpu_s": 2.0, "proven_s": 4.0}], n=100)
    assert row["cpu_s"] == {"median": 2.0, "min": 1.0, "max": 3.0}
    assert "proven_s" not in row
    assert (median_of(row, "proven_s"), row["rounds"]) == (None, 3)
    assert (find_row([row], "armed", n=100), find_row([row], "armed", n=10)) == (row, None)


def test_a_ratio_says_how_many_times_as_much_the_other_took() -> None:
    ours, theirs = make_row("a", [{"cpu_s": 0.02}]), make_row("b", [{"cpu_s": 6.0}])
    assert ratio_of(ours, theirs, "cpu_s") == pytest.approx(300)
    assert ratio_of(ours, None, "cpu_s") is None


def test_the_slope_is_one_for_linear_growth_and_two_for_quadratic() -> None:
    assert fit_slope([(n, 3 * n) for n in (10, 100, 1000)]) == pytest.approx(1.0)
    assert fit_slope([(n, n * n) for n in (10, 100, 1000)]) == pytest.approx(2.0)
    assert fit_slope([(10, 1.0)]) is None


@pytest.mark.parametrize(("cpu_s", "verdict"), [(0.02, "met"), (0.0201, "missed")])
def test_a_promise_is_met_up_to_its_limit(cpu_s: float, verdict: str) -> None:
    found = targets.judge({"fanout": {"rows": [make_row("armed", [{"cpu_s": cpu_s}], n=100)]}})
    assert {target["name"]: target["verdict"] for target in found}["100 peers, own CPU, armed"] == verdict


def test_what_was_not_measured_is_not_called_met() -> None:
    assert {target["verdict"] for target in targets.judge({})} == {"not measured"}


@pytest.mark.parametrize(("ours", "verdict"), [(0.02, "met"), (0.021, "missed")])
def test_a_ratio_promise_is_met_from_its_limit_on(ours: float, verdict: str) -> None:
    rows = [make_row("armed", [{"proven_s": ours}], n=100), make_row("xargs -P32 ssh", [{"proven_s": 1.0}], n=100)]
    found = targets.judge({"fanout": {"rows": rows}})
    assert {target["name"]: target["verdict"] for target in found}["100 peers proven, xargs -P32 over armed"] == verdict


def test_peers_that_stay_cut_off_are_shown_as_never_served() -> None:
    row = make_row("tutorial's way", [{"cut_off": 3, "peers_s": 7.0, "client_s": 2.0, "detect_s": 1.0}], n=3)
    ((_, table),) = tables.list_tables({"whole": {"rows": [row]}})
    shown = dict(zip(table[0], table[1], strict=True))
    assert (shown["last peer served after"], shown["client served after"], shown["cut off at the end"]) == ("never", "2 s", "3")


def test_a_way_that_did_not_reach_everybody_has_no_time_but_a_count() -> None:
    samples = [{"proven_s": 2.0, "proven": 10, "cpu_s": 1.0}, {"proven_s": None, "proven": 8, "cpu_s": 1.0}, {"trouble": "it died"}]
    ((_, table),) = tables.list_tables({"fanout": {"rows": [make_row("cold", samples[:2], n=10), make_row("armed", samples[2:], n=10)]}})
    cold, armed = (dict(zip(table[0], line, strict=True)) for line in table[1:])
    assert cold["all proven: median (least to most)"] == "8 to 10 of 10 peers"
    assert armed["all proven: median (least to most)"] == "-"


def test_rows_that_were_measured_again_take_the_place_of_the_old_ones() -> None:
    machine = {"at": "2026-11-24T20:00:00+00:00", "commit": "abc"}
    rows = [{"way": "armed", "n": 100, "x": 1}, {"way": "armed", "n": 1000, "x": 1}]
    old = {"cases": {"event": {"rows": [{"way": "daemon"}]}, "fanout": {"rows": rows, "missing": {}}}, "failed": {"fanout": "it broke"}}
    new = {"cases": {"fanout": {"rows": [{"way": "armed", "n": 1000, "x": 2}], "missing": {}}}, "failed": {}, "machine": machine}
    merged = merge_results({**old, "machine": {}}, new)
    assert merged["cases"]["fanout"]["rows"] == [{"way": "armed", "n": 100, "x": 1}, {"way": "armed", "n": 1000, "x": 2}]
    assert (merged["cases"]["event"], merged["failed"]) == (old["cases"]["event"], {})
    assert merged["again"] == [{"at": machine["at"], "commit": "abc", "what": "case fanout, 1000 peers"}]
    assert rows[1]["x"] == 1, "the old result is left alone"


def test_the_quote_stands_between_its_marks_and_nothing_else_changes(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}old\n{END}after\n")
    event = [{"way": "daemon", "post_s": {"median": 0.002}}, {"way": "tutorial's scripts", "post_s": {"median": 0.1}}]
    result = {"cases": {"event": {"rows": event}}, "machine": {"cores": 2, "at": "2026-11-24T20:00:00+00:00"}}
    write_quote(result, readme)
    write_quote(result, readme)
    text = readme.read_text()
    assert text.startswith(f"before\n{BEGIN}| median |")
    assert text.endswith(f"{END}after\n")
    assert "| 2 ms | 100 ms | the tutorial's scripts | 50 |" in text
