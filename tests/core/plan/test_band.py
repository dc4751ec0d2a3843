"""Bands as numbers against sets of cells: every band of a small matrix, and every pair that could be one."""

from __future__ import annotations

from collections import defaultdict
from itertools import combinations, product

from hypothesis import given, settings
from hypothesis import strategies as st

from ringattn_core.plan.band import Band, _union, band_of, joined, moved, strided, tile_of, trimmed
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


@settings(max_examples=200, deadline=None)
@given(BANDS, st.lists(st.integers(0, N)), st.lists(st.integers(0, N)))
def test_a_band_that_is_cut_is_joined_to_itself(band: Band, rows: list[int], columns: list[int]) -> None:
    parts = [band]
    for edges, cut in ((rows, Stretches.rows), (columns, lambda each, b: (part for _, part in each.columns(b)))):
        ends = sorted({0, *edges, N})
        parts = list(cut(Stretches(ends[:-1], ends[1:]), parts))
    assert sum(map(len, map(cells, parts))) == len(cells(band))
    assert joined(parts) == [band]


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
