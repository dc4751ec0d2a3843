"""Draws the pictures of these pages from schedules: `hatch run python docs/draw_pictures.py` writes docs/pictures.

The pictures are committed, so that building the documentation needs no package of ours, and a test keeps them current.
"""

from __future__ import annotations

from pathlib import Path

from ringattn_core import Division, contiguous, plan_all, ring, striped, svg, zigzag

FOLDER = Path(__file__).parent / "pictures"


def pictures() -> dict[str, str]:
    """The text of every picture by its file's name."""
    drawn = {"window-contiguous.svg": svg.mask(plan_all(contiguous, ring, (0, 16), 4, window=(3, 0)))}
    for layout in (contiguous, zigzag, striped):
        causal = plan_all(layout, ring, (0, 16), 4, window=(-1, 0))
        drawn[f"mask-{layout.__name__}.svg"] = svg.mask(causal)
        drawn[f"timeline-{layout.__name__}.svg"] = svg.timeline(causal)
    drawn["documents-zigzag.svg"] = svg.ownership(Division(zigzag, (0, 70, 90, 160), 4))
    return drawn


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in pictures().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
