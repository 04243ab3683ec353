"""Whether a run was well: its problems as sentences, and its exit code. Pure."""

from __future__ import annotations

from typing import Any

from do_failover.lab.timeline import name_range

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_CUT_OFF = 10


def problems_of(result: dict[str, Any]) -> list[str]:
    """Everything that was not well, one sentence each; empty when all was."""
    problems = [f"a request that DigitalOcean's API does not have: {request}" for request in result["unknown_requests"]]
    if result["owner"] != "lb2":
        problems.append(f"the API names {result['owner'] or 'nobody'} as owner, not lb2")
    if result["with_tool"]:
        problems += _report_problems(result["report"])
    if result["cut_off_at_end"]:
        problems.append(f"cut off at the end: {name_range(result['cut_off_at_end'], most=10)}")
    return problems


def _report_problems(report: dict[str, Any] | None) -> list[str]:
    if report is None:
        return ["lb2 wrote no failover report"]
    if report["outcome"] != "done":
        return [f"lb2's report says {report['outcome']}, not done"]
    return []


def exit_code(result: dict[str, Any]) -> int:
    """0: all is well. 10: nothing worse than sources that stayed cut off. 1: anything else."""
    others = [problem for problem in result["problems"] if not problem.startswith("cut off")]
    if others:
        return EXIT_FAILED
    return EXIT_CUT_OFF if result["problems"] else EXIT_OK


def is_telling(control: dict[str, Any], real: dict[str, Any]) -> bool:
    """Whether the pair shows what it should: the control's client recovered and its peers did not; the real run is well."""
    peers = {name for name in control["outage_s"] if name != "client"}
    return set(control["cut_off_at_end"]) == peers and exit_code(control) == EXIT_CUT_OFF and exit_code(real) == EXIT_OK
