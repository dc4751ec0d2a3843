"""A mask in the coordinates of ranks: which runs of rows and columns each holds, and what its rows see.

Ranks may hold every s-th token. Among the tokens of one residue, those whose positions leave the same remainder after
division by s, they hold runs of neighbours then, and a band of the stream is a band on the rows of one residue and the
columns of another. Everything here is in these coordinates: a position p is the (p // s)-th of the residue p % s. With
a stride of 1 there is one residue, and its coordinates are positions.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from functools import cached_property, lru_cache
from itertools import count
from typing import NamedTuple

from ringattn_core.plan.band import Band, band_of, moved, strided, trimmed
from ringattn_core.plan.columns import Parts
from ringattn_core.plan.layout import Sharding, chunk_owners
from ringattn_core.plan.lines import shards
from ringattn_core.plan.mask import Mask
from ringattn_core.plan.stretches import Stretches

ByResidue = dict[int, list[Band]]  # the columns of each list are of one residue


class Run(NamedTuple):
    """Tokens of one residue that a rank stores one after the other."""

    start: int
    stop: int
    offset: int  # where the first is stored
    rank: int

    @property
    def shift(self) -> int:
        """From a token's place in its residue to where it is stored."""
        return self.offset - self.start


class Held:
    """What the ranks of a sharding hold, by residue."""

    def __init__(self, sharding: Sharding, stride: int) -> None:
        self.sharding, self.stride = sharding, stride
        self._of = dict[int, dict[int, list[Run]]]()
        self._stretches = dict[tuple[int, ...], dict[int, Stretches]]()

    def of(self, rank: int) -> dict[int, list[Run]]:
        """The runs of a rank, each as long as it goes on, in order of their starts."""
        if rank not in self._of:
            self._of[rank] = self._runs(rank)
        return self._of[rank]

    def stretches(self, ranks: tuple[int, ...]) -> dict[int, Stretches]:
        """What ranks hold together; of a single rank each of its runs, for these are stored apart."""
        if ranks not in self._stretches:
            self._stretches[ranks] = self._together(ranks)
        return self._stretches[ranks]

    def _together(self, ranks: tuple[int, ...]) -> dict[int, Stretches]:
        if len(ranks) == 1:
            runs = self.of(ranks[0])
            return {
                key: Stretches([run.start for run in each], [run.stop for run in each]) for key, each in runs.items()
            }
        tokens, cp_size = self.sharding.cu_seqlens[-1], self.sharding.cp_size
        if 2 * len(ranks) <= cp_size:
            return self._union(ranks)
        # Of most ranks it is all that the others do not hold.
        rest = self._union(tuple(rank for rank in range(cp_size) if rank not in ranks))
        wholes = ((key, Stretches([0], [-((key - tokens) // self.stride)])) for key in range(min(self.stride, tokens)))
        return {key: whole.without(rest[key]) if key in rest else whole for key, whole in wholes}

    def _union(self, ranks: tuple[int, ...]) -> dict[int, Stretches]:
        found = defaultdict[int, list[tuple[int, int]]](list)
        for rank in ranks:
            for residue, runs in self.of(rank).items():
                found[residue] += ((run.start, run.stop) for run in runs)
        return {residue: Stretches.of(each) for residue, each in found.items()}

    def parts(self, ranks: Iterable[int], needed: Iterable[tuple[int, int, int]]) -> Parts:
        """The rows of ranks' shards with the tokens from start to before stop of each (residue, start, stop)."""
        together = defaultdict[int, list[Run]](list)
        for rank in ranks:
            for residue, runs in self.of(rank).items():
                together[residue] += runs
        starts = dict[int, list[int]]()
        for residue, runs in together.items():
            runs.sort()
            starts[residue] = [run.start for run in runs]
        sources, begins, sizes = list[int](), list[int](), list[int]()
        for residue, begin, end in needed:
            runs, start = together[residue], begin
            for index in count(bisect_right(starts[residue], begin) - 1):
                first, stop, offset, rank = runs[index]
                sources.append(rank)
                begins.append(offset + start - first)
                sizes.append(min(stop, end) - start)
                if stop >= end:
                    break
                start = stop
        return Parts(sources, begins, sizes)

    @cached_property
    def longest(self) -> int:
        """Tokens of the rank that holds the most."""
        return shards(self.sharding).longest

    def _runs(self, rank: int) -> dict[int, list[Run]]:
        found, offset = defaultdict[int, list[Run]](list), 0
        for positions in self.sharding.stretches(rank):
            start, residue = divmod(positions.start, self.stride)
            run, runs = Run(start, start + len(positions), offset, rank), found[residue]
            if runs and runs[-1].stop == start and runs[-1].offset + start - runs[-1].start == offset:
                run = run._replace(start=runs[-1].start, offset=runs.pop().offset)
            runs.append(run)
            offset += len(positions)
        return {residue: sorted(runs) for residue, runs in found.items()}


held = lru_cache(4)(Held)


class Placed:
    """A mask, and who holds its rows and columns."""

    def __init__(self, mask: Mask, queries: Sharding, keys: Sharding) -> None:
        self.mask, self.stride = mask, _stride(queries, keys)
        self.queries, self.keys = held(queries, self.stride), held(keys, self.stride)
        self._tiles = dict[tuple[int, int], list[Band]]()
        self._seen = dict[int, ByResidue]()

    def seen(self, rank: int) -> ByResidue:
        """What the queries of a rank see: bands whose rows are where the rank stores them."""
        if rank not in self._seen:
            found = ByResidue()
            for row, runs in self.queries.of(rank).items():
                for column in range(self.stride):
                    bands = _cut(self.tiles(row, column), runs)
                    if bands:
                        found.setdefault(column, []).extend(bands)
            self._seen[rank] = found
        return self._seen[rank]

    def tiles(self, row: int, column: int) -> list[Band]:
        """The mask on the rows of one residue and the columns of another, in order of first rows."""
        if (row, column) not in self._tiles:
            if self.stride == 1:
                found = [band_of(tile) for tile in self.mask.tiles]
            else:
                cuts = (strided(tile, row, column, self.stride) for tile in self.mask.tiles)
                found = sorted(band for band in cuts if band)
            self._tiles[row, column] = found
        return self._tiles[row, column]


placed = lru_cache(4)(Placed)


def _stride(*shardings: Sharding) -> int:
    """The distance of neighbours in all runs of more than a token."""
    found = set[int]()
    for sharding in dict.fromkeys(shardings):
        if not (sharding.of_sequences and chunk_owners(sharding.layout, sharding.cp_size)):
            for rank in range(sharding.cp_size):
                found |= {run.step for run in sharding.stretches(rank) if len(run) > 1}
    if len(found) > 1 or min(found, default=1) < 1:
        raise ValueError(f"All runs of a layout must have one positive stride, got {sorted(found)}.")
    return min(found, default=1)


def _cut(tiles: list[Band], runs: list[Run]) -> list[Band]:
    """The parts of tiles in the rows of each run, with their rows where these are stored; both are in order of rows."""
    found, active, index = list[Band](), list[Band](), 0
    for start, stop, offset, _ in runs:
        while index < len(tiles) and tiles[index][0] < stop:
            active.append(tiles[index])
            index += 1
        active = [tile for tile in active if tile[1] > start]
        for top, bottom, first, last, low, high in active:
            part = trimmed(max(top, start), min(bottom, stop), first, last, low, high)
            if part:
                found.append(moved(part, offset - start, 0))
    return found
