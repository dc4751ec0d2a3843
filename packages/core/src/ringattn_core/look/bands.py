"""Bands of many blocks of the attention matrix at once, in int64 tensors: trimmed, counted and intersected exactly.

A band is given by six numbers, as in `Tile`: rows from `top` to before `bottom`, columns from `first` to before `last`,
and live cells where low <= column - row <= high. Here are 3 rows and 4 columns with low = 0 and high = 1, 6 live cells:

    row 0   x x . .
    row 1   . x x .
    row 2   . . x x

>>> band = [torch.tensor([number]) for number in (0, 3, 0, 4, 0, 1)]
>>> area(*band)
tensor([6])
>>> diagonals(*(torch.tensor([number]) for number in (0, 3, 0, 4, -9, 1)))  # the first with a cell is -2
(tensor([-2]), tensor([1]))
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Parts(NamedTuple):
    """The intersections of tiles with blocks (a span of queries against a span of keys), one in each place.

    Rows and columns are counted from the beginning of the block's span of queries, and of keys.
    """

    tile: Tensor
    query: Tensor  # the index of the span in its table
    key: Tensor
    top: Tensor
    bottom: Tensor
    first: Tensor
    last: Tensor
    low: Tensor
    high: Tensor

    def only(self, which: Tensor | int) -> Parts:
        """The parts at these indices, or where a mask is True."""
        return Parts(*(column[which] for column in self))


def trimmed(parts: Parts) -> Parts:
    """The parts with a live cell; their bands reach from the first diagonal with a cell to the last."""
    low, high = diagonals(*parts[3:])
    parts, live = parts._replace(low=low, high=high), low <= high
    return parts if live.all() else parts.only(live)


def diagonals(
    top: Tensor, bottom: Tensor, first: Tensor, last: Tensor, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor]:
    """The first and the last diagonal of a band with a cell; first > last if there is none."""
    return torch.maximum(low, first - bottom + 1), torch.minimum(high, last - 1 - top)


def area(top: Tensor, bottom: Tensor, first: Tensor, last: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The number of live cells, as `Tile.area`; 0 for an empty band."""
    low, high = diagonals(top, bottom, first, last, low, high)

    def below(diagonal: Tensor) -> Tensor:
        rows, columns, d = bottom - top, last - first, diagonal + top - first
        return _triangle(rows + d) - _triangle(d) - _triangle(rows + d - columns) + _triangle(d - columns)

    live = (top < bottom) & (first < last) & (low <= high)
    return torch.where(live, below(high) - below(low - 1), 0)


def _triangle(n: Tensor) -> Tensor:
    n = n.clamp(min=0)
    return n * (n + 1) // 2


def computed_before(parts: Parts, blocks: Tensor) -> Tensor:
    """For each part, how many of its cells earlier parts of the same block have; `blocks` numbers the blocks.

    >>> twice = Parts(*(torch.tensor([n, n]) for n in (0, 0, 0, 0, 3, 0, 4, 0, 1)))  # the same 6 cells
    >>> computed_before(twice, torch.tensor([5, 5])), computed_before(twice, torch.tensor([5, 6]))
    (tensor([0, 6]), tensor([0, 0]))
    """
    found = torch.zeros_like(blocks)
    order = blocks.argsort(stable=True)
    blocks = blocks[order]
    # Sorted by block, two parts of a block are neighbours, or next but one, and so on: each distance is compared once.
    for distance in range(1, len(blocks)):
        same = blocks[distance:] == blocks[:-distance]
        if not same.any():
            break
        later, earlier = order[distance:][same], order[:-distance][same]
        a, b = parts.only(later)[3:], parts.only(earlier)[3:]
        # Two bands have a band in common: from the larger start to the smaller end of rows, columns and diagonals.
        common = [
            (torch.minimum if index in (1, 3, 5) else torch.maximum)(*pair)
            for index, pair in enumerate(zip(a, b, strict=True))
        ]
        found[later] += area(*common)
    return found
