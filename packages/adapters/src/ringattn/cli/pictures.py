"""The drawings of `ringattn_core.look.draw` in colour, as wide as the console, with a colour for each rank."""

from __future__ import annotations

import colorsys
import re
from collections.abc import Sequence

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from ringattn_core import draw
from ringattn_core.plan.layout import Sharding
from ringattn_core.plan.mask import Mask
from ringattn_core.plan.schedule import Schedule

COLORS = ("cyan", "magenta", "green", "yellow", "blue", "red", "bright_cyan", "bright_magenta")


def color(rank: int) -> str:
    """The colour of a rank, the same in every picture. No two of 1,024 ranks have the same one."""
    if rank < len(COLORS):
        return COLORS[rank]
    # Steps of the golden ratio around the circle of hues come close to each other late, and then differ in lightness.
    hue, lightness = rank * 0.6180339887 % 1, 0.45 + 0.07 * (rank % 4)
    red, green, blue = (round(255 * part) for part in colorsys.hls_to_rgb(hue, lightness, 0.85))
    return f"#{red:02x}{green:02x}{blue:02x}"


def ownership(sharding: Sharding, width: int) -> str:
    """Who holds which tokens, in lines of `width` characters at most; tokens take at least 8 of them."""
    longest = max(sharding.length(rank) for rank in range(sharding.cp_size))
    around = len(f"rank {sharding.cp_size - 1} || {longest:,} tokens")
    return draw.ownership(sharding, width=max(8, min(64, width - around)))


def mask(schedules: Sequence[Schedule], width: int, *, most: int = 48) -> str:
    """The attention matrix in lines of `width` characters at most, with 8 to `most` cells in each."""
    cp, tokens = len(schedules), max(schedules[0].queries.cu_seqlens[-1], schedules[0].keys.cu_seqlens[-1])
    around = len(f"{cp - 1} |  | rank of the key")
    size = max(8, min(most, (width - around + 1) // (1 + draw.cell_width(cp))))
    if tokens > size > 2 * cp:
        size -= size % (2 * cp)  # so that the chunks of all ranks are as large
    return draw.mask(schedules, size=size)


def cells(mask: Mask, width: int) -> str:
    """The mask alone in lines of `width` characters at most."""
    return mask.draw(size=max(8, min(48, (width + 1) // 2)))


def timeline(schedules: Sequence[Schedule], width: int) -> str:
    """What each rank computes on each hop, in lines of `width` characters, or more if there are many hops."""
    around = len(f"rank {len(schedules) - 1} | 100.0 % of the cells in 10 launches")
    return draw.timeline(schedules, width=min(96, width - around))


def show(console: Console, drawing: str, margin: int = 0) -> None:
    """Print a drawing in the colours of its ranks. What is too wide stays in one line; what explains it is wrapped."""
    for line in drawing.splitlines():
        if "|" in line:
            console.print(colored(" " * margin + line), soft_wrap=True)
        else:
            console.print(Padding(colored(line), (0, 0, 0, margin), expand=False))


def colored(drawing: str) -> Text:
    """A drawing whose lines are in the colours of the ranks that they begin with; what explains it is dim."""
    lines = []
    for line in drawing.splitlines():
        rank = re.match(r" *(?:rank)? *(\d+) *\|", line)
        text = Text(line, style=color(int(rank[1])) if rank else "dim")
        text.highlight_regex("·", "grey35")
        lines.append(text)
    return Text("\n").join(lines)
