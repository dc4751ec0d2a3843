"""The text pictures, against files that show them. `python tests/core/look/test_draw.py` draws these files again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from plans import Case, causal
from ringattn_core import draw
from ringattn_core.plan.layout import contiguous, striped, zigzag
from ringattn_core.plan.route import double_ring, gather, ring, waves
from work import instructions

GOLDENS = Path(__file__).with_name("goldens")

PICTURES: dict[str, Callable[[], str]] = {
    "mask_ring": lambda: draw.mask(causal(contiguous, ring, 4, 16)),
    "mask_zigzag_ring": lambda: draw.mask(causal(zigzag, ring, 4, 16)),
    "mask_striped_ring": lambda: draw.mask(causal(striped, ring, 4, 16)),
    "mask_zigzag_waves_packed": lambda: draw.mask(causal(zigzag, waves(2), 2, 6, 0, 3, 11)),
    "mask_gather_window": lambda: draw.mask(causal(contiguous, gather, 3, 18, window=(4, 1))),
    "mask_window_ring": lambda: draw.mask(causal(contiguous, ring, 6, 18, window=(4, 0))),
    "mask_cross": lambda: draw.mask(Case(zigzag, ring, (0, 5, 12), (0, 9, 14), 2).plan()),
    "mask_million": lambda: draw.mask(causal(zigzag, ring, 4, 1 << 20), size=24),
    "mask_million_striped": lambda: draw.mask(causal(striped, ring, 4, 1 << 20), size=24),
    "timeline_ring": lambda: draw.timeline(causal(contiguous, ring, 4, 16)),
    "timeline_zigzag_ring": lambda: draw.timeline(causal(zigzag, ring, 4, 16)),
    "timeline_zigzag_waves": lambda: draw.timeline(causal(zigzag, waves(3), 8, 1 << 20)),
    "timeline_many_ranks": lambda: draw.timeline(causal(zigzag, double_ring(4), 12, 96)),
    "ownership_zigzag": lambda: draw.ownership(causal(zigzag, ring, 4, 32)[0].queries),
    "ownership_striped": lambda: draw.ownership(causal(striped, ring, 4, 32)[0].queries),
    "ownership_packed": lambda: draw.ownership(causal(zigzag, ring, 3, 12, 0, 5, 24)[0].queries),
    "ownership_million": lambda: draw.ownership(causal(contiguous, ring, 8, 1 << 19, 1 << 19)[0].queries, width=64),
}


@pytest.mark.parametrize("name", PICTURES)
def test_the_picture_is_as_it_was(name: str) -> None:
    assert PICTURES[name]() + "\n" == (GOLDENS / f"{name}.txt").read_text(encoding="utf-8")


def test_no_golden_is_left_behind() -> None:
    assert {path.stem for path in GOLDENS.iterdir()} == set(PICTURES)


def test_nothing_can_be_drawn() -> None:
    schedules = causal(zigzag, ring, 2, 0)
    assert "Rows are queries" in draw.mask(schedules)
    assert draw.timeline(schedules).count("rank") == draw.ownership(schedules[0].queries).count("rank") == 2


def test_long_documents_are_drawn_with_as_much_work_as_short_ones() -> None:
    def work(tokens: int) -> int:
        schedules = causal(zigzag, ring, 8, *[tokens] * 64)
        pictures = draw.mask, draw.timeline, lambda schedules: draw.ownership(schedules[0].queries)
        return instructions(lambda: [draws(schedules) for draws in pictures])

    assert work(1 << 12) < 1.1 * work(1 << 6)


def test_a_legend_tells_documents_apart() -> None:
    def legend(documents: int) -> str:
        return draw.ownership(causal(contiguous, ring, 2, *[2] * documents)[0].queries).splitlines()[-1]

    assert legend(1) == "rank 1 |·█| 1 tokens"
    assert legend(2) == "A sign is the sequence of a token, from 0 to 1; · is held by another rank."
    assert legend(62) == "A sign is the sequence of a token, from 0 to 61, which is Z; · is held by another rank."
    assert "from 0 to 62, which is 0; after Z they start again;" in legend(63)


def test_a_sign_for_every_hop() -> None:
    assert [draw.symbol(number) for number in (0, 9, 10, 61, 62)] == ["0", "9", "a", "Z", "0"]


@pytest.mark.parametrize("cp_size", [62, 63, 120])
def test_no_two_hops_of_a_matrix_look_alike(cp_size: int) -> None:
    schedules = causal(contiguous, ring, cp_size, cp_size)
    *lines, scale = draw.mask(schedules, size=cp_size).splitlines()
    header, *rows = [line.split("|")[1].split() for line in lines]
    assert len(set(header)) == cp_size == len(set(rows[-1])), "each key has a rank and a hop of its own here"
    assert len({len(line) for line in lines[1:]}) == 1 and scale.startswith("Rows are queries")


if __name__ == "__main__":
    for name, picture in PICTURES.items():
        (GOLDENS / f"{name}.txt").write_text(picture() + "\n", encoding="utf-8")
