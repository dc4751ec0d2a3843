"""Tiles that together are one band become one tile: fewer kernel launches, each over more cells."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator
from itertools import product

from ringattn_core.plan.overlaps import common
from ringattn_core.plan.tile import FAR, Tile


def joined(tiles: Iterable[Tile]) -> list[Tile]:
    """The same cells in fewer tiles, in order of their rows; the tiles are trimmed and disjoint.

    0 0 | .          0 0 .
    0 0 | 0    ->    0 0 0    a full tile and a causal one are one causal tile
    """
    found = list(tiles)
    while True:
        count = len(found)
        found = _joined_along(_joined_along(found, rows=False), rows=True)
        if len(found) == count:
            return sorted(found, key=lambda tile: (tile.q.start, tile.k.start))


def _joined_along(tiles: list[Tile], *, rows: bool) -> list[Tile]:
    """One pass over tiles that follow each other in rows, or in columns."""
    found, ends = dict.fromkeys(list[Tile]()), defaultdict[Hashable, list[Tile]](list)
    for tile in sorted(tiles, key=lambda tile: (tile.q.start, tile.k.start) if rows else (tile.k.start, tile.q.start)):
        begin, others = (tile.q.start, tile.k) if rows else (tile.k.start, tile.q)
        near = {before: None for edge in _edges(tile, others) for before in ends[begin, edge] if before in found}
        whole = tile
        for before in near:
            if union := _union(before, tile):
                del found[before]
                whole = union
                break
        found[whole] = None
        end, others = (whole.q.stop, whole.k) if rows else (whole.k.stop, whole.q)
        for edge in _edges(whole, others):
            ends[end, edge].append(whole)
    return list(found)


def _edges(tile: Tile, others: range) -> Iterator[Hashable]:
    """What two tiles have in common, at least one of it, if they are one band."""
    yield "start", others.start
    yield "stop", others.stop
    if tile.low != -FAR:
        yield "low", tile.low
    if tile.high != FAR:
        yield "high", tile.high


def _union(a: Tile, b: Tile) -> Tile | None:
    """The one tile that has the cells of both and no others, if there is one."""
    q = range(min(a.q.start, b.q.start), max(a.q.stop, b.q.stop))
    k = range(min(a.k.start, b.k.start), max(a.k.stop, b.k.stop))
    for low, high in product({a.low, b.low}, {a.high, b.high}):
        whole = Tile(q, k, low, high).trim()
        if (
            whole
            and whole.area == a.area + b.area
            and common(whole, Tile(a.q, a.k)) == a
            and common(whole, Tile(b.q, b.k)) == b
        ):
            return whole
    return None
