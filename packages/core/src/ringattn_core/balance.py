"""Which rank gets which block of a packed stream: as much causal work each, and neighbours together where that is free.

Blocks are dealt by their work, the largest first, each to the rank with the least so far, as in MagiAttention
(arXiv:2505.13211), and then swapped as long as that helps.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import combinations, pairwise


def dealt(cu_seqlens: Sequence[int], blocks: Sequence[range], cp_size: int) -> tuple[list[tuple[range, ...]], float]:
    """What each rank gets of a packed stream, and how much more work than the mean the busiest gets: 0.1 is a tenth.

    The blocks follow each other, and every rank gets as many.
    """
    work = [_work(cu_seqlens, block) for block in blocks]
    loads, room, owners = [0] * cp_size, [len(blocks) // cp_size] * cp_size, [0] * len(blocks)
    for block in sorted(range(len(blocks)), key=lambda block: -work[block]):
        rank = min((rank for rank in range(cp_size) if room[rank]), key=lambda rank: loads[rank])
        owners[block] = rank
        loads[rank] += work[block]
        room[rank] -= 1
    _swap(owners, loads, work, _shared(cu_seqlens, blocks))
    return [_joined(blocks, owners, rank) for rank in range(cp_size)], max(loads) * cp_size / max(sum(loads), 1) - 1


def _joined(blocks: Sequence[range], owners: Sequence[int], rank: int) -> tuple[range, ...]:
    """A rank's blocks, those in one that follow each other."""
    runs = list[range]()
    for block in (block for block, owner in zip(blocks, owners, strict=True) if owner == rank and block):
        start = runs.pop().start if runs and runs[-1].stop == block.start else block.start
        runs.append(range(start, block.stop))
    return tuple(runs)


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


def _shared(cu_seqlens: Sequence[int], blocks: Sequence[range]) -> list[list[int]]:
    """For two blocks, how many keys of the earlier one rows of the later one see."""
    shared = [[0] * len(blocks) for _ in blocks]
    for later, block in enumerate(blocks):
        start = cu_seqlens[bisect_right(cu_seqlens, block.start) - 1]
        for earlier in range(later - 1, -1, -1):
            keys = blocks[earlier].stop - max(start, blocks[earlier].start)
            if keys <= 0:
                break
            shared[earlier][later] = shared[later][earlier] = keys
    return shared


def _swap(owners: list[int], loads: list[int], work: list[int], shared: list[list[int]]) -> None:
    """Swap blocks while that takes work from the busier of two ranks, or else keys that one needs of another.

    A hundredth more work than the mean is as good as the mean.
    """
    enough = sum(work) * 101 // (100 * len(loads))
    near = [[0] * len(loads) for _ in work]  # for each block, what it shares with those of each rank
    for row, keys in zip(near, shared, strict=True):
        for owner, count in zip(owners, keys, strict=True):
            row[owner] += count
    swapped = True
    while swapped:
        swapped = False
        for i, j in combinations(range(len(work)), 2):
            a, b = owners[i], owners[j]
            if a == b:
                continue
            moved = work[i] - work[j]
            before, after = max(loads[a], loads[b], enough), max(loads[a] - moved, loads[b] + moved, enough)
            saved = near[i][b] - near[i][a] + near[j][a] - near[j][b] - 2 * shared[i][j]
            if after < before or (after == before and saved > 0):
                owners[i], owners[j], swapped = b, a, True
                loads[a], loads[b] = loads[a] - moved, loads[b] + moved
                for row, with_i, with_j in zip(near, shared[i], shared[j], strict=True):
                    row[a] += with_j - with_i
                    row[b] += with_i - with_j
