"""Who holds which tokens as plain numbers, and what the mask lets them see: what planning is quick with."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from ringattn_core.layout import Division
from ringattn_core.tile import FAR, Window

Line = tuple[int, int, int, int]  # a span as numbers: first position, length, offset, its rank
Shard = dict[int, list[Line]]  # what a rank holds, by sequence


class Shards(NamedTuple):
    """What every rank holds."""

    held: list[Shard]
    strides: set[int]  # of all runs
    longest: int  # tokens of the rank that holds the most


@lru_cache(64)
def shards(division: Division) -> Shards:
    """What every rank of a division holds, worked out once."""
    held: list[Shard] = [{} for _ in range(division.cp_size)]
    strides, longest = set(), 0
    for rank, shard in enumerate(held):
        offset = 0
        for sequence, run in division.runs(rank):
            length = len(run)
            if length > 1:
                strides.add(run.step)
            line = (run.start, length, offset, rank)
            if sequence in shard:
                shard[sequence].append(line)
            else:
                shard[sequence] = [line]
            offset += length
        longest = max(longest, offset)
    return Shards(held, strides, longest)


class Mask:
    """Which cells live between a span of queries and a span of keys, as a band of column - row."""

    def __init__(self, queries: Division, keys: Division, window: Window) -> None:
        self.left, self.right = (FAR if side < 0 else side for side in window)
        self.borders = keys.cu_seqlens
        self.stride = _stride(shards(queries).strides | shards(keys).strides)
        # Bottom-right alignment: a sequence's last query stands at its last key.
        stops = zip(queries.cu_seqlens[1:], keys.cu_seqlens[1:], strict=True)
        self.shift = [stop_k - stop_q for stop_q, stop_k in stops]

    def reach(self, sequence: int, queries: Line) -> tuple[int, int]:
        """The first and the last position whose key one of these queries may see."""
        start, length, *_ = queries
        first = start + self.shift[sequence]
        return first - self.left, first + (length - 1) * self.stride + self.right


def _stride(strides: set[int]) -> int:
    """The distance of neighbours in every run; a mask between runs of two strides would be no band."""
    if len(strides) > 1 or min(strides, default=1) < 1:
        raise ValueError(f"All runs of a layout must have one positive stride, got {sorted(strides)}.")
    return min(strides, default=1)
