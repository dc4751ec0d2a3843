"""How many keys each query of a mask sees, without visiting rows: along a tile the number rises, stays and falls."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from itertools import accumulate, pairwise

from ringattn_core.plan.tile import Tile


class RowWork:
    """The live cells of rows, as stretches of rows on which their number changes by the same amount from row to row.

    Causal among 4 tokens, and the last two see each other:

        row      0  1  2  3
        cells    1  2  4  4     from row 0 on one more a row, from row 2 on none

    >>> work = RowWork([Tile(range(4), range(4), high=0), Tile(range(2, 3), range(3, 4))], 4)
    >>> [work.of(row) for row in range(4)], work.before(3), work.before(4), work.most
    ([1, 2, 4, 4], 7, 11, 4)
    """

    def __init__(self, tiles: Iterable[Tile], num_queries: int) -> None:
        """The tiles are trimmed."""
        bends, jumps = defaultdict[int, int](int), defaultdict[int, int](int)
        for tile in tiles:
            q, k = tile.q, tile.k
            jumps[q.start] += min(k.stop - 1, q.start + tile.high) - max(k.start, q.start + tile.low) + 1
            jumps[q.stop] -= min(k.stop - 1, q.stop - 1 + tile.high) - max(k.start, q.stop - 1 + tile.low) + 1
            # The right border moves until it meets the last column, the left one from where it leaves the first. Both
            # rows are within a trimmed tile; of an open side nothing moves.
            right_moves, left_moves = (q.start, k.stop - 1 - tile.high), (k.start - tile.low, q.stop - 1)
            for (start, stop), slope in ((right_moves, 1), (left_moves, -1)):
                if start < stop:
                    bends[start + 1] += slope
                    bends[stop + 1] -= slope
        self._rows = sorted({0, *(row for row in (*bends, *jumps) if row < num_queries)})
        self._slopes = list(accumulate(bends[row] for row in self._rows))
        self._first, self._before, self.most, cells = list[int](), [0], 0, 0
        for (start, stop), slope in zip(pairwise([*self._rows, num_queries]), self._slopes, strict=True):
            first = cells + jumps[start] + slope
            cells = first + slope * (stop - start - 1)  # of the last row of the stretch
            self._first.append(first)
            self._before.append(self._before[-1] + _cells(stop - start, first, slope))
            self.most = max(self.most, first, cells)

    def of(self, row: int) -> int:
        """The live cells of a row."""
        index = bisect_right(self._rows, row) - 1
        return self._first[index] + self._slopes[index] * (row - self._rows[index])

    def before(self, row: int) -> int:
        """The live cells of all rows before this one; before `num_queries` they are all."""
        index = bisect_right(self._rows, row) - 1
        return self._before[index] + _cells(row - self._rows[index], self._first[index], self._slopes[index])


def _cells(rows: int, first: int, slope: int) -> int:
    """The cells of successive rows: `first` in the first row, and `slope` more in each row than in the one before."""
    return rows * first + slope * (rows * (rows - 1) // 2)
