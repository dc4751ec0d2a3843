"""What the cells of a picture show: where there is no room for every token, one of each of many equal parts."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ringattn_core.plan.layout import Sharding
from ringattn_core.plan.schedule import Schedule, Step
from ringattn_core.plan.tile import chunk


@dataclass(frozen=True, slots=True)
class Raster:
    """A picture of the attention matrix: rows of queries, columns of keys, both in the order of the stream."""

    hops: list[list[int | None]]  # of every cell, the hop on which it is computed; None where the mask is dead
    query_ranks: list[int]  # who holds the query of a row
    key_ranks: list[int]
    tokens: tuple[int, int]  # how many queries and keys one cell stands for, at most


def raster(schedules: Sequence[Schedule], size: int) -> Raster:
    """The matrix of all ranks' schedules in at most `size` rows and columns."""
    queries, keys = schedules[0].queries, schedules[0].keys
    rows, columns = (samples(sharding.cu_seqlens[-1], size, sharding.cp_size) for sharding in (queries, keys))
    held_rows = [held(queries, rank, rows) for rank in range(queries.cp_size)]
    held_columns = [held(keys, rank, columns) for rank in range(keys.cp_size)]
    hops: list[list[int | None]] = [[None] * len(columns) for _ in rows]
    for schedule in schedules:
        for step in schedule.steps:
            for row, column in _live(step, held_rows[schedule.cp_rank], held_columns):
                hops[row][column] = step.hop
    return Raster(
        hops,
        _owners(held_rows, len(rows)),
        _owners(held_columns, len(columns)),
        (_largest(queries.cu_seqlens[-1], len(rows)), _largest(keys.cu_seqlens[-1], len(columns))),
    )


def samples(length: int, most: int, period: int) -> list[int]:
    """A position from each of at most `most` equal parts of `length` tokens.

    The n-th is the n-th modulo `period`, the number of ranks: so the stripes of all ranks are seen, in their order.
    """
    parts = min(length, most)
    found = (chunk(range(length), index, parts) for index in range(parts))
    return [part[(index - part.start) % period % len(part)] for index, part in enumerate(found)]


Held = list[tuple[int, int]]  # (local index, number) of the samples that a rank holds, sorted


def held(sharding: Sharding, rank: int, positions: Sequence[int]) -> Held:
    """Which of these positions, in ascending order, a rank holds, and where."""
    found, offset = [], 0
    for _, run in sharding.runs(rank):
        for number in range(bisect_left(positions, run.start), bisect_left(positions, run.stop)):
            if positions[number] in run:
                found.append((offset + run.index(positions[number]), number))
        offset += len(run)
    return found


def sequence_at(sharding: Sharding, position: int) -> int:
    """The sequence to which a position of the stream belongs."""
    return bisect_right(sharding.cu_seqlens, position) - 1


def _live(step: Step, rows: Held, columns: Sequence[Held]) -> Iterator[tuple[int, int]]:
    """The samples that a step computes, by their numbers."""
    buffer = sorted(
        (local + key_slice.offset - key_slice.rows.start, number)
        for key_slice in step.key_slices
        for local, number in _within(columns[key_slice.source], key_slice.rows)
    )
    for tile in (tile for launch in step.launches for tile in launch.tiles):
        across = _within(buffer, tile.k)
        for row, number in _within(rows, tile.q) if across else ():
            yield from ((number, other) for column, other in across if tile.low <= column - row <= tile.high)


def _within(found: Held, part: range) -> Held:
    return found[bisect_left(found, (part.start, 0)) : bisect_left(found, (part.stop, 0))]


def _owners(found: Sequence[Held], count: int) -> list[int]:
    owners = [0] * count
    for rank, its in enumerate(found):
        for _, number in its:
            owners[number] = rank
    return owners


def _largest(length: int, parts: int) -> int:
    return -(-length // parts) if parts else 0
