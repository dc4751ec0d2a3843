"""A rank's schedule as columns of numbers: all its pieces and tiles in int64 tensors, to be checked at once."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from operator import sub
from typing import NamedTuple

import torch
from torch import Tensor

from ringattn_core.plan.columns import FullTiles, KeySlices
from ringattn_core.plan.layout import Sharding, Span
from ringattn_core.plan.schedule import KeySlice, Launch, Schedule
from ringattn_core.plan.tile import FAR, Tile


class PieceTable(NamedTuple):
    """The pieces of the steps of the first head group, in their order; see `KeySlice`."""

    step: Tensor  # the index of the step
    source: Tensor
    start: Tensor  # the first row in the source's shard
    size: Tensor
    offset: Tensor  # in the step's key buffer

    def key_slice(self, index: int) -> KeySlice:
        """The piece in this place."""
        source, start, size, offset = (int(column[index]) for column in self[1:])
        return KeySlice(source, range(start, start + size), offset)


class TileTable(NamedTuple):
    """The tiles of the launches of these steps, in their order; see `Tile`."""

    step: Tensor
    launch: Tensor  # counted over all steps
    top: Tensor  # rows from top to before bottom
    bottom: Tensor
    first: Tensor  # columns of the step's key buffer from first to before last
    last: Tensor
    low: Tensor
    high: Tensor

    def tile(self, index: int) -> Tile:
        """The tile in this place."""
        top, bottom, first, last, low, high = (int(column[index]) for column in self[2:])
        return Tile(range(top, bottom), range(first, last), low, high)


class SpanTable:
    """What all ranks hold, one rank after the other, each in storage order: so every stored token has a number.

    Of every span its sequence, the first of its positions, its length, and the number of its first token.
    """

    def __init__(self, sharding: Sharding) -> None:
        self._division, columns, counts = sharding, _columns(3), list[int]()
        for rank in range(sharding.cp_size):
            runs = list(sharding.runs(rank))
            counts.append(len(runs))
            columns[0].extend(sequence for sequence, _ in runs)
            columns[1].extend(run.start for _, run in runs)
            columns[2].extend(len(run) for _, run in runs)
        self.sequence, self.position, self.length = map(tensor, columns)
        ends = torch.cat([torch.zeros(1, dtype=torch.int64), self.length.cumsum(0)])
        self._first = list(accumulate(counts, initial=0))
        self.start, self.shard = ends[:-1], ends[self._first]  # shard: the number of every rank's first token

    def of(self, rank: int) -> range:
        """The indices of a rank's spans."""
        return range(self._first[rank], self._first[rank + 1])

    def owner(self, index: int) -> int:
        """The rank that holds a span."""
        return bisect_right(self._first, index) - 1

    def span(self, index: int) -> Span:
        """The span of this index."""
        rank = self.owner(index)
        return self._division.spans(rank)[index - self._first[rank]]


def piece_table(steps: Sequence[Sequence[KeySlice]]) -> PieceTable:
    """The pieces of steps."""
    columns = sources, starts, sizes, offsets = _columns(4)
    for key_slices in steps:
        if isinstance(key_slices, KeySlices):
            for column, values in zip((sources, starts, offsets), key_slices.columns, strict=True):
                column.extend(values[: len(key_slices)])
            sizes.extend(map(sub, key_slices.columns[2][1:], key_slices.columns[2]))
        else:
            sources.extend(key_slice.source for key_slice in key_slices)
            starts.extend(key_slice.rows.start for key_slice in key_slices)
            sizes.extend(len(key_slice.rows) for key_slice in key_slices)
            offsets.extend(key_slice.offset for key_slice in key_slices)
    return PieceTable(numbered(map(len, steps)), *map(tensor, columns))


def tile_table(schedule: Schedule) -> TileTable:
    """The tiles of a rank."""
    columns, launches = _columns(6), [launch for step in schedule.steps for launch in step.launches]
    for launch in launches:
        for column, values in zip(columns, _numbers(launch), strict=True):
            column.extend(values)
    launch_of = numbered(len(launch.tiles) for launch in launches)
    step_of = numbered(len(step.launches) for step in schedule.steps)
    return TileTable(step_of[launch_of], launch_of, *map(tensor, columns))


def _numbers(launch: Launch) -> Sequence[Sequence[int]]:
    tiles = launch.tiles
    if isinstance(tiles, FullTiles):
        return *tiles.columns, array("q", [-FAR]) * len(tiles), array("q", [FAR]) * len(tiles)
    rows = [(t.q.start, t.q.stop, t.k.start, t.k.stop, t.low, t.high) for t in tiles]
    return list(zip(*rows, strict=True)) or [()] * 6


def _columns(count: int) -> tuple[array[int], ...]:
    return tuple(array("q") for _ in range(count))


def tensor(column: array[int]) -> Tensor:
    """The same memory as a tensor."""
    return torch.frombuffer(column, dtype=torch.int64) if column else torch.empty(0, dtype=torch.int64)


def numbered(counts: Iterable[int]) -> Tensor:
    """0 as often as the first count says, then 1 as often as the second does, and so on."""
    repeats = torch.tensor([*counts], dtype=torch.int64)
    return torch.arange(len(repeats)).repeat_interleave(repeats)


def first_true(wrong: Tensor) -> int | None:
    """The index of the first that is True."""
    return int(wrong.nonzero()[0]) if wrong.any() else None
