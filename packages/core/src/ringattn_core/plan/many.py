"""The quick ways of the planner, for many sequences that are all cut into equal chunks: see `Chunks`.

They find what `joined_tiles` and `arranged` would, sequence by sequence and chunk by chunk: for every chunk of every
other rank (there may be hundreds) only its index is looked at, and what is done for each sequence is done for
a whole column at once.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Container, Sequence
from functools import lru_cache
from itertools import chain, compress, groupby
from operator import mul, sub
from typing import NamedTuple

from ringattn_core.plan.chunks import Chunks, Column
from ringattn_core.plan.columns import FullTiles, KeySlices, Parts
from ringattn_core.plan.layout import Sharding
from ringattn_core.plan.lines import Line, Mask, shards
from ringattn_core.plan.tile import FAR


def full_tiles(mask: Mask, rank: int, source: int) -> FullTiles | None:
    """A rank's queries against another's keys, where that is one tile a sequence without a masked cell; else None.

    So it is under a causal mask: of two chunks, the keys of the earlier are seen by all queries of the later.
    """
    chunks = mask.keys.chunks
    if chunks is None or mask.queries is not mask.keys or mask.left < FAR or mask.right not in (0, FAR):
        return None
    mine, theirs = chunks.held[rank], chunks.held[source]
    seen = [len(theirs) if mask.right == FAR else bisect_left(theirs, chunk) for chunk in mine]
    most = max(seen)
    if rank == source or set(seen) - {0, most}:
        return None
    if most == 0:
        return FullTiles([], [], [], [])
    # The first chunks may see nothing; the others all see the same.
    (top, bottom, rows), keys = _rows(chunks, rank, seen.index(most)), chunks.offsets(source)
    columns = [top, bottom, keys[0], keys[most]]
    if chunks.shortest < chunks.count:
        live = list(map(mul, rows, map(sub, keys[most], keys[0])))  # 0 where there is no row or no key
        columns = [list(compress(column, live)) for column in columns]
    return FullTiles(*columns)


@lru_cache(2)
def _rows(chunks: Chunks, rank: int, first: int) -> tuple[Column, Column, Column]:
    """Where a rank's queries begin and end from its first, second, … chunk on, and how many these are."""
    offsets = chunks.offsets(rank)
    return offsets[first], offsets[-1], list(map(sub, offsets[-1], offsets[first]))


class Reach(NamedTuple):
    """The position in a sequence before which a rank's queries see keys, of local keys and of remote ones."""

    own: int
    others: int


class Gathered:
    """The common key buffer of a step with several sources, where queries see all keys up to some position."""

    def __init__(self, mask: Mask, rank: int, sources: Container[int]) -> None:
        assert mask.keys.chunks is not None, "gathered has asked"
        self._mask, self._rank, self._chunks = mask, rank, mask.keys.chunks
        self._runs = list(_runs(self._chunks.owners, rank, sources))
        self._reach, self._offset = dict[int, Reach](), 0

    def lines(self, sequence: int, whole: list[Line], early_rows: list[Line]) -> list[Line]:
        """The live keys of a sequence as they lie in the buffer: as by `arranged`, with longer lines."""
        start, stop = self._mask.borders[sequence : sequence + 2]
        own, others = (
            max(0, min(stop, max((self._mask.reach(sequence, line)[1] + 1 for line in lines), default=start)) - start)
            for lines in (whole, whole + early_rows)
        )
        self._reach[sequence] = Reach(own, others)
        length, count, found = stop - start, self._chunks.count, list[Line]()
        for first, last, source in self._runs:
            begin = first * length // count
            end = min(last * length // count, own if source == self._rank else others)
            if begin < end:
                found.append((start + begin, end - begin, self._offset, source))
                self._offset += end - begin
        return found

    def key_slices(self) -> KeySlices:
        """What lies in the buffer. They hold neither mask nor shards, for plans are kept longer than these."""
        keys, runs, reach, rank = self._mask.keys.sharding, self._runs, self._reach, self._rank
        most = min(self._offset, len(reach) * self._chunks.count)
        return KeySlices(lambda: _parts(keys, runs, reach, rank), most)


def gathered(mask: Mask, rank: int, sources: Sequence[int]) -> Gathered | None:
    """The buffer of a step; None where keys are not in chunks, or a window closes behind its queries."""
    return Gathered(mask, rank, set(sources)) if mask.keys.chunks and mask.left == FAR else None


def _runs(owners: Sequence[int], rank: int, sources: Container[int]) -> list[tuple[int, int, int]]:
    """The runs of chunks that sources hold: the first, that after the last, and one of their ranks; own ones apart."""
    found = list[tuple[int, int, int]]()
    kinds = ((owner in sources) + (owner in sources and owner == rank) for owner in owners)
    first = 0
    for kind, run in groupby(kinds):
        last = first + len(list(run))
        if kind:
            found.append((first, last, owners[first]))
        first = last
    return found


def _parts(keys: Sharding, runs: Sequence[tuple[int, int, int]], reach: dict[int, Reach], rank: int) -> Parts:
    """Every part of a chunk that lies in the buffer."""
    chunks = shards(keys).chunks
    assert chunks is not None, "keys are in chunks"
    offsets = {
        index: column
        for owner in {chunks.owners[index] for first, last, _ in runs for index in range(first, last)}
        for index, column in zip(chunks.held[owner], chunks.offsets(owner), strict=False)
    }
    found, parts = (list[int](), list[int](), list[int]()), list[tuple[int, tuple[Sequence[Sequence[int]], ...]]]()
    for first, last, source in runs:
        indices = range(first, last)
        columns = (
            map(chunks.border, range(first, last + 1)),
            map(offsets.__getitem__, indices),
            map(chunks.size, indices),
        )
        parts.append((source, tuple(list(zip(*each, strict=True)) for each in columns)))
    for sequence, (own, others) in reach.items():
        for (source, (borders, starts, sizes)), (first, *_) in zip(parts, runs, strict=True):
            border, limit = borders[sequence], own if source == rank else others
            whole = max(bisect_right(border, limit) - 1, 0)
            cut = limit - border[whole] if whole < len(starts[sequence]) else 0
            found[0].extend(chunks.owners[first : first + whole + (cut > 0)])
            found[1].extend(starts[sequence][: whole + (cut > 0)])
            found[2].extend(sizes[sequence][:whole])
            if cut > 0:
                found[2].append(cut)  # of the last chunk a part
    return Parts(*found)


def lending(mask: Mask, rank: int) -> Callable[[int], tuple[list[int], list[int]]] | None:
    """Which of a rank's keys the queries of another see: where they begin in its shard, and how many, or 0.

    None where keys are not in chunks, or a window closes behind its queries.
    """
    chunks = mask.keys.chunks
    if chunks is None or mask.left < FAR:
        return None
    starts = list(chain.from_iterable(zip(*chunks.offsets(rank)[:-1], strict=True)))
    borders = [(chunks.border(index), chunks.border(index + 1)) for index in chunks.held[rank]]

    def seen(other: int) -> tuple[list[int], list[int]]:
        limits = _limits(mask, other)
        sizes = [
            [
                (stop if stop < limit else limit) - start if start < limit else 0
                for start, stop, limit in zip(*border, limits, strict=True)
            ]
            for border in borders
        ]
        return starts, list(chain.from_iterable(zip(*sizes, strict=True)))

    return seen


def _limits(mask: Mask, rank: int) -> Column:
    """Of every sequence, before which of its keys those are that a rank's queries see; 0 where it has none."""
    chunks = mask.queries.chunks
    assert chunks is not None and mask.keys.chunks is not None, "queries are divided as keys are"
    if rank not in mask.limits:
        ends: Column = [0] * len(chunks.lengths)
        for index in chunks.held[rank]:  # the last are those that begin last
            ends = [
                stop if start < stop else end
                for start, stop, end in zip(chunks.border(index), chunks.border(index + 1), ends, strict=True)
            ]
        corner = map(sub, mask.keys.chunks.lengths, chunks.lengths)
        mask.limits[rank] = [
            max(0, end + apart + mask.right) if end else 0 for end, apart in zip(ends, corner, strict=True)
        ]
    return mask.limits[rank]
