"""Who holds which tokens as plain numbers, and what the mask lets them see: what planning is quick with."""

from __future__ import annotations

from functools import cached_property, lru_cache
from itertools import pairwise

from ringattn_core.plan.chunks import Chunks
from ringattn_core.plan.layout import Sharding, chunk_owners
from ringattn_core.plan.tile import FAR, Window
from ringattn_core.plan.vector import Vector

Line = tuple[int, int, int, int]  # a span as numbers: first position, length, offset, its rank
Shard = dict[int, list[Line]]  # what a rank holds, by sequence


class Shards:
    """What every rank holds of a division, worked out when it is first asked for."""

    def __init__(self, sharding: Sharding) -> None:
        self.sharding = sharding
        owners = chunk_owners(sharding.layout, sharding.cp_size) if sharding.of_sequences else None
        self.chunks = Chunks(sharding.cu_seqlens, owners, sharding.cp_size) if owners else None
        self._held = dict[int, Shard]()
        self._strides = set[int]()

    @cached_property
    def longest(self) -> int:
        """Tokens of the rank that holds the most."""
        if self.chunks:
            return self.chunks.longest()
        shards = map(self.held, range(self.sharding.cp_size))
        return max(sum(length for lines in shard.values() for _, length, *_ in lines) for shard in shards)

    @cached_property
    def strides(self) -> set[int]:
        """Of all runs of more than a token."""
        for rank in range(0 if self.chunks else self.sharding.cp_size):
            self.held(rank)
        return {1} if self.chunks else self._strides

    def held(self, rank: int) -> Shard:
        """What a rank holds, by sequence."""
        if rank not in self._held:
            self._held[rank] = self._of(rank)
        return self._held[rank]

    def of_sequence(self, sequence: int) -> list[Line]:
        """What all ranks hold of a sequence, in order of positions; of chunks, without their offsets."""
        if self.chunks is None:
            return sorted(line for rank in range(self.sharding.cp_size) for line in self.held(rank).get(sequence, ()))
        start, stop = self.sharding.cu_seqlens[sequence : sequence + 2]
        length, count = stop - start, self.chunks.count
        borders = pairwise(index * length // count for index in range(count + 1))
        parts = zip(borders, self.chunks.owners, strict=True)
        return [(start + first, last - first, 0, owner) for (first, last), owner in parts if first < last]

    def _of(self, rank: int) -> Shard:
        shard, offset = Shard(), 0
        for sequence, run in self.sharding.runs(rank):
            length = len(run)
            if length > 1:
                self._strides.add(run.step)
            line = (run.start, length, offset, rank)
            if sequence in shard:
                shard[sequence].append(line)
            else:
                shard[sequence] = [line]
            offset += length
        return shard


@lru_cache(1)
def shards(sharding: Sharding) -> Shards:
    """What every rank of a division holds, kept until another division is asked for."""
    return Shards(sharding)


class Mask:
    """Who holds what, and which cells live between a span of queries and one of keys, as a band of column - row."""

    def __init__(self, queries: Sharding, keys: Sharding, window: Window) -> None:
        self.left, self.right = (FAR if side < 0 else side for side in window)
        self.borders = keys.cu_seqlens
        self._shardings = queries, keys
        self.limits = dict[int, Vector]()  # see `many.lending`
        # Bottom-right alignment: a sequence's last query stands at its last key.
        stops = zip(queries.cu_seqlens[1:], keys.cu_seqlens[1:], strict=True)
        self.shift = [stop_k - stop_q for stop_q, stop_k in stops]

    @cached_property
    def keys(self) -> Shards:
        """Who holds which keys."""
        return shards(self._shardings[1])

    @cached_property
    def queries(self) -> Shards:
        """Who holds which queries; of self-attention, the keys' very object."""
        queries, keys = self._shardings
        return self.keys if queries == keys else Shards(queries)

    @cached_property
    def stride(self) -> int:
        """The distance of neighbours in all runs."""
        return _stride(self.queries.strides | self.keys.strides)

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


@lru_cache(1)
def mask(queries: Sharding, keys: Sharding, window: Window) -> Mask:
    """The latest mask: all ranks' plans, and what each lends, look at the same."""
    return Mask(queries, keys, window)
