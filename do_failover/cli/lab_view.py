"""How a lab run looks: a timeline drawn as it happens, then one bar a source, then the verdict."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

_BAR_WIDTH = 40
_MOST_BARS = 12
_Result = dict[str, Any]


@dataclass(frozen=True)
class View:
    """Where events are drawn; without a console nowhere. `label` tells labs apart that run side by side."""

    console: Console | None
    label: str = ""

    @classmethod
    def for_terminal(cls) -> Self:
        """Draw on stdout: in colours on a terminal, else as plain lines."""
        return cls(_console())

    @classmethod
    def silent(cls) -> Self:
        """Draw nothing."""
        return cls(None)

    def labelled(self, label: str) -> View:
        """Draw with a label before each line, and without the sum at the end."""
        return replace(self, label=label)

    def show(self, event: dict[str, Any]) -> None:
        """Draw one event."""
        if self.console is None:
            return
        match event["event"]:
            case "setup":
                self._line("", "lab", event["what"], "dim")
            case "timeline":
                self._line(f"{event['t']:+.2f} s", event["who"], event["what"], _style(event["what"]))
            case "result" if not self.label:
                _show_sum(self.console, event["result"])

    def _line(self, when: str, who: str, what: str, style: str) -> None:
        line = Text(f"{self.label:20}" if self.label else "", style="dim")
        line.append(f"{when:>9}  ", style="dim")
        line.append(f"{who:<18} ", style="bold")
        line.append(what, style=style)
        if self.console is not None:
            self.console.print(line)


def show_comparison(results: list[_Result]) -> None:
    """Draw control and real run of each fault side by side: seconds since lb1 died until lb2 answered."""
    table = Table(title="Seconds without an answer from lb2, after lb1 died", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("fault", "run"):
        table.add_column(column)
    for column in ("far client", "slowest peer"):
        table.add_column(column, justify="right")
    table.add_column("problems", overflow="fold")
    for result in results:
        others = "; ".join(problem for problem in result["problems"] if not problem.startswith("cut off"))
        table.add_row(
            result["fault"],
            "with do-failover" if result["with_tool"] else "only the IP moved",
            _outage(result, ["client"]),
            _outage(result, [name for name in result["outage_s"] if name != "client"]),
            others,
        )
    console = _console()
    console.print()
    console.print(table, soft_wrap=False)


def _outage(result: _Result, names: list[str]) -> Text:
    """Return the longest outage among these sources."""
    longest = max(result["outage_s"][name] for name in names)
    if set(names) & set(result["cut_off_at_end"]):
        return Text(f"cut off all {longest:.1f}", style="red")
    return Text(f"{longest:.1f}", style="green")


def verdict(result: _Result) -> str:
    """Say in one sentence how the run ended."""
    others = [problem for problem in result["problems"] if not problem.startswith("cut off")]
    if others:
        return f"Not well: {'; '.join(others)}."
    cut_off = len(result["cut_off_at_end"])
    if cut_off:
        return f"{cut_off} of {len(result['outage_s'])} stayed cut off, although the reserved IP had moved."
    return f"All {len(result['outage_s'])} reach lb2; the longest outage was {max(result['outage_s'].values()):.1f} s."


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True)


def _show_sum(console: Console, result: _Result) -> None:
    console.print()
    longest = max([*result["outage_s"].values(), 0.001])
    bars = _bars(result)
    margin = max(len(label) for label, _, _ in bars)
    for label, seconds, is_cut_off in bars:
        width = max(1, round(_BAR_WIDTH * seconds / longest))
        bar = Text(f"  {label:<{margin}}  ")
        bar.append("█" * width, style="red" if is_cut_off else "green")
        bar.append(f" {seconds:.2f} s{', cut off to the end' if is_cut_off else ''}")
        console.print(bar)
    console.print()
    console.print(Text(verdict(result), style="bold green" if not result["problems"] else "bold red"))


def _bars(result: _Result) -> list[tuple[str, float, bool]]:
    """One bar a source; with many peers, one for all that fared alike."""
    from do_failover.lab.timeline import name_range

    cut_off = set(result["cut_off_at_end"])
    if len(result["outage_s"]) <= _MOST_BARS:
        return [(name, seconds, name in cut_off) for name, seconds in result["outage_s"].items()]
    alike: dict[tuple[bool, int], list[str]] = {}
    for name, seconds in result["outage_s"].items():
        alike.setdefault((name in cut_off, round(seconds)), []).append(name)
    return [
        (name_range(names, most=2), max(result["outage_s"][name] for name in names), is_cut_off)
        for (is_cut_off, _), names in sorted(alike.items())
    ]


def _style(what: str) -> str:
    for words, style in ((("killed", "no answer", "FAULT", "unknown"), "red"), (("answered", "report: done"), "green")):
        if any(word in what for word in words):
            return style
    return ""
