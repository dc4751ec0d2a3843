"""The join rule: one tile for several blocks where, and only where, one band has exactly their live cells."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given, settings

from plans import Case, cases
from ringattn_core.plan import join
from ringattn_core.plan.join import _keeps, joined_tiles
from ringattn_core.plan.layout import Layout, Sharding, contiguous, striped, zigzag
from ringattn_core.plan.lines import mask
from ringattn_core.plan.tile import FAR, Tile


def test_the_examples_in_the_docstring() -> None:
    assert doctest.testmod(join) == (0, 9)


def cells(tile: Tile) -> set[tuple[int, int]]:
    return {(i, j) for i in tile.q for j in tile.k if tile.low <= j - i <= tile.high}


@settings(max_examples=60, deadline=None)
@given(cases())
def test_joined_tiles_have_the_live_cells_of_their_blocks_once(case: Case) -> None:
    queries, keys = (
        Sharding(case.layout, borders, case.cp_size, case.per_sequence, case.batch)
        for borders in (case.cu_seqlens_q, case.cu_seqlens_k)
    )
    whole = mask(queries, keys, case.window)
    left, right = (FAR if side < 0 else side for side in case.window)
    for sequence in range(len(case.cu_seqlens_q) - 1):
        rows = whole.queries.held(0).get(sequence, [])
        columns = whole.keys.held(case.cp_size - 1).get(sequence, [])
        live = {
            (top + i, start + j)
            for q, rows_of_line, top, _ in rows
            for k, columns_of_line, start, _ in columns
            for i in range(rows_of_line)
            for j in range(columns_of_line)
            if -left <= (k + j * whole.stride) - (q + i * whole.stride + whole.shift[sequence]) <= right
        }
        found = [cell for tile in joined_tiles(whole, sequence, rows, columns) for cell in cells(tile)]
        assert len(found) == len(live) and set(found) == live


@pytest.mark.parametrize(
    ("layout", "rank", "source", "tiles"),
    [
        (contiguous, 1, 0, 1),  # all earlier keys
        (zigzag, 0, 0, 1),  # the gap between the two chunks is not seen
        (zigzag, 1, 0, 1),
        (striped, 1, 0, 1),
    ],
)
def test_a_causal_mask_is_one_tile_of_each_pair_of_ranks(layout: Layout, rank: int, source: int, tiles: int) -> None:
    sharding = Sharding(layout, (0, 24), 2)
    causal = mask(sharding, sharding, (-1, 0))
    assert len(joined_tiles(causal, 0, causal.queries.held(rank)[0], causal.keys.held(source)[0])) == tiles


def test_a_band_that_would_make_other_cells_live_does_not_join() -> None:
    """Of rows 0 to 1 and columns 0 to 1 under column - row <= 0, laid over four columns, and over a fifth row."""
    box = (0, 2, 0, 2, -FAR, 0)
    assert _keeps(-FAR, 0, box, 0, 4), "columns 2 and 3 stay dead"
    assert not _keeps(-FAR, 1, box, 0, 2), "cell (0, 1) would live"
    assert not _keeps(0, 0, box, 0, 2), "cell (1, 0) would die"
    assert not _keeps(-FAR, 0, (4, 6, 0, 2, -FAR, FAR), 0, 6), "columns 2 to 5 would live in rows 4 and 5"
