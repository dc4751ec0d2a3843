"""Small messages by the SMs: one kernel writes, signals all ranks, waits for the signals of all ranks, and reads.

Separate copies and a barrier take a kernel more, and a copy engine takes microseconds to start each copy. Here a block
of threads goes on from its writes to its reads as soon as the blocks of all other ranks have written, which takes about
as long as a message between two GPUs.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from ringattn_comms.shared_buffer import Move, copy

# The signals that a rank sends in an exchange, and its thread blocks where it moves anything (one block where it moves
# nothing): few enough to run next to the attention kernel of small shards, enough to write at the memory's bandwidth.
_RINGS = 64
_READERS = 32  # blocks that stay to read, enough to fill a link; the others leave their SMs to the attention
_CHUNK = 16384  # elements that a block moves at once
_MOST = 8  # moves that one kernel makes, before and after: more would only make it longer to compile


def exchange(first: Sequence[Move], then: Sequence[Move], signals: tuple[Tensor, ...], rank: int) -> None:
    """As of `SharedBuffer.exchange`, on the current stream.

    `signals`: an int64 tensor in the memory of each rank, in rank order. Entry r of each counts the signals that rank r
    has sent to its owner, from 0.
    """
    first, others = _movable(first)
    then, later = _movable(then)
    copy(others)
    blocks, readers = _RINGS if first or then else 1, _READERS if then else 1
    arguments = [tuple(part) for moves in (first, then) for part in _columns(moves)]
    _exchange[(blocks,)](*arguments, signals, signals[rank], rank, _RINGS, blocks, readers, _CHUNK, num_warps=16)
    copy(later)


def _movable(moves: Sequence[Move]) -> tuple[list[Move], list[Move]]:
    """Moves of the kernel, which takes contiguous tensors and at most `_MOST` moves, and the other moves."""
    whole = [move for move in moves if all(x.is_contiguous() for x in move)][:_MOST]
    return whole, [move for move in moves if not any(move is other for other in whole)]


def _columns(moves: Sequence[Move]) -> tuple[list[Tensor], list[Tensor], list[int]]:
    return [to for to, _ in moves], [source for _, source in moves], [to.numel() for to, _ in moves]


@triton.jit  # type: ignore[untyped-decorator]
def _exchange(  # type: ignore[no-untyped-def]
    first_to, first_from, first_sizes, then_to, then_from, then_sizes, signals, own, rank,
    rings: tl.constexpr, blocks: tl.constexpr, readers: tl.constexpr, chunk: tl.constexpr,
):  # fmt: skip
    _move(first_to, first_from, first_sizes, blocks, chunk)
    tl.debug_barrier()  # All threads of this block have written.
    # The number of this exchange, from the signals of this rank's blocks to itself: a replayed graph counts on as well.
    turn = tl.atomic_add(own + rank, rings // blocks, sem="relaxed", scope="gpu") // rings + 1
    for other in tl.static_range(len(signals)):
        if other != rank:
            tl.atomic_add(signals[other] + rank, rings // blocks, sem="release", scope="sys")
    if tl.program_id(0) < readers:
        for other in tl.static_range(len(signals)):
            if other != rank:
                while tl.atomic_add(own + other, 0, sem="acquire", scope="sys") < turn * rings:
                    pass
        tl.debug_barrier()
        _move(then_to, then_from, then_sizes, readers, chunk)


@triton.jit  # type: ignore[untyped-decorator]
def _move(to, source, sizes, blocks: tl.constexpr, chunk: tl.constexpr):  # type: ignore[no-untyped-def]
    """This block's share. Each move gets the same number of blocks, so that all moves proceed at once."""
    for move in tl.static_range(len(to)):
        block = tl.program_id(0) - move * (blocks // len(to))
        if (block >= 0) & (block < blocks // len(to)):
            for start in range(block * chunk, sizes[move], blocks // len(to) * chunk):
                place = start + tl.arange(0, chunk)
                inside = place < sizes[move]
                tl.store(to[move] + place, tl.load(source[move] + place, mask=inside), mask=inside)
