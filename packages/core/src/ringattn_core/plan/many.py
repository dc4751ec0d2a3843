"""The quick ways of the planner, for many sequences that are all cut into equal chunks: see `Chunks`.

They find what `joined_tiles` and `arranged` would, sequence by sequence and chunk by chunk: for every chunk of every
other rank (there may be hundreds) only its index is looked at, and what is done for each sequence is done for
a whole column at once.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Container, Sequence
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

from ringattn_core.plan.chunks import Chunks
from ringattn_core.plan.columns import FullTiles, KeySlices, Parts, kept
from ringattn_core.plan.layout import Sharding
from ringattn_core.plan.lines import Line, Mask, shards
from ringattn_core.plan.tile import FAR
from ringattn_core.plan.vector import Vector


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
    columns = top, bottom, keys[0].array(), keys[most].array()
    if chunks.shortest < chunks.count:
        live = rows.minimum(keys[most] - keys[0]).array()  # 0 where there is no row or no key
        return FullTiles(*(kept(column, live) for column in columns))
    return FullTiles(*columns)


@lru_cache(2)
def _rows(chunks: Chunks, rank: int, first: int) -> tuple[array[int], array[int], Vector]:
    """Where a rank's queries begin and end from its first, second, … chunk on, and how many these are."""
    offsets = chunks.offsets(rank)
    return offsets[first].array(), offsets[-1].array(), offsets[-1] - offsets[first]


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
    """Every part of a chunk that lies in the buffer, or would where its size is 0."""
    chunks = shards(keys).chunks
    assert chunks is not None, "keys are in chunks"
    sequences, indices = len(chunks.lengths), [index for first, last, _ in runs for index in range(first, last)]
    limits = [Vector.of([reach[each][kind] if each in reach else 0 for each in range(sequences)]) for kind in range(2)]
    offsets = {
        index: offset
        for owner in {chunks.owners[index] for index in indices}
        for index, offset in zip(chunks.held[owner], chunks.offsets(owner), strict=False)
    }
    sizes = [_before(chunks, index, limits[chunks.owners[index] != rank]) for index in indices]
    owners = array("q", [chunks.owners[index] for index in indices])
    return Parts(owners * sequences, _in_turn([offsets[index] for index in indices]), _in_turn(sizes))


def _before(chunks: Chunks, index: int, limit: Vector) -> Vector:
    """How many tokens of a chunk are before these positions of the sequences."""
    return chunks.border(index + 1).minimum(limit) - chunks.border(index).minimum(limit)


def lending(mask: Mask, rank: int) -> Callable[[int], tuple[array[int], array[int]]] | None:
    """Which of a rank's keys the queries of another see: where they begin in its shard, and how many, or 0.

    None where keys are not in chunks, or a window closes behind its queries.
    """
    chunks = mask.keys.chunks
    if chunks is None or mask.left < FAR:
        return None
    held = chunks.held[rank]
    starts = _in_turn(chunks.offsets(rank)[:-1])

    def seen(other: int) -> tuple[array[int], array[int]]:
        limit = _limits(mask, other)
        return starts, _in_turn([_before(chunks, index, limit) for index in held])

    return seen


def _in_turn(columns: Sequence[Vector]) -> array[int]:
    """The first numbers of all, then the second ones, and so on."""
    numbers = array("q", bytes(8 * len(columns) * len(columns[0])))
    for place, column in enumerate(columns):
        numbers[place :: len(columns)] = column.array()
    return numbers


def _limits(mask: Mask, rank: int) -> Vector:
    """Of every sequence, before which of its keys those are that a rank's queries see; 0 where it has none."""
    chunks = mask.queries.chunks
    assert chunks is not None and mask.keys.chunks is not None, "queries are divided as keys are"
    if rank not in mask.limits:
        none = ends = Vector.full(0, len(chunks.lengths))
        for index in chunks.held[rank]:  # the last are those that begin last
            ends = chunks.border(index + 1).where(chunks.size(index).positive(), ends)
        # Bottom-right alignment: the last query stands at the last key.
        limits = ends + mask.keys.chunks.lengths + Vector.full(mask.right, len(ends))
        limits -= limits.minimum(chunks.lengths)
        mask.limits[rank] = limits.where(ends.positive(), none)
    return mask.limits[rank]
