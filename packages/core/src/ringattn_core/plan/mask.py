"""A mask is a set of disjoint tiles in the coordinates of the stream, with exact union, intersection and difference."""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b

from ringattn_core.plan.mask_picture import mask_picture
from ringattn_core.plan.memo import Numbered
from ringattn_core.plan.overlaps import common, overlaps, without
from ringattn_core.plan.row_work import RowWork
from ringattn_core.plan.tile import CAUSAL, FULL, Tile

MASKS: Numbered[Mask] = Numbered()
"""Masks by their numbers."""

_NAMES = {FULL: "full", CAUSAL: "causal", (0, -1): "inverse causal"}


@dataclass(frozen=True)
class Mask:
    """Which keys each query sees: cell (q, k) is live if a tile has row q, column k and low <= k - q <= high.

    `tiles` are disjoint and trimmed, in order of their first rows; `num_queries` and `num_keys` are the lengths of the
    stream. Masks combine as sets of cells: `a | b`, `a & b`, `a - b`; the result is as long as the longer of the two.
    Two masks are equal (`==`, `hash`) if they have the same tiles; `same_cells` compares what they let see. Make masks
    by the functions of `ringattn.masks`; the constructor raises ValueError for tiles that overlap, that have a stride,
    or that lie beyond the stream.
    """

    tiles: tuple[Tile, ...]
    num_queries: int
    num_keys: int
    number: int = field(init=False, compare=False)

    def __post_init__(self) -> None:
        live = sorted(
            filter(None, (_checked(tile, self.num_queries, self.num_keys) for tile in self.tiles)), key=_order
        )
        check_disjoint(live, [f"{tile}" for tile in live])
        _finish(self, live)

    def __hash__(self) -> int:
        return int(self.digest, 16)

    def __reduce__(self) -> tuple[Callable[..., Mask], tuple[object, ...]]:
        # A copy, also in another process, gets a number there.
        return disjoint_mask, (self.tiles, self.num_queries, self.num_keys)

    @cached_property
    def digest(self) -> str:
        """64 bits of a hash of the tiles and the lengths, the same in all processes: 16 hexadecimal digits."""
        numbers = array("q", (self.num_queries, self.num_keys))
        for tile in self.tiles:
            numbers.extend((tile.q.start, tile.q.stop, tile.k.start, tile.k.stop, tile.low, tile.high))
        return blake2b(numbers.tobytes(), digest_size=8).hexdigest()

    @property
    def area(self) -> int:
        """The number of live cells."""
        return sum(tile.area for tile in self.tiles)

    def __or__(self, other: Mask) -> Mask:
        """What is live in either; the tiles of the mask with more live cells stay whole."""
        if not isinstance(other, Mask):
            return NotImplemented
        whole, rest = (self, other) if self.area >= other.area else (other, self)
        return _combined(self, other, [*whole.tiles, *_difference(rest.tiles, whole.tiles)])

    def __and__(self, other: Mask) -> Mask:
        """What is live in both."""
        if not isinstance(other, Mask):
            return NotImplemented
        pairs = overlaps(self.tiles, other.tiles)
        return _combined(self, other, [live for a, b in pairs if (live := common(self.tiles[a], other.tiles[b]))])

    def __sub__(self, other: Mask) -> Mask:
        """What is live in the first and not in the second."""
        if not isinstance(other, Mask):
            return NotImplemented
        return _combined(self, other, _difference(self.tiles, other.tiles))

    def same_cells(self, other: Mask) -> bool:
        """Whether both have the same live cells and lengths, however these are divided into tiles."""
        lengths = (self.num_queries, self.num_keys) == (other.num_queries, other.num_keys)
        return lengths and self.area == other.area and not (self - other).tiles

    def row_work(self, rows: range | None = None) -> list[int]:
        """The number of keys that each of these queries sees; of all queries where no range is given.

        Raises ValueError for a range beyond the queries.
        """
        rows = range(self.num_queries) if rows is None else rows
        if rows and not (min(rows) >= 0 and max(rows) < self.num_queries):
            raise ValueError(f"The mask has rows 0 to {self.num_queries - 1}, got {rows}.")
        work = RowWork(self.tiles, self.num_queries)
        return [work.of(row) for row in rows]

    def dense(self) -> list[bytes]:
        """One `bytes` for each query, with a 1 where it sees the key and a 0 where not."""
        rows = [bytearray(self.num_keys) for _ in range(self.num_queries)]
        for tile in self.tiles:
            for row in tile.q:
                start, count = max(tile.k.start, row + tile.low), _count(tile, row)
                rows[row][start : start + count] = b"\1" * count
        return [bytes(row) for row in rows]

    def draw(self, size: int = 48) -> str:
        """The mask as text, rows queries, columns keys: █ all live, ▒ some, · none.

        A mask of more than `size` rows or columns is drawn smaller.
        """
        cells, (step_q, step_k) = mask_picture(self.tiles, self.num_queries, self.num_keys, size)
        lines = [" ".join("·▒█"[cell] for cell in row) for row in cells]
        scale = f"Rows are queries, columns keys; a cell is {step_q:,} x {step_k:,} tokens: █ all live, ▒ some, · none."
        return "\n".join([*lines, repr(self), scale])

    def __repr__(self) -> str:
        cells, names = self.num_queries * self.num_keys, Counter(_NAMES.get(t.window, "band") for t in self.tiles)
        tiles = ", ".join(f"{count:,} {name}" for name, count in names.items()) or "none"
        share = 100 * self.area / cells if cells else 0.0
        return f"<Mask of {self.num_queries:,} x {self.num_keys:,} tokens, {share:.1f} % live; tiles: {tiles}>"


def check_disjoint(tiles: Sequence[Tile], names: Sequence[str]) -> None:
    """Raise ValueError if two tiles share a live cell; it says which two and where."""
    for a, b in overlaps(tiles, tiles):
        if a < b and (live := common(tiles[a], tiles[b])):
            raise ValueError(
                f"{names[a]} and {names[b]} overlap in rows {live.q.start} to {live.q.stop - 1} and columns "
                f"{live.k.start} to {live.k.stop - 1}: a cell may be live in one tile only. Combine them by `|`."
            )


def _checked(tile: Tile, num_queries: int, num_keys: int) -> Tile | None:
    """The tile without dead rows and columns."""
    for part, length, name in ((tile.q, num_queries, "rows"), (tile.k, num_keys, "columns")):
        if part.step != 1 or (part and not 0 <= part.start < part.stop <= length):
            raise ValueError(f"The {name} of a tile must be a range within 0 to {length} without a step, got {part}.")
    return tile.trim() if tile.q and tile.k else None


def disjoint_mask(tiles: Iterable[Tile], num_queries: int, num_keys: int) -> Mask:
    """A mask of tiles that are disjoint and within the stream by the way they are made: neither is checked again."""
    mask = object.__new__(Mask)
    live = (cut for tile in tiles if tile.q and tile.k and (cut := tile.trim()))
    object.__setattr__(mask, "num_queries", num_queries)
    object.__setattr__(mask, "num_keys", num_keys)
    return _finish(mask, sorted(live, key=_order))


def _finish(mask: Mask, tiles: Iterable[Tile]) -> Mask:
    """Set what the constructor does not set, once the tiles are known to be right and in order."""
    object.__setattr__(mask, "tiles", tuple(tiles))
    object.__setattr__(mask, "number", MASKS.add(mask))
    return mask


def _combined(a: Mask, b: Mask, tiles: Iterable[Tile]) -> Mask:
    """A mask of disjoint tiles as long as the longer of two."""
    return disjoint_mask(tiles, max(a.num_queries, b.num_queries), max(a.num_keys, b.num_keys))


def _difference(tiles: Sequence[Tile], others: Sequence[Tile]) -> list[Tile]:
    """What is live in the tiles and in none of the others."""
    met = defaultdict[int, list[Tile]](list)
    for index, other in overlaps(tiles, others):
        met[index].append(others[other])
    return [part for index, tile in enumerate(tiles) for part in without(tile, met.get(index, ()))]


def _order(tile: Tile) -> tuple[int, int, int, int]:
    return tile.q.start, tile.k.start, tile.q.stop, tile.low


def _count(tile: Tile, row: int) -> int:
    """The live cells of a row of a trimmed tile."""
    return min(tile.k.stop - 1, row + tile.high) - max(tile.k.start, row + tile.low) + 1
