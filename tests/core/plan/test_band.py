"""Bands as numbers against sets of cells: every band of a small matrix, and every pair that could be one."""

from __future__ import annotations

from collections import defaultdict
from itertools import combinations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringattn_core.plan.band import Band, band_of, moved, strided, tile_of, trimmed
from ringattn_core.plan.band_join import _union, has_new_windows, joined
from ringattn_core.plan.stretches import Stretches
from ringattn_core.plan.tile import FAR, Tile

N = 12
Cells = frozenset[tuple[int, int]]


def cells(band: Band | None) -> Cells:
    if band is None:
        return frozenset()
    top, bottom, first, last, low, high = band
    return frozenset((i, j) for i in range(top, bottom) for j in range(first, last) if low <= j - i <= high)


def test_every_set_of_cells_is_one_band_and_what_joins_is_joined() -> None:
    n, found = 4, dict[Cells, Band]()
    parts = list(combinations(range(n + 1), 2))
    for rows, columns in product(parts, parts):
        for low, high in product((-FAR, *range(1 - n, n)), (FAR, *range(1 - n, n))):
            band = trimmed(*rows, *columns, low, high)
            assert (band and tile_of(band)) == Tile(range(*rows), range(*columns), low, high).trim()
            if band:
                assert found.setdefault(cells(band), band) == band == band_of(tile_of(band))
    below = defaultdict[int, list[Band]](list)
    for band in found.values():
        below[band[0]].append(band)
    pairs = [(a, b) for a in found.values() for b in below[a[1]]]
    unions = [_union(a, b) for a, b in pairs]
    assert unions == [found.get(cells(a) | cells(b)) for a, b in pairs]
    assert 0 < sum(map(bool, unions)) < len(pairs)


ENDS = st.lists(st.integers(0, N), min_size=2, max_size=2, unique=True).map(sorted)
SIDES = st.integers(-N, N)
BANDS = st.builds(
    lambda rows, columns, low, high: trimmed(*rows, *columns, low, high),
    *(ENDS, ENDS, SIDES | st.just(-FAR), SIDES | st.just(FAR)),
).filter(bool)


@given(BANDS, st.integers(1, 4), st.data())
def test_a_band_of_every_s_th_row_and_column_is_a_band(band: Band, stride: int, data: st.DataObject) -> None:
    row, column = (data.draw(st.integers(0, stride - 1)) for _ in range(2))
    wanted = {(i // stride, j // stride) for i, j in cells(band) if i % stride == row and j % stride == column}
    assert cells(strided(tile_of(band), row, column, stride)) == wanted


@given(BANDS, SIDES, SIDES)
def test_moved_cells(band: Band, down: int, right: int) -> None:
    assert cells(moved(band, down, right)) == {(i + down, j + right) for i, j in cells(band)}


def grid(band: Band, rows: list[int], columns: list[int]) -> list[Band]:
    """The parts of a band between some rows and columns."""
    across, down = (Stretches(ends[:-1], ends[1:]) for ends in (sorted({0, *each, N}) for each in (columns, rows)))
    return [part for _, part in across.columns(down.rows([band]))]


CUTS = st.lists(st.integers(0, N), max_size=3)


@settings(max_examples=200, deadline=None)
@given(BANDS, CUTS, CUTS, st.lists(SIDES, max_size=3), st.booleans())
def test_parts_of_a_band_that_are_joined_have_its_cells(
    band: Band, rows: list[int], columns: list[int], sides: list[int], share: bool
) -> None:
    low, high = band[4:]
    borders = sorted({low, *(side for side in sides if low < side <= high)})
    strips = (trimmed(*band[:4], *cut) for cut in zip(borders, [*(b - 1 for b in borders[1:]), high], strict=True))
    parts = [part for strip in strips if strip for part in grid(strip, rows, columns)]
    found = joined(parts, share=share)
    assert not (share and has_new_windows(found, parts))
    assert len(found) <= len(parts) and all(trimmed(*each) == each for each in found)
    assert sum(map(len, map(cells, found))) == len(cells(band)) == len(frozenset().union(*map(cells, found)))


@given(st.sampled_from([(-FAR, FAR), (-FAR, 0), (0, FAR), (-4, 0), (-3, 3)]), CUTS)
def test_a_mask_that_is_cut_at_the_borders_of_runs_is_joined_to_itself(band: tuple[int, int], cuts: list[int]) -> None:
    whole = trimmed(0, N, 0, N, *band)
    assert whole and joined(grid(whole, cuts, cuts)) == [whole]


@pytest.mark.parametrize(("first", "last"), [((-FAR, 0), (1, FAR)), ((-FAR, -3), (-2, 0))])
def test_a_mask_that_is_cut_along_a_diagonal_is_joined_to_itself(first: tuple[int, int], last: tuple[int, int]) -> None:
    parts = [part for each in (first, last) if (part := trimmed(0, N, 0, N, *each))]
    assert joined(parts) == [trimmed(0, N, 0, N, first[0], last[1])]


def test_a_prompt_and_its_answers_stay_two_tiles_where_others_share_their_windows() -> None:
    parts = [(0, 3, 0, 3, -FAR, 0), (3, 9, 0, 3, -FAR, FAR)]
    assert joined(parts) == [(0, 9, 0, 3, -FAR, 0)] and has_new_windows(joined(parts), parts)
    assert joined(parts, share=True) == parts


@given(
    st.lists(st.tuples(st.integers(0, N), st.integers(0, N))), st.lists(st.tuples(st.integers(0, N), st.integers(0, N)))
)
def test_stretches_are_sets_of_numbers(first: list[tuple[int, int]], second: list[tuple[int, int]]) -> None:
    def numbers(parts: Stretches) -> set[int]:
        assert all(a < b for part in parts for a, b in [part])
        assert all(a < b for a, b in zip(parts.stops, parts.starts[1:], strict=False))
        return {number for start, stop in parts for number in range(start, min(stop, N + 1))}

    a, b = (Stretches.of(part for part in parts if part[0] < part[1]) for parts in (first, second))
    assert numbers(a) == {number for start, stop in first for number in range(start, stop)}
    assert len(a) == len(numbers(a))
    assert numbers(a.gaps()) == {*range(N + 1)} - numbers(a)
    assert numbers(a.without(b)) == numbers(a) - numbers(b)
