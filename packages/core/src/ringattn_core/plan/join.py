"""The join rule: two neighbouring tiles are one if some band, laid over both, has exactly their live cells.

Rank 0 of two has the positions 0, 1, 6 and 7 of 8 tokens (zigzag). Under a causal mask its queries and its local keys
meet in four blocks, each a band of column - row; one has no live cell, and one has no other:

    keys      0 1   6 7
    query 0   x .   . .
          1   x x   . .
          6   x x   x .
          7   x x   x x

Stored one after the other, as rows and columns 0 to 3, they are one causal tile: column - row <= 0 has exactly these
cells.

>>> from ringattn_core.plan.layout import Sharding, zigzag
>>> from ringattn_core.plan.lines import mask
>>> sharding = Sharding(zigzag, (0, 8), cp_size=2)
>>> causal = mask(sharding, sharding, (-1, 0))
>>> local = causal.keys.held(0)[0]  # first position, length, offset in the shard, rank
>>> local
[(0, 2, 0, 0), (6, 2, 2, 0)]
>>> [(tile.q, tile.k, tile.window) for tile in joined_tiles(causal, 0, queries=local, keys=local)]
[(range(0, 4), range(0, 4), (-1, 0))]

The keys 2 to 5 of rank 1 are seen by the last two rows only, and by these whole:

>>> remote = causal.keys.held(1)[0]
>>> [(tile.q, tile.k, tile.window) for tile in joined_tiles(causal, 0, queries=local, keys=remote)]
[(range(2, 4), range(0, 4), (-1, -1))]
"""

from __future__ import annotations

from ringattn_core.plan.lines import Line, Mask
from ringattn_core.plan.tile import FAR, Tile

_Box = tuple[int, int, int, int, int, int]  # rows from, to; columns from, to; low, high: a tile before it is trimmed


def joined_tiles(mask: Mask, sequence: int, queries: list[Line], keys: list[Line]) -> list[Tile]:
    """The live cells of one sequence in few tiles: neighbours in a row are joined, then successive rows."""
    left, right, stride, shift = mask.left, mask.right, mask.stride, mask.shift[sequence]
    boxes: list[_Box] = []
    for q_start, q_length, top, _ in queries:
        row: list[_Box] = []
        for k_start, k_length, start, _ in keys:
            apart = q_start + shift - k_start
            low, high = -((left - apart) // stride), (right + apart) // stride
            if low < k_length and high > -q_length and low <= high:
                if low <= 1 - q_length and high >= k_length - 1:
                    low, high = -FAR, FAR
                else:
                    low, high = low + start - top, high + start - top
                box = (top, top + q_length, start, start + k_length, low, high)
                if not (row and _beside(row, box)):
                    row.append(box)
        for box in row:
            if not (boxes and _below(boxes, box)):
                boxes.append(box)
    return [
        tile
        for top, bottom, start, stop, low, high in boxes
        if (tile := Tile(range(top, bottom), range(start, stop), low, high).trim())
    ]


def _beside(row: list[_Box], box: _Box) -> bool:
    """Widen the last box of a row by the one that continues it, if one band serves both."""
    top, bottom, first, border, *band = row[-1]
    if border != box[2]:
        return False
    for low, high in (band, box[4:]):
        if _keeps(low, high, row[-1], first, border) and _keeps(low, high, box, border, box[3]):
            row[-1] = (top, bottom, first, box[3], low, high)
            return True
    return False


def _below(boxes: list[_Box], box: _Box) -> bool:
    """Lengthen a box by the one that continues it downwards, if one band serves both and leaves no other cell alive."""
    for index in range(len(boxes) - 1, -1, -1):
        top, border, start, stop, *band = boxes[index]
        if border == box[0]:
            first, last = min(start, box[2]), max(stop, box[3])
            for low, high in (band, box[4:]):
                if _keeps(low, high, boxes[index], first, last) and _keeps(low, high, box, first, last):
                    boxes[index] = (top, box[1], first, last, low, high)
                    return True
    return False


def _keeps(low: int, high: int, box: _Box, first: int, last: int) -> bool:
    """Has the band, on the rows of a box and the columns `first` to `last`, exactly the live cells of the box?"""
    top, bottom, start, stop, own_low, own_high = box
    return (
        (low == own_low or (low <= start - bottom + 1 >= own_low))
        and (high == own_high or (high >= stop - 1 - top <= own_high))
        and (first == start or start - 1 - top < low)
        and (last == stop or stop - bottom + 1 > high)
    )
