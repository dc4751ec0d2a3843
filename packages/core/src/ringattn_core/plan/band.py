"""Tiles as plain numbers: planning cuts, moves and joins thousands of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ringattn_core.plan.tile import FAR, Tile

Band = tuple[int, int, int, int, int, int]
"""Rows from, to; columns from, to; low, high. As a trimmed `Tile`: every row and column has a live cell."""


def band_of(tile: Tile) -> Band:
    """A trimmed tile as numbers."""
    return tile.q.start, tile.q.stop, tile.k.start, tile.k.stop, tile.low, tile.high


def tile_of(band: Band) -> Tile:
    """The tile with these numbers."""
    return Tile(range(band[0], band[1]), range(band[2], band[3]), band[4], band[5])


def strided(tile: Tile, row: int, column: int, stride: int) -> Band | None:
    """The tile on the rows `row` + i * stride and the columns `column` + j * stride, in the coordinates i and j.

    It is a band again: low <= (column + j * stride) - (row + i * stride) <= high. None if no cell is live.
    """
    apart = row - column
    low = tile.low if tile.low == -FAR else -((-tile.low - apart) // stride)
    high = tile.high if tile.high == FAR else (tile.high + apart) // stride
    rows, columns = (
        (-((first - part.start) // stride), -((first - part.stop) // stride))
        for part, first in ((tile.q, row), (tile.k, column))
    )
    return trimmed(*rows, *columns, low, high)


def trimmed(top: int, bottom: int, first: int, last: int, low: int, high: int) -> Band | None:
    """As `Tile.trim`."""
    top, bottom = max(top, first - high), min(bottom, last - low)
    first, last = max(first, top + low), min(last, bottom + high)
    if top >= bottom or first >= last or low > high:
        return None
    low = -FAR if low <= first - bottom + 1 else low
    high = FAR if high >= last - 1 - top else high
    return top, bottom, first, last, low, high


def moved(band: Band, down: int, right: int) -> Band:
    """The same cells in other coordinates: rows and columns that are as much larger."""
    top, bottom, first, last, low, high = band
    low = low if low == -FAR else low + right - down
    high = high if high == FAR else high + right - down
    return top + down, bottom + down, first + right, last + right, low, high


def joined(bands: Sequence[Band]) -> list[Band]:
    """The same cells in fewer bands, in order of their rows: those that together are one band are joined.

    0 0 | .          0 0 .
    0 0 | 0    ->    0 0 0    a full tile and a causal one are one causal tile
    """
    found = list(bands)
    while True:
        count = len(found)
        found = _stacked(_turned(_stacked(_turned(found))))
        if len(found) == count:
            return sorted(found)


def _turned(bands: Iterable[Band]) -> list[Band]:
    """Rows for columns."""
    return [(first, last, top, bottom, -high, -low) for top, bottom, first, last, low, high in bands]


def _stacked(bands: list[Band]) -> list[Band]:
    """Join bands that follow each other in rows."""
    if {band[0] for band in bands}.isdisjoint(band[1] for band in bands):
        return bands
    found = dict.fromkeys(list[Band]())
    ends = dict[tuple[int, int], Band]()  # by the row after the last one, and where that begins
    for band in sorted(bands):
        whole = band
        for begin in (band[2], band[2] - 1):  # From row to row a border stays or moves by one.
            before = ends.get((band[0], begin))
            if before and (union := _union(before, band)):
                del found[before], ends[band[0], begin]
                whole = union
                break
        found[whole] = None
        ends[whole[1], max(whole[2], whole[1] - 1 + whole[4])] = whole
    return list(found)


def _union(a: Band, b: Band) -> Band | None:
    """The one band that has the cells of both and no others, if there is one; b begins below the last row of a.

    The left border of a band stays and then moves, the right one moves and then stays. So a border is known by where it
    is in the first and in the last row, and two are the same if they agree in both.
    """
    top, middle, first, a_last, a_low, a_high = a
    _, bottom, b_first, last, b_low, b_high = b
    end = max(b_first, bottom - 1 + b_low)  # where the last row begins
    low = -FAR if end == first else end - (bottom - 1)
    stop = min(a_last, top + 1 + a_high)  # where the first row ends
    high = FAR if stop == last else stop - (top + 1)
    begins = (
        top + low <= first
        and max(first, middle - 1 + low) == max(first, middle - 1 + a_low)
        and max(first, middle + low) == b_first
    )
    ends = (
        bottom + high >= last
        and min(last, middle + high) == a_last
        and min(last, middle + 1 + high) == min(last, middle + 1 + b_high)
    )
    return (top, bottom, first, last, low, high) if begins and ends else None
