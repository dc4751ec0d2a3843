"""Tiles and pieces as columns of numbers: of thousands of short sequences, objects would take most of a plan's time."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, compress
from operator import add, sub
from typing import Generic, NamedTuple, TypeVar, overload

from ringattn_core.plan.schedule import KeySlice
from ringattn_core.plan.tile import Tile
from ringattn_core.plan.vector import Vector

T = TypeVar("T")


class _Rows(Sequence[T], Generic[T]):
    """A sequence whose elements are made when they are looked at; equal to a tuple of the same elements."""

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[T, ...]: ...
    def __getitem__(self, index: int | slice) -> T | tuple[T, ...]:
        return tuple(map(self._row, range(len(self))[index])) if isinstance(index, slice) else self._row(index)

    def _row(self, index: int) -> T:
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]


class FullTiles(_Rows[Tile]):
    """Tiles of live cells only, that follow each other in rows and columns: one launch.

    The columns are where the rows of each begin and end, and where its columns do.
    """

    def __init__(self, *columns: Sequence[int]) -> None:
        self.columns = columns

    @property
    def bytes(self) -> int:
        """Memory that the tiles take."""
        return 100 * len(self)

    def __len__(self) -> int:
        return len(self.columns[0])

    def __iter__(self) -> Iterator[Tile]:
        top, bottom, first, last = self.columns
        return map(Tile, map(range, top, bottom), map(range, first, last))

    def _row(self, index: int) -> Tile:
        top, bottom, first, last = (column[index] for column in self.columns)
        return Tile(range(top, bottom), range(first, last))


class Parts(NamedTuple):
    """Rows of sources' shards in the order in which they lie in a key buffer, without gaps."""

    sources: Sequence[int]
    starts: Sequence[int]  # in the source's shard
    sizes: Sequence[int]  # 0 for none


class KeySlices(_Rows[KeySlice]):
    """Key slices that lie side by side in a key buffer, worked out when they are first looked at: by what moves keys.

    Parts that follow each other in one source's shard are one piece.
    """

    def __init__(self, derive: Callable[[], Parts], most: int) -> None:
        self._derive = derive
        self._columns: tuple[array[int], ...] = ()
        self.bytes = 24 * most  # that they take when they are worked out, or less

    @classmethod
    def of(cls, parts: Parts) -> KeySlices:
        """Of parts that are there already."""
        key_slices = cls(lambda: parts, len(parts.sizes))
        assert key_slices.columns, "worked out"
        return key_slices

    @property
    def columns(self) -> tuple[array[int], array[int], array[int]]:
        """Of every piece the source, its first row there, and its offset in the buffer; of that also the end."""
        if not self._columns:
            self._columns = _joined(*self._derive())
            del self._derive  # and what it holds
        sources, starts, offsets = self._columns
        return sources, starts, offsets

    def __len__(self) -> int:
        return len(self.columns[0])

    def __iter__(self) -> Iterator[KeySlice]:
        sources, starts, offsets = self.columns
        for source, start, offset, end in zip(sources, starts, offsets, offsets[1:], strict=False):
            yield KeySlice(source, range(start, start + end - offset), offset)

    def _row(self, index: int) -> KeySlice:
        index = range(len(self))[index]
        sources, starts, offsets = self.columns
        size = offsets[index + 1] - offsets[index]
        return KeySlice(sources[index], range(starts[index], starts[index] + size), offsets[index])


def row_bounds(key_slices: Sequence[KeySlice]) -> Iterable[tuple[int, int, int]]:
    """The source of each, its first row there, and the row after its last: without an object for each."""
    if not isinstance(key_slices, KeySlices):
        return [(each.source, each.rows.start, each.rows.stop) for each in key_slices]
    sources, starts, offsets = key_slices.columns
    return zip(sources, starts, map(add, starts, map(sub, offsets[1:], offsets)), strict=True)


_ROWS = 1 << 40  # more than a shard has
_NOWHERE = (1 << 62) - 1


def _joined(sources: Sequence[int], starts: Sequence[int], sizes: Sequence[int]) -> tuple[array[int], ...]:
    """Every piece's source, first row and offset; of the last also the end."""
    if not all(sizes):
        sources, starts, sizes = (kept(column, sizes) for column in (sources, starts, sizes))
    if not sizes:
        return array("q"), array("q"), array("q", [0])
    places = Vector.of(sources) * _ROWS + Vector.of(starts)  # of the rows, counted over all sources
    offsets = array("q", list(accumulate(sizes, initial=0)))
    end = offsets.pop()
    before = (places + Vector.of(sizes)).moved(_NOWHERE)  # where the part before ends
    begins = places.differs(before).array()
    firsts, offsets = Vector.of(kept(places.array(), begins)), kept(offsets, begins)
    offsets.append(end)
    return (firsts // _ROWS).array(), (firsts % _ROWS).array(), offsets


def kept(column: Sequence[int], flags: Sequence[int]) -> array[int]:
    """The numbers whose flag is not 0."""
    return array("q", list(compress(column, flags)))  # An array takes twice as long to grow by single numbers.
