"""Two kinds of plots as SVG text, light and dark: horizontal bars, and lines on log-log paper. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

_WIDTH = 760
_LEFT, _RIGHT, _TOP, _BOTTOM = 230, 110, 46, 40
_BAR, _GAP = 20, 8
_OURS = "#2f6fdb"
_THEIRS = "#9aa3ad"
_COLOURS = ("#2f6fdb", "#d1622f", "#3c9a5f", "#8a5cc2", "#b0892a", "#c0407f", "#4b8a99", "#7a7f87", "#5b6fa8")
_STYLE = (
    "<style>text{font:12px system-ui,sans-serif;fill:#24292f}.title{font-weight:600;font-size:14px}.grid{stroke:#d0d7de}"
    "@media(prefers-color-scheme:dark){text{fill:#d0d7de}.grid{stroke:#444c56}}</style>"
)


def draw_bars(title: str, bars: Sequence[tuple[str, float]], ours: Sequence[str], write: Callable[[float], str]) -> str:
    """Draw one bar for each value on a logarithmic axis; those named in `ours` stand out."""
    height = _TOP + len(bars) * (_BAR + _GAP) + 10
    values = [value for _, value in bars if value > 0]
    least, most = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    reach = _WIDTH - _LEFT - _RIGHT
    parts = [_text(10, 24, title, "title")]
    for place in range(least, most + 1):
        x = _LEFT + reach * (place - least) / max(1, most - least)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 6}" y2="{height - 6}"/>')
    for number, (name, value) in enumerate(bars):
        y = _TOP + number * (_BAR + _GAP)
        length = reach * (math.log10(value) - least) / max(1, most - least)
        colour = _OURS if name in ours else _THEIRS
        parts.append(_text(_LEFT - 8, y + 15, name, anchor="end"))
        parts.append(f'<rect x="{_LEFT}" y="{y}" width="{max(length, 1):.1f}" height="{_BAR}" rx="2" fill="{colour}"/>')
        parts.append(_text(_LEFT + length + 6, y + 15, write(value)))
    return _wrap(height, parts)


def draw_lines(title: str, lines: Mapping[str, Sequence[tuple[float, float]]], write: Callable[[float], str]) -> str:
    """Draw one line for each series on log-log paper, its name at its end."""
    height, left = 420, 80
    points = [point for line in lines.values() for point in line]
    box = [_decades(x for x, _ in points), _decades(y for _, y in points)]
    reach = (_WIDTH - left - 200, height - _TOP - _BOTTOM)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (math.log10(x) - box[0][0]) / (box[0][1] - box[0][0])
        up = (math.log10(y) - box[1][0]) / (box[1][1] - box[1][0])
        return left + across * reach[0], height - _BOTTOM - up * reach[1]

    parts = [_text(10, 24, title, "title"), _text(left + reach[0] / 2, height - 6, "peers", anchor="middle")]
    for power in range(box[0][0], box[0][1] + 1):
        x, _ = place(10.0**power, 10.0 ** box[1][0])
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{height - _BOTTOM}"/>')
        parts.append(_text(x, height - 22, f"{10**power:g}", anchor="middle"))
    for power in range(box[1][0], box[1][1] + 1):
        _, y = place(10.0 ** box[0][0], 10.0**power)
        parts.append(f'<line class="grid" x1="{left}" x2="{left + reach[0]}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(left - 6, y + 4, write(10.0**power), anchor="end"))
    for number, (name, line) in enumerate(lines.items()):
        parts += _draw_line([place(x, y) for x, y in line], name, _COLOURS[number % len(_COLOURS)])
    return _wrap(height, parts)


def _draw_line(points: list[tuple[float, float]], name: str, colour: str) -> list[str]:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
    x, y = points[-1]
    return [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>', *dots, _text(x + 8, y + 4, name, fill=colour)]


def _decades(values: Iterable[float]) -> tuple[int, int]:
    found = [math.log10(value) for value in values if value > 0]
    least, most = math.floor(min(found) + 1e-9), math.ceil(max(found) - 1e-9)
    return least, max(most, least + 1)


def _text(x: float, y: float, text: str, kind: str = "", *, anchor: str = "start", fill: str = "") -> str:  # noqa: PLR0913 - SVG's
    style = f' class="{kind}"' if kind else ""
    colour = f' style="fill:{fill}"' if fill else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}{colour}>{escape(text)}</text>'


def _wrap(height: int, parts: Sequence[str]) -> str:
    body = "\n".join(parts)
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img">{_STYLE}\n{body}\n</svg>\n'
