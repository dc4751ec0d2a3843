"""Sequences that are all cut into equal chunks, as vectors over the sequences: quick where they are many."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import accumulate, pairwise
from operator import add

from ringattn_core.plan.vector import Vector


class Chunks:
    """Where every chunk begins, in its sequence and in the shard of the rank that holds it.

    cu_seqlens: the borders of the sequences. owners: the rank of every chunk; all sequences have as many.
    """

    def __init__(self, cu_seqlens: Sequence[int], owners: Sequence[int], cp_size: int) -> None:
        self.owners, self.count = owners, len(owners)
        lengths = [stop - start for start, stop in pairwise(cu_seqlens)]
        self.lengths, self.shortest = Vector.of(lengths), min(lengths)
        self.held: list[list[int]] = [[] for _ in range(cp_size)]  # the chunks of every rank, in storage order
        for index, owner in enumerate(owners):
            self.held[owner].append(index)
        self._borders = dict[int, Vector]()

    def border(self, index: int) -> Vector:
        """Where chunk `index` begins, counted from the start of the sequence; and the last one ends."""
        if index not in self._borders:
            self._borders[index] = self.lengths * index // self.count
        return self._borders[index]

    def size(self, index: int) -> Vector:
        """How many tokens chunk `index` has; 0 where a sequence is shorter than it has chunks."""
        return self.border(index + 1) - self.border(index)

    def offsets(self, rank: int) -> list[Vector]:
        """Where the chunks of a rank begin in its shard, one after the other, and where the last one ends."""
        sizes = [self.size(index) for index in self.held[rank]]
        return list(accumulate(sizes, initial=reduce(add, sizes).begins()))

    def longest(self) -> int:
        """Tokens of the rank that holds the most."""
        before = [sum(self.border(index).array()) for index in range(self.count + 1)]
        return max(sum(before[index + 1] - before[index] for index in chunks) for chunks in self.held)
