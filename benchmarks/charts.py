"""Bar charts as SVG, for pages that are light or dark: groups of horizontal bars on a scale of percent."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

LEFT, RIGHT, TOP, LINE = 230, 40, 64, 16
WIDTH = 620
MOST = 110  # percent at the right end
# Colours that are told apart by colour-blind eyes, and in grey: of the text, the lines, and the libraries in turn.
THEMES = {
    "light": ("#222", "#ccc", ("#1f5fa8", "#e08214", "#8c8c8c")),
    "dark": ("#ddd", "#555", ("#6baed6", "#fdb863", "#9e9e9e")),
}


class Bar(NamedTuple):
    """One bar: whose it is, and how long."""

    name: str
    value: float


def chart(title: str, groups: Sequence[tuple[str, Sequence[Bar]]], theme: str) -> str:
    """An SVG without a background, of `groups` of bars with their labels; `theme` is "light" or "dark"."""
    text, line, colours = THEMES[theme]
    names = list(dict.fromkeys(bar.name for _, bars in groups for bar in bars))
    parts, y = list[str](), TOP
    for label, bars in groups:
        parts.append(_text(LEFT - 8, y + LINE * len(bars) / 2, label, text, "end"))
        for bar in bars:
            wide = (WIDTH - LEFT - RIGHT) * bar.value / MOST
            fill = colours[names.index(bar.name) % len(colours)]
            parts.append(f'<rect x="{LEFT}" y="{y + 1}" width="{wide:.1f}" height="{LINE - 2}" fill="{fill}"/>')
            parts.append(_text(LEFT + wide + 4, y + LINE / 2, f"{bar.value:g}", text, "start"))
            y += LINE
        y += 8
    grid = [_mark(percent, y, text, line) for percent in (0, 25, 50, 75, 100)]
    legend = [_legend(index, name, colours[index % len(colours)], text) for index, name in enumerate(names)]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 24}" width="{WIDTH}" height="{y + 24}" '
        'role="img" font-family="sans-serif" font-size="12" dominant-baseline="central">'
    )
    heading = _text(12, 16, title, text, "start")
    return "\n".join([head, f"<title>{escape(title)}</title>", heading, *grid, *legend, *parts, "</svg>", ""])


def _text(x: float, y: float, text: str, fill: str, anchor: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" fill="{fill}" text-anchor="{anchor}">{escape(text)}</text>'


def _mark(percent: int, bottom: float, text: str, line: str) -> str:
    x = LEFT + (WIDTH - LEFT - RIGHT) * percent / MOST
    rule = f'<path d="M{x:g} {TOP - 4}V{bottom}" stroke="{line}"/>'
    return rule + _text(x, bottom + 10, f"{percent} %", text, "middle")


def _legend(index: int, name: str, colour: str, text: str) -> str:
    x = 12 + 150 * index
    return f'<rect x="{x}" y="34" width="12" height="12" fill="{colour}"/>' + _text(x + 18, 40, name, text, "start")
