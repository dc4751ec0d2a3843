"""Stairs of full tiles are two launches, and the same cells."""

from __future__ import annotations

from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringattn_core.plan import masks
from ringattn_core.plan.band import Band, tile_of
from ringattn_core.plan.layout import contiguous
from ringattn_core.plan.mask import Mask
from ringattn_core.plan.mask_planner import plan_mask
from ringattn_core.plan.route import ring
from ringattn_core.plan.stairs import without_stairs
from ringattn_core.plan.tile import FAR


@st.composite
def stairs(draw: st.DrawFn) -> list[Band]:
    """Flights of stairs one below the other, between tiles that are none."""
    bands, top = list[Band](), 0
    for _ in range(draw(st.integers(1, 3))):
        first, last = draw(st.integers(0, 6)), draw(st.integers(7, 12))
        for height in draw(st.lists(st.integers(1, 4), min_size=1, max_size=5)):
            bands.append((top, top + height, first, last, -FAR, FAR))
            # Mostly as much wider as the next step is high.
            top, last = top + height, last + height + draw(st.sampled_from([0, 0, 0, 1]))
        top += draw(st.integers(0, 2))
    return draw(st.permutations(bands))


def mask(bands: list[Band]) -> Mask:
    return Mask(tuple(map(tile_of, bands)), 100, 100)


@given(stairs())
def test_the_cells_stay(bands: list[Band]) -> None:
    assert mask(without_stairs(bands)).same_cells(mask(bands))


def test_steps_of_several_heights() -> None:
    edges = list(accumulate([3, 2, 4, 1, 5], initial=0))
    bands = [(start, stop, 2, stop + 7, -FAR, FAR) for start, stop in pairwise(edges)]
    found = without_stairs(bands)
    found.remove((0, 15, 2, 22, -FAR, 7))
    assert [band[:2] for band in found] == [(0, 2), (3, 4), (5, 8), (10, 14)]  # a step of one row has no cell above
    assert {band[4:] for band in found if band[1] - band[0] > 1} == {(8, FAR)}


@pytest.mark.parametrize("count", [2, 3, 9])
def test_launches(count: int) -> None:
    live = [[column <= row for column in range(count)] for row in range(count)]
    schedule = plan_mask(masks.blocks(live, 8), contiguous, ring, 0, 1)
    assert schedule.area == masks.blocks(live, 8).area
    assert [len(step.launches) for step in schedule.steps] == [2]
