"""Tiles as plain numbers: planning cuts, moves and joins thousands of them."""

from __future__ import annotations

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
