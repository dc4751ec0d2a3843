"""Tiles against the cells that they describe, one by one."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ringattn_core.plan.tile import FAR, Tile

Cells = set[tuple[int, int]]


def cells(tile: Tile) -> Cells:
    return {(i, j) for i in tile.q for j in tile.k if tile.low <= j - i <= tile.high}


def within_window(tile: Tile) -> Cells:
    """The cells that a kernel with a bottom-right aligned window computes."""
    left, right = tile.window
    corner = tile.k.stop - tile.q.stop
    return {
        (i, j)
        for i in tile.q
        for j in tile.k
        if (left < 0 or j - i >= corner - left) and (right < 0 or j - i <= corner + right)
    }


@st.composite
def tiles(draw: st.DrawFn) -> Tile:
    top, start = draw(st.integers(0, 9)), draw(st.integers(0, 9))
    low, high = (draw(st.one_of(st.just(FAR), st.integers(-15, 15))) for _ in range(2))
    q, k = range(top, top + draw(st.integers(0, 8))), range(start, start + draw(st.integers(0, 8)))
    return Tile(q, k, -FAR if low == FAR else low, high)


@settings(max_examples=500, deadline=None)
@given(tiles())
def test_the_area_counts_live_cells(tile: Tile) -> None:
    if tile.low <= tile.high:
        assert tile.area == len(cells(tile))


@settings(max_examples=500, deadline=None)
@given(tiles())
def test_trimming_keeps_the_live_cells_and_leaves_what_any_kernel_with_a_window_takes(tile: Tile) -> None:
    trimmed = tile.trim()
    if trimmed is None:
        assert not cells(tile)
        return
    assert cells(trimmed) == cells(tile) == within_window(trimmed)
    assert min(trimmed.window) >= -1
    assert {i for i, _ in cells(trimmed)} == set(trimmed.q)
    assert {j for _, j in cells(trimmed)} == set(trimmed.k)
    assert trimmed.trim() == trimmed


def test_the_windows_that_flash_attention_knows_best() -> None:
    assert Tile(range(4), range(4)).window == (-1, -1)
    assert Tile(range(4), range(4), high=0).window == (-1, 0)
    assert Tile(range(2), range(5), high=3).window == (-1, 0)
    assert Tile(range(4), range(4), low=-1, high=2).window == (1, 2)


def test_a_shifted_causal_mask_is_causal_once_its_dead_row_and_column_are_gone() -> None:
    trimmed = Tile(range(4), range(4), high=-1).trim()
    assert trimmed == Tile(range(1, 4), range(3), high=-1)
    assert trimmed.window == (-1, 0)


def test_sides_that_cut_nothing_off_are_open() -> None:
    assert Tile(range(2), range(3), low=-1, high=2).trim() == Tile(range(2), range(3))


def test_long_tiles_are_counted_exactly() -> None:
    n = 1 << 20
    assert Tile(range(n), range(n), high=0).area == n * (n + 1) // 2
