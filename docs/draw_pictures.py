"""Draws the pictures of these pages from schedules: `hatch run python docs/draw_pictures.py` writes docs/pictures.

The pictures are committed, so that building the documentation needs no package of ours, and a test keeps them current.
"""

from __future__ import annotations

from pathlib import Path

from ringattn_core import svg
from ringattn_core.layout import Division, Layout, contiguous, striped, zigzag
from ringattn_core.planner import plan
from ringattn_core.route import ring
from ringattn_core.schedule import Schedule

FOLDER = Path(__file__).parent / "pictures"
CAUSAL, WINDOW = (-1, 0), (3, 0)


def pictures() -> dict[str, str]:
    """The text of every picture by its file's name."""
    drawn = {"window-contiguous.svg": svg.mask(schedules(contiguous, WINDOW))}
    for layout in (contiguous, zigzag, striped):
        causal = schedules(layout, CAUSAL)
        drawn[f"mask-{layout.__name__}.svg"] = svg.mask(causal)
        drawn[f"timeline-{layout.__name__}.svg"] = svg.timeline(causal)
    drawn["documents-zigzag.svg"] = svg.ownership(Division(zigzag, (0, 70, 90, 160), 4))
    return drawn


def schedules(layout: Layout, window: tuple[int, int]) -> list[Schedule]:
    """Those of four ranks that share 16 tokens."""
    return [plan(layout, ring, (0, 16), (0, 16), rank, 4, window=window) for rank in range(4)]


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in pictures().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
