"""Small messages by the multiprocessors: one kernel writes, rings at all ranks, waits until all have rung, and reads.

A barrier is a kernel of its own, and a copy engine takes its time to begin each copy. Here a block of threads goes from
its writes to its reads as soon as the blocks of all other ranks have written, which takes about as long as a message
between two GPUs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ringattn_comms.window import Move, copy

_RINGS = 64  # that every rank makes in an exchange, whatever the number of its blocks: they divide it
_MOST = 8  # moves that one kernel makes, before and after: more would only make it longer to compile


class _Grid(NamedTuple):
    blocks: int
    chunk: int  # elements that a block moves at once
    warps: int


_WIDE = _Grid(64, 8192, 16)  # fills a link as soon as it can
# Attention of small shards fills a GPU once or twice over: multiprocessors that it lacks would cost it a whole round.
_NARROW = _Grid(4, 65536, 32)
_SILENT = _Grid(1, 1, 1)  # moves nothing


def exchange(
    first: Sequence[Move], then: Sequence[Move], bells: tuple[Tensor, ...], rank: int, *, beside: bool
) -> None:
    """As of `Window.exchange`, on the current stream.

    `bells` are one int64 tensor in every rank's memory, where rank r counts in place r, from 0, all that it has rung.
    """
    first, others = _movable(first)
    then, later = _movable(then)
    copy(others)
    blocks, chunk, warps = (_NARROW if beside else _WIDE) if first or then else _SILENT
    arguments = [tuple(part) for moves in (first, then) for part in _columns(moves)]
    _exchange[(blocks,)](*arguments, bells, bells[rank], rank, _RINGS, blocks, chunk, num_warps=warps)
    copy(later)


def _movable(moves: Sequence[Move]) -> tuple[list[Move], list[Move]]:
    """Those for the kernel, and the others: it moves what lies in one piece, and not more than some at once."""
    whole = [move for move in moves if all(x.is_contiguous() for x in move)][:_MOST]
    return whole, [move for move in moves if not any(move is other for other in whole)]


def _columns(moves: Sequence[Move]) -> tuple[list[Tensor], list[Tensor], list[int]]:
    return [to for to, _ in moves], [source for _, source in moves], [to.numel() for to, _ in moves]


@triton.jit  # type: ignore[untyped-decorator]
def _exchange(  # type: ignore[no-untyped-def]
    first_to, first_from, first_sizes, then_to, then_from, then_sizes, bells, own, rank,
    rings: tl.constexpr, blocks: tl.constexpr, chunk: tl.constexpr,
):  # fmt: skip
    _move(first_to, first_from, first_sizes, blocks, chunk)
    tl.debug_barrier()  # All threads of this block have written.
    # Which exchange this is, by what this rank's blocks have rung at home: memory that a replayed graph finds as well.
    turn = tl.atomic_add(own + rank, rings // blocks, sem="relaxed", scope="gpu") // rings + 1
    for other in tl.static_range(len(bells)):
        if other != rank:
            tl.atomic_add(bells[other] + rank, rings // blocks, sem="release", scope="sys")
    for other in tl.static_range(len(bells)):
        if other != rank:
            while tl.atomic_add(own + other, 0, sem="acquire", scope="sys") < turn * rings:
                pass
    tl.debug_barrier()
    _move(then_to, then_from, then_sizes, blocks, chunk)


@triton.jit  # type: ignore[untyped-decorator]
def _move(to, source, sizes, blocks: tl.constexpr, chunk: tl.constexpr):  # type: ignore[no-untyped-def]
    """This block's share of every move."""
    for move in tl.static_range(len(to)):
        for start in range(tl.program_id(0) * chunk, sizes[move], blocks * chunk):
            place = start + tl.arange(0, chunk)
            inside = place < sizes[move]
            tl.store(to[move] + place, tl.load(source[move] + place, mask=inside), mask=inside)
