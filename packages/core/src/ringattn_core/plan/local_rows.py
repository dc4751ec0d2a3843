"""Query rows whose visible keys are all local: they are finished before remote keys arrive."""

from __future__ import annotations

from itertools import pairwise

from ringattn_core.plan.lines import Line, Mask, Shard
from ringattn_core.plan.tile import FAR


def split(mask: Mask, sequence: int, queries: list[Line], own: list[Line]) -> tuple[list[Line], list[Line]]:
    """The rows that see local keys only, and those that see remote keys too.

    In a layout with a stride, all rows count as the latter, unless the rank holds all keys of the sequence.
    """
    first, stop = mask.borders[sequence : sequence + 2]
    local_rows, others, borders = list[Line](), list[Line](), [-FAR]
    for start, end in _stretches(mask.stride, own, first, stop):
        # There are no keys before the first of the sequence, nor after the last.
        low, high = start + mask.left if start > first else -FAR, end - mask.right if end < stop else FAR
        if low < high:
            borders += [low, high]
    borders.append(FAR)
    if len(borders) == 2:
        return [], queries
    for line in queries:
        for index, (low, high) in enumerate(pairwise(borders)):
            (local_rows if index % 2 else others).extend(_cut(mask, sequence, line, low, high))
    return local_rows, others


def _stretches(stride: int, lines: list[Line], first: int, stop: int) -> list[tuple[int, int]]:
    """The (start, stop) of the runs without a gap that lines of keys of a sequence form together."""
    if len(lines) == 1 and stride == 1:
        return [(lines[0][0], lines[0][0] + lines[0][1])]
    if stride > 1:
        return [(first, stop)] if sum(length for _, length, *_ in lines) == stop - first else []
    runs: list[tuple[int, int]] = []
    for start, length, *_ in sorted(lines):
        begin = runs.pop()[0] if runs and runs[-1][1] == start else start
        runs.append((begin, start + length))
    return runs


def _cut(mask: Mask, sequence: int, line: Line, begin: int, end: int) -> list[Line]:
    """The part of a line of queries whose diagonal keys are from `begin` to before `end`."""
    start, length, offset, rank = line
    stands, stride = start + mask.shift[sequence], mask.stride
    low, high = max(0, -((stands - begin) // stride)), min(length, -((stands - end) // stride))
    if high - low == length:
        return [line]
    return [(start + low * stride, high - low, offset + low, rank)] if low < high else []


def default_early_rows(rows: int) -> int:
    """How many of a rank's rows start before remote keys arrive, so that a forward pass has work meanwhile.

    An eighth, in whole blocks of a GPU's kernels: measured on two H200s (dev/LOG.md, 2026-11-26). Fewer than 256 take
    longer to launch and to merge than the keys take to arrive.
    """
    return rows // 8 // 256 * 256


def with_early_rows(stride: int, local_rows: Shard, others: Shard, rows: int) -> tuple[Shard, Shard]:
    """The rows that wait for remote keys, and the early rows among them, which start on local keys.

    With the early rows the local rows are `rows` in all. They are the last stored rows of the rank's longest sequence,
    which see the most keys in the built-in layouts; if that sequence has too few there are none.
    """
    lengths = {sequence: sum(length for _, length, *_ in lines) for sequence, lines in others.items()}
    longest = max(lengths, key=lambda sequence: lengths[sequence], default=0)
    count = rows - sum(length for lines in local_rows.values() for _, length, *_ in lines)
    if not 0 < count <= lengths.get(longest, 0):
        return others, {}
    rest, early = list[Line](), list[Line]()
    for start, length, offset, rank in reversed(others[longest]):
        kept = max(length - count, 0)
        count -= length - kept
        if kept:
            rest.insert(0, (start, kept, offset, rank))
        if kept < length:
            early.insert(0, (start + kept * stride, length - kept, offset + kept, rank))
    return others | {longest: rest}, {longest: early}
