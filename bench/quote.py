"""The few lines of the README that quote the page's numbers. Pure, but for `write_quote`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench.figures import find_row, median_of, ratio_of, write_time
from bench.tables import write_markdown

if TYPE_CHECKING:
    from pathlib import Path

BEGIN, END = "<!-- scripts/bench --docs writes this -->\n", "<!-- until here -->\n"
_AT = 100


def compose_quote(result: dict[str, Any]) -> str:
    """Write the table: what is measured, the daemon's number, what people run today, and how many times that takes."""
    event, fanout, whole = (result["cases"].get(name, {}).get("rows", []) for name in ("event", "fanout", "whole"))
    table = [["median", "do-failover", "today", "", "times"]]
    daemon, tutorial = find_row(event, "daemon"), find_row(event, "tutorial's scripts")
    table.append(_compare("keepalived's line to the POST", daemon, tutorial, "post_s", "the tutorial's scripts"))
    armed, xargs = find_row(fanout, "armed", n=_AT), find_row(fanout, "xargs -P32 ssh", n=_AT)
    table.append(_compare(f"{_AT} peers have pinged, and are proven", armed, xargs, "proven_s", "xargs -P32 ssh, which proves nothing"))
    table.append(_compare("the load balancer's CPU for it", armed, xargs, "cpu_s", "xargs -P32 ssh"))
    served = find_row(whole, "daemon", n=_AT)
    last = write_time(median_of(served, "peers_s"))
    table.append(
        [f"lb1 dies: the last of {_AT} peers is served again after", last, "never, while it is watched", "the tutorial's scripts", ""]
    )
    machine = result["machine"]
    where = f"{machine['cores']} cores that the peers' sshd's share, {machine['at'][:10]}: [docs/performance.md](docs/performance.md)."
    return f"{write_markdown(table)}\n\n{where}\n"


def write_quote(result: dict[str, Any], readme: Path) -> None:
    """Put it between its marks in the README."""
    head, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, _, tail = rest.partition(END)
    readme.write_text(f"{head}{BEGIN}{compose_quote(result)}{END}{tail}", encoding="utf-8")


def _compare(what: str, ours: dict[str, Any] | None, theirs: dict[str, Any] | None, key: str, who: str) -> list[str]:
    ratio = ratio_of(ours, theirs, key)
    times = "-" if ratio is None else f"{ratio:.0f}"
    return [what, write_time(median_of(ours, key)), write_time(median_of(theirs, key)), who, times]
