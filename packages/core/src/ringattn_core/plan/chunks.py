"""Sequences that are all cut into equal chunks, as columns of numbers over the sequences: quick where they are many."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import accumulate, pairwise
from operator import add, sub

Column = Sequence[int]  # a number for every sequence


class Chunks:
    """Where every chunk begins, in its sequence and in the shard of the rank that holds it.

    cu_seqlens: the borders of the sequences. owners: the rank of every chunk; all sequences have as many.
    """

    def __init__(self, cu_seqlens: Sequence[int], owners: Sequence[int], cp_size: int) -> None:
        self.owners, self.count = owners, len(owners)
        self.lengths = [stop - start for start, stop in pairwise(cu_seqlens)]
        self.shortest = min(self.lengths)
        self.held: list[list[int]] = [[] for _ in range(cp_size)]  # the chunks of every rank, in storage order
        for index, owner in enumerate(owners):
            self.held[owner].append(index)
        self._borders = dict[int, Column]()

    def border(self, index: int) -> Column:
        """Where chunk `index` begins, counted from the start of the sequence; and the last one ends."""
        if index not in self._borders:
            # Mostly the number of ranks is a power of two, and to shift takes half as long as to divide.
            count, bits = self.count, self.count.bit_length() - 1
            if count == 1 << bits:
                self._borders[index] = [index * length >> bits for length in self.lengths]
            else:
                self._borders[index] = [index * length // count for length in self.lengths]
        return self._borders[index]

    def size(self, index: int) -> Column:
        """How many tokens chunk `index` has; 0 where a sequence is shorter than it has chunks."""
        return list(map(sub, self.border(index + 1), self.border(index)))

    def offsets(self, rank: int) -> list[Column]:
        """Where the chunks of a rank begin in its shard, one after the other, and where the last one ends."""
        sizes = [self.size(index) for index in self.held[rank]]
        whole = reduce(lambda some, more: list(map(add, some, more)), sizes)
        ends = list(accumulate(whole, initial=0))
        columns: list[Column] = [ends[:-1]]
        for size in sizes[:-1]:
            columns.append(list(map(add, columns[-1], size)))
        return [*columns, ends[1:]]

    def longest(self) -> int:
        """Tokens of the rank that holds the most."""
        before = [sum(self.border(index)) for index in range(self.count + 1)]
        return max(sum(before[index + 1] - before[index] for index in chunks) for chunks in self.held)
