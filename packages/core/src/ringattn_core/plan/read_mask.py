"""Masks that are given cell by cell: the bands in them, exactly, or a word on how many tiles they would take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from ringattn_core.plan.mask import Mask, disjoint_mask
from ringattn_core.plan.tile import FAR, Tile

MAX_TILES = 4096
"""The number of tiles that a mask given by its cells may take, unless the caller says otherwise."""


def of_dense(matrix: Sequence[Sequence[bool | int]], *, max_tiles: int = MAX_TILES) -> Mask:
    """The mask with these live cells: a row for each query, a column for each key, as lists, `bytes` or a NumPy array.

    Runs of live keys that stay, or move by one key a row, become one tile. Raises ValueError for rows of different
    lengths, for entries that are not 0 or 1, and if more than `max_tiles` tiles are needed.
    """
    num_keys = len(matrix[0]) if len(matrix) else 0
    return _of_rows(
        (_row(row, number, num_keys) for number, row in enumerate(matrix)), len(matrix), num_keys, max_tiles
    )


def of_mod(
    mask_mod: Callable[[int, int, int, int], object],
    num_queries: int,
    num_keys: int | None = None,
    *,
    max_tiles: int = MAX_TILES,
) -> Mask:
    """The mask of a FlexAttention `mask_mod(b, h, q_idx, kv_idx)`, called with integers for each cell, b and h of 0.

    Raises ValueError if more than `max_tiles` tiles are needed.
    """
    length = num_queries if num_keys is None else num_keys
    rows = (bytes(bool(mask_mod(0, 0, q, k)) for k in range(length)) for q in range(num_queries))
    return _of_rows(rows, num_queries, length, max_tiles)


def _row(row: Any, number: int, num_keys: int) -> bytes:
    if len(row) != num_keys:
        raise ValueError(f"Row {number} of the mask has {len(row)} keys where row 0 has {num_keys}.")
    try:
        # The row of an array has several bytes for each number.
        cells = bytes(row if isinstance(row, Sequence) else memoryview(row).tolist())
    except (TypeError, ValueError):  # entries that are no whole numbers, or none of a byte
        cells = b""
    if len(cells) != num_keys or cells.count(0) + cells.count(1) != num_keys:
        raise ValueError(f"Row {number} of the mask must have {num_keys} entries that are 0, 1, False or True.")
    return cells


def _of_rows(rows: Iterable[bytes], num_queries: int, num_keys: int, max_tiles: int) -> Mask:
    """Bands grow row by row; a run that continues none of those that reach the row above begins another."""
    tiles, growing, count = list[Tile](), list[_Band](), 0
    for number, row in enumerate(rows):
        runs = dict(_runs(row))
        going = list[_Band]()
        for band in growing:
            if band.grow(runs):
                going.append(band)
            else:
                tiles.append(band.tile(number))
        new = [_Band(number, start, stop) for start, stop in runs.items()]
        growing, count = going + new, count + len(new)
    if count > max_tiles:
        raise ValueError(
            f"The mask takes {count:,} tiles, more than max_tiles = {max_tiles:,}: it has few bands, or none. Raise "
            "max_tiles if its time is worth it; attention without a sparse mask may be quicker."
        )
    tiles += [band.tile(num_queries) for band in growing]
    return disjoint_mask(tiles, num_queries, num_keys)


def _runs(row: bytes) -> Iterator[tuple[int, int]]:
    """The first and the last-plus-one column of every run of ones."""
    start = row.find(1)
    while start >= 0:
        stop = row.find(0, start)
        stop = len(row) if stop < 0 else stop
        yield start, stop
        start = row.find(1, stop)


class _Band:
    """A tile that grows by rows: its left border stays and then moves, its right border moves and then stays.

    row 0   1 1 . . .
    row 1   1 1 1 . .      the right border moves until row 2, the left from row 2 on
    row 2   . 1 1 1 .
    row 3   . . 1 1 .
    """

    def __init__(self, row: int, start: int, stop: int) -> None:
        self.top, self.first, self.last_row = row, start, row
        self.start, self.stop = start, stop
        self.left_moves, self.right_stays = False, False
        self.low, self.high = -FAR, FAR

    def grow(self, runs: dict[int, int]) -> bool:
        """Take the run of the next row that continues this band out of `runs`, if there is one."""
        starts = [self.start + 1] if self.left_moves else [self.start, self.start + 1]
        for start in starts:
            stop = runs.get(start, -1)
            if stop == self.stop or (stop == self.stop + 1 and not self.right_stays):
                del runs[start]
                self._extend(start, stop)
                return True
        return False

    def _extend(self, start: int, stop: int) -> None:
        if start > self.start and not self.left_moves:
            self.left_moves, self.low = True, start - self.last_row - 1
        if stop == self.stop and not self.right_stays:
            self.right_stays, self.high = True, stop - 1 - self.last_row
        self.start, self.stop, self.last_row = start, stop, self.last_row + 1

    def tile(self, end: int) -> Tile:
        """The band down to the row before `end`."""
        high = self.high if self.right_stays else self.stop - 1 - self.last_row
        return Tile(range(self.top, end), range(self.first, self.stop), self.low, high)
