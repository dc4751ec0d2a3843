"""A mask in few cells, for pictures: of each cell, whether all of it is live, some, or nothing.

causal(6) in three rows and three columns, a cell of 2 x 2 tokens:

    1 . .      1 some, the diagonal runs through it
    2 1 .      2 all
    2 2 1      . nothing
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from ringattn_core.plan.overlaps import common
from ringattn_core.plan.tile import Tile

NONE, SOME, ALL = 0, 1, 2


class MaskPicture(NamedTuple):
    """What `mask_picture` returns."""

    cells: list[list[int]]  # by rows of queries: NONE, SOME or ALL
    tokens: tuple[int, int]  # queries and keys of a cell; fewer of them in the last row and column


def mask_picture(tiles: Iterable[Tile], num_queries: int, num_keys: int, size: int) -> MaskPicture:
    """Disjoint tiles of a stream in at most `size` rows and columns."""
    step_q, step_k = (max(1, -(-length // size)) for length in (num_queries, num_keys))
    rows, columns = _parts(num_queries, step_q), _parts(num_keys, step_k)
    live = defaultdict[tuple[int, int], int](int)
    for tile in tiles:
        for row in range(tile.q.start // step_q, -(-tile.q.stop // step_q)):
            for column in range(tile.k.start // step_k, -(-tile.k.stop // step_k)):
                if shared := common(tile, Tile(rows[row], columns[column])):
                    live[row, column] += shared.area

    def cell(row: int, column: int) -> int:
        found = live[row, column]
        return NONE if not found else ALL if found == len(rows[row]) * len(columns[column]) else SOME

    cells = [[cell(row, column) for column in range(len(columns))] for row in range(len(rows))]
    return MaskPicture(cells, (step_q, step_k))


def _parts(length: int, step: int) -> list[range]:
    return [range(start, min(start + step, length)) for start in range(0, length, step)]
