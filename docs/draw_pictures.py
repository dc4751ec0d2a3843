"""Draws the pictures of these pages from schedules: `hatch run python docs/draw_pictures.py` writes docs/pictures.

The pictures are committed, so that building the documentation needs no package of ours, and a test keeps them current.
"""

from __future__ import annotations

from pathlib import Path

from ringattn import masks
from ringattn_core import Sharding, balanced, contiguous, plan_all, ring, striped, waves, zigzag
from ringattn_core.look import svg
from ringattn_core.plan.mask_layout import layout_for
from ringattn_core.plan.mask_planner import plan_mask

FOLDER = Path(__file__).parent / "pictures"


def pictures() -> dict[str, str]:
    """The text of every picture by its file's name."""
    drawn = {}
    for layout in (contiguous, zigzag):
        drawn[f"window-{layout.__name__}.svg"] = svg.mask(plan_all(layout, ring, (0, 16), 4, window=(3, 0)))
    for layout in (contiguous, zigzag, striped):
        causal = plan_all(layout, ring, (0, 16), 4, window=(-1, 0))
        drawn[f"mask-{layout.__name__}.svg"] = svg.mask(causal)
        drawn[f"timeline-{layout.__name__}.svg"] = svg.timeline(causal)
    drawn["timeline-waves.svg"] = svg.timeline(plan_all(zigzag, waves(2), (0, 16), 4, window=(-1, 0)))
    documents = (0, 70, 90, 160)
    drawn["documents-zigzag.svg"] = svg.ownership(Sharding(zigzag, documents, 4))
    drawn["documents-contiguous.svg"] = svg.ownership(Sharding(contiguous, documents, 4, per_sequence=False))
    many = (0, 20, 24, 76, 84, 86, 104, 160)
    drawn["documents-balanced.svg"] = svg.ownership(Sharding(balanced, many, 4))
    images = masks.packed([9, 7]) | masks.two_way([range(2, 6), range(11, 14)], 16)
    shared = layout_for(balanced, images)
    drawn["mask-images.svg"] = svg.mask([plan_mask(images, shared, ring, rank, 2) for rank in range(2)])
    drawn["masks.svg"] = svg.gallery(masks.examples())
    return drawn


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in pictures().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
