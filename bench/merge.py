"""Puts rows that were measured again in the place of older ones. Pure."""

from __future__ import annotations

from typing import Any

_KEYS = ("way", "n", "action_time_s")


def merge_results(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Return the old result with the new one's rows in it, and what was measured again; who failed now is said, and its old rows stay."""
    cases = {name: {**case, "rows": list(case["rows"])} for name, case in old["cases"].items()}
    again = []
    for name, case in new["cases"].items():
        rows = {_key(row): row for row in cases.get(name, {"rows": []})["rows"]}
        rows.update({_key(row): row for row in case["rows"]})
        cases[name] = {**cases.get(name, {}), **case, "rows": list(rows.values())}
        numbers = sorted({row["n"] for row in case["rows"] if "n" in row})
        again.append({"at": new["machine"]["at"], "commit": new["machine"]["commit"], "what": _describe(name, numbers)})
    failed = {name: why for name, why in {**old["failed"], **new["failed"]}.items() if name not in new["cases"]}
    return {**old, "cases": cases, "failed": failed, "again": [*old.get("again", []), *again]}


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(key) for key in _KEYS)


def _describe(name: str, numbers: list[int]) -> str:
    return f"case {name}" + (f", {', '.join(map(str, numbers))} peers" if numbers else "")
