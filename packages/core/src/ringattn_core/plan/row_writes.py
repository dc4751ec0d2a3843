"""How often each row is touched, in which order: what a fold has to read and where it has to write.

The launches of a schedule touch a rank's rows one after the other. The first to touch a row only has to leave its own
result there; the last one can round to the final dtype; only what lies between needs a wider place.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

from ringattn_core.plan.memo import by_owner
from ringattn_core.plan.schedule import Launch, Schedule, Step


class RowWrite(NamedTuple):
    """A run of rows that a launch touches for the `write_index`-th time, counted from 0, and perhaps for the last."""

    rows: range
    write_index: int
    last: bool


class RowWrites(NamedTuple):
    """What all launches touch."""

    of: dict[Launch, list[RowWrite]]
    unwritten: list[range]  # runs of rows
    most: int  # how often the most touched row is


@by_owner
def row_writes(schedule: Schedule) -> RowWrites:
    """Of a rank's queries, by the launches of one head group."""
    launches = [launch for step in schedule.first_group for launch in step.launches]
    return _writes([(launch, [tile.q for tile in launch.tiles]) for launch in launches], schedule.query_length)


@by_owner
def column_writes(step: Step, length: int) -> RowWrites:
    """Of the keys in a step's buffer of some length, by the step's launches."""
    parts = [(launch, [tile.k for tile in launch.tiles]) for launch in step.launches]
    return _writes(parts, length)


def _writes(parts: Sequence[tuple[Launch, list[range]]], length: int) -> RowWrites:
    borders = sorted({0, length, *(end for _, runs in parts for run in runs for end in (run.start, run.stop))})
    count = [0] * (len(borders) - 1)  # how often the rows between two borders have been touched
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
    """Add a touch; one that continues the last in the same way makes it longer."""
    if writes and writes[-1].rows.stop == write.rows.start and writes[-1][1:] == write[1:]:
        write = write._replace(rows=range(writes.pop().rows.start, write.rows.stop))
    writes.append(write)
