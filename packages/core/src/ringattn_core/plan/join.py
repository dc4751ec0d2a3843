"""The join rule: two neighbouring tiles are one if some band, laid over both, has exactly their live cells."""

from __future__ import annotations

from ringattn_core.plan.lines import Line, Mask
from ringattn_core.plan.tile import FAR, Tile

_Box = tuple[int, int, int, int, int, int]  # rows from, to; columns from, to; low, high: a tile in the making


def joined_tiles(mask: Mask, sequence: int, queries: list[Line], keys: list[Line]) -> list[Tile]:
    """One sequence's live cells in as few tiles as its layout allows: joined along the rows first, then across them."""
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
    """Has the band, on the rows of a box and columns `first` to `last`, exactly the live cells of the box?"""
    top, bottom, start, stop, own_low, own_high = box
    return (
        (low == own_low or (low <= start - bottom + 1 >= own_low))
        and (high == own_high or (high >= stop - 1 - top <= own_high))
        and (first == start or start - 1 - top < low)
        and (last == stop or stop - bottom + 1 > high)
    )
