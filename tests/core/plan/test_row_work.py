"""The work of rows against a count of every cell."""

from __future__ import annotations

import doctest
from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st

from ringattn_core.plan import row_work
from ringattn_core.plan.row_work import RowWork
from ringattn_core.plan.tile import FAR, Tile

N = 12
ENDS = st.lists(st.integers(0, N), min_size=2, max_size=2, unique=True).map(lambda ends: range(*sorted(ends)))
SIDES = st.integers(-N, N)
BANDS = st.builds(Tile, ENDS, ENDS, SIDES | st.just(-FAR), SIDES | st.just(FAR))


def test_the_example_in_the_docstring() -> None:
    assert doctest.testmod(row_work) == (0, 2)


@given(st.lists(BANDS, max_size=4))
def test_work_is_a_count_of_cells(bands: list[Tile]) -> None:
    tiles = [trimmed for band in bands if (trimmed := band.trim())]
    work = RowWork(tiles, N)
    counted = [sum(row in t.q and t.low <= column - row <= t.high for t in tiles for column in t.k) for row in range(N)]
    assert [work.of(row) for row in range(N)] == counted
    assert [work.before(row) for row in range(N + 1)] == [0, *accumulate(counted)]
    assert work.most == max(counted)


def test_no_rows_are_no_work() -> None:
    work = RowWork([], 0)
    assert (work.before(0), work.most) == (0, 0)
