"""The drawings of `ringattn_core.draw` in colour: every rank has its own."""

from __future__ import annotations

import re

from rich.text import Text

COLORS = ("cyan", "magenta", "green", "yellow", "blue", "red", "bright_cyan", "bright_magenta")


def color(rank: int) -> str:
    """The colour of a rank, the same in every picture."""
    return COLORS[rank % len(COLORS)]


def colored(drawing: str) -> Text:
    """A drawing whose lines are in the colours of the ranks that they begin with; what explains it is dim."""
    lines = []
    for line in drawing.splitlines():
        rank = re.match(r"(?:rank)? *(\d+) *\|", line)
        text = Text(line, style=color(int(rank[1])) if rank else "dim")
        text.highlight_regex("·", "grey35")
        lines.append(text)
    return Text("\n").join(lines)
