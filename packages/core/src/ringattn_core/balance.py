"""Which rank gets which block of a packed stream: as much causal work each, and neighbours together where that is free.

Blocks are dealt by their work, the largest first, each to the rank with the least so far, as in MagiAttention
(arXiv:2505.13211). Then they are swapped: first while that takes work from a busy rank, at the end while it saves keys
that one rank needs of another.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import pairwise

from ringattn_core.tile import joined_runs


class Deal:
    """Blocks of a packed stream, which follow each other, dealt to ranks; every rank gets as many."""

    def __init__(self, cu_seqlens: Sequence[int], blocks: Sequence[range], cp_size: int) -> None:
        self._blocks, self._shared = blocks, _shared(cu_seqlens, blocks)
        self._work = [_work(cu_seqlens, block) for block in blocks]
        self._loads, self._owners = [0] * cp_size, [0] * len(blocks)
        self._held: list[list[int]] = [[] for _ in range(cp_size)]
        self._near = [[0] * cp_size for _ in blocks]  # keys that a block shares with those of each rank
        # A hundredth more than the mean is as good as the mean.
        self._enough = sum(self._work) * 101 // (100 * cp_size)
        for block in sorted(range(len(blocks)), key=lambda block: -self._work[block]):
            free = (rank for rank, held in enumerate(self._held) if len(held) * cp_size < len(blocks))
            self._give(block, min(free, key=lambda rank: self._loads[rank]))
        self._level()

    @property
    def excess(self) -> float:
        """How much more work than the mean the busiest rank has: 0.1 is a tenth."""
        return max(self._loads) * len(self._loads) / max(sum(self._loads), 1) - 1

    def settled(self) -> list[tuple[range, ...]]:
        """What each rank gets, once swaps have saved what keys they can."""
        while sum(self._move_nearer(block) for block in range(len(self._blocks))):
            self._level()  # What was stuck may have got loose.
        return [tuple(joined_runs(self._blocks[block] for block in held)) for held in self._held]

    def _give(self, block: int, rank: int) -> None:
        self._owners[block] = rank
        self._held[rank].append(block)
        self._loads[rank] += self._work[block]
        for other, keys in self._shared[block].items():
            self._near[other][rank] += keys

    def _take(self, block: int) -> int:
        """Take a block from its owner."""
        rank = self._owners[block]
        self._held[rank].remove(block)
        self._loads[rank] -= self._work[block]
        for other, keys in self._shared[block].items():
            self._near[other][rank] -= keys
        return rank

    def _swap(self, i: int, j: int) -> None:
        a, b = self._take(i), self._take(j)
        self._give(i, b)
        self._give(j, a)

    def _busier(self, i: int, j: int) -> int:
        """The work of the busier of two blocks' owners, once they have swapped them."""
        moved = self._work[i] - self._work[j]
        return max(self._loads[self._owners[i]] - moved, self._loads[self._owners[j]] + moved)

    def _level(self) -> None:
        """Take work from ranks that have too much, the busiest first, while others can take some and are less busy."""
        swaps = -1
        while swaps:
            ranks = sorted(range(len(self._loads)), key=lambda rank: self._loads[rank])
            swaps = sum(self._relieve(busy, free) for busy in reversed(ranks) for free in ranks)

    def _relieve(self, busy: int, free: int) -> bool:
        """Swap what makes two ranks' work most alike, if the first has too much and the busier then has less."""
        load, half = self._loads[busy], (self._loads[busy] - self._loads[free]) / 2
        if load <= self._enough or half <= 0:
            return False
        theirs = sorted(self._held[free], key=lambda block: self._work[block])
        pairs = list[tuple[int, int]]()
        for mine in self._held[busy]:
            at = bisect_left(theirs, self._work[mine] - half, key=lambda block: self._work[block])
            pairs += [(mine, other) for other in theirs[max(at - 1, 0) : at + 1]]
        pair = min(pairs, key=lambda pair: self._busier(*pair))
        if helps := self._busier(*pair) < load:
            self._swap(*pair)
        return helps

    def _move_nearer(self, block: int) -> bool:
        """Swap a block for one of a rank that holds more of its sequence, if that saves keys and is no more work."""
        rank, near, best, most = self._owners[block], self._near, -1, 0
        for there, keys in enumerate(near[block]):
            gain = keys - near[block][rank]
            limit = max(self._enough, self._loads[rank], self._loads[there])
            for other in self._held[there] if gain > 0 else ():
                saved = gain + near[other][rank] - near[other][there] - 2 * self._shared[block].get(other, 0)
                if saved > most and self._busier(block, other) <= limit:
                    best, most = other, saved
        if best >= 0:
            self._swap(block, best)
        return best >= 0


def _work(cu_seqlens: Sequence[int], block: range) -> int:
    """Cells of a causal mask in the rows of a block."""
    first = bisect_right(cu_seqlens, block.start) - 1
    cells = 0
    for start, stop in pairwise(cu_seqlens[first:]):
        if start >= block.stop:
            break
        low, high = max(block.start, start) - start, min(block.stop, stop) - start
        cells += (high * (high + 1) - low * (low + 1)) // 2
    return cells


def _shared(cu_seqlens: Sequence[int], blocks: Sequence[range]) -> list[dict[int, int]]:
    """For each block, of which others rows see its keys or it sees theirs, and how many keys those are."""
    shared = [dict[int, int]() for _ in blocks]
    for later, block in enumerate(blocks):
        start = cu_seqlens[bisect_right(cu_seqlens, block.start) - 1]
        for earlier in range(later - 1, -1, -1):
            keys = blocks[earlier].stop - max(start, blocks[earlier].start)
            if keys <= 0:
                break
            shared[earlier][later] = shared[later][earlier] = keys
    return shared
