"""A picture of a mask says of every cell whether all, some or none of it is live."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from core.plan.test_mask import cells, random_masks
from ringattn_core.plan.mask import Mask
from ringattn_core.plan.mask_picture import ALL, NONE, SOME, mask_picture


@settings(max_examples=100, deadline=None)
@given(random_masks(), st.integers(1, 20))
def test_a_small_picture_shows_all_some_and_none(mask: Mask, size: int) -> None:
    live, lengths = cells(mask), (mask.num_queries, mask.num_keys)
    picture, (step_q, step_k) = mask_picture(mask.tiles, *lengths, size)
    assert (step_q, step_k) == tuple(max(1, -(-length // size)) for length in lengths)
    assert len(picture) == -(-lengths[0] // step_q) <= size
    for i, line in enumerate(picture):
        assert len(line) == -(-lengths[1] // step_k) <= size
        for j, cell in enumerate(line):
            rows = range(step_q * i, min(step_q * (i + 1), lengths[0]))
            block = {(q, k) for q in rows for k in range(step_k * j, min(step_k * (j + 1), lengths[1]))}
            assert cell == (ALL if block <= live else SOME if block & live else NONE)


def test_nothing_can_be_drawn() -> None:
    assert mask_picture((), 0, 0, 48) == ([], (1, 1))
