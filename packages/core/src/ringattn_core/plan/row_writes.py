"""How often each row is written, and in which order: what an accumulation has to read and where it has to write.

The launches of a schedule write a rank's rows one after the other. The first to write a row only stores its result;
the last one can round to the final dtype; only results in between need a wider dtype. Three launches over six rows,
and for each row of a launch how many launches have written it before, with a star on the last:

    row         0   1   2   3   4   5
    launch a    0*  0*  0   0   .   .
    launch b    .   .   1   1*  0   0*
    launch c    .   .   2*  .   1*  .

>>> from ringattn_core.plan.tile import Tile
>>> rows = [range(4)], [range(2, 6)], [range(2, 3), range(4, 5)]
>>> a, b, c = (Launch(tuple(Tile(part, part) for part in parts)) for parts in rows)
>>> writes = _writes([(each, [tile.q for tile in each.tiles]) for each in (a, b, c)], length=6)
>>> [tuple(write) for write in writes.of[a]]  # rows, write_index, last
[(range(0, 2), 0, True), (range(2, 4), 0, False)]
>>> [tuple(write) for write in writes.of[b]]
[(range(2, 3), 1, False), (range(3, 4), 1, True), (range(4, 5), 0, False), (range(5, 6), 0, True)]
>>> [tuple(write) for write in writes.of[c]], writes.unwritten, writes.most
([(range(2, 3), 2, True), (range(4, 5), 1, True)], [], 3)
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

from ringattn_core.plan.memo import by_owner
from ringattn_core.plan.schedule import Launch, Schedule, Step


class RowWrite(NamedTuple):
    """A run of rows that a launch writes after `write_index` other launches, and whether no other follows."""

    rows: range
    write_index: int
    last: bool


class RowWrites(NamedTuple):
    """What all launches write."""

    of: dict[Launch, list[RowWrite]]
    unwritten: list[range]  # runs of rows
    most: int  # how many launches write the row that is written most


@by_owner
def row_writes(schedule: Schedule) -> RowWrites:
    """Of a rank's queries, by the launches of its schedule."""
    launches = [launch for step in schedule.steps for launch in step.launches]
    return _writes([(launch, [tile.q for tile in launch.tiles]) for launch in launches], schedule.query_length)


@by_owner
def column_writes(step: Step, length: int) -> RowWrites:
    """Of the keys in a step's buffer of some length, by the step's launches."""
    parts = [(launch, [tile.k for tile in launch.tiles]) for launch in step.launches]
    return _writes(parts, length)


def _writes(parts: Sequence[tuple[Launch, list[range]]], length: int) -> RowWrites:
    borders = sorted({0, length, *(end for _, runs in parts for run in runs for end in (run.start, run.stop))})
    count = [0] * (len(borders) - 1)  # how many launches have written the rows between two borders
    spans = [
        [range(bisect_left(borders, run.start), bisect_left(borders, run.stop)) for run in runs] for _, runs in parts
    ]
    total = list(count)
    for runs in spans:
        for index in (index for run in runs for index in run):
            total[index] += 1
    found: dict[Launch, list[RowWrite]] = {}
    for (launch, _), runs in zip(parts, spans, strict=True):
        mine: list[RowWrite] = []
        for index in (index for run in runs for index in run):
            write_index, rows = count[index], range(borders[index], borders[index + 1])
            _extend(mine, RowWrite(rows, write_index, write_index + 1 == total[index]))
            count[index] += 1
        found[launch] = mine
    unwritten = [range(borders[i], borders[i + 1]) for i, times in enumerate(total) if times == 0]
    return RowWrites(found, unwritten, max(total, default=0))


def _extend(writes: list[RowWrite], write: RowWrite) -> None:
    """Add a write; one that continues the last with the same numbers makes it longer."""
    if writes and writes[-1].rows.stop == write.rows.start and writes[-1][1:] == write[1:]:
        write = write._replace(rows=range(writes.pop().rows.start, write.rows.stop))
    writes.append(write)
