"""Row writes, by which the fused sums of a GPU accumulate, against counting row by row."""

from __future__ import annotations

import doctest
from collections import Counter

from hypothesis import given, settings

from plans import Case, cases
from ringattn_core.plan import row_writes as module
from ringattn_core.plan.row_writes import RowWrites, column_writes, row_writes
from ringattn_core.plan.schedule import Launch


def check(writes: RowWrites, found: list[tuple[Launch, list[int]]], length: int) -> None:
    """Every launch touches the rows that it is said to, each in its turn, and the last is the last."""
    total, so_far = Counter(row for _, rows in found for row in rows), Counter[int]()
    for launch, rows in found:
        said = [(row, write_index, last) for run, write_index, last in writes.of[launch] for row in run]
        assert said == [(row, so_far[row], so_far[row] + 1 == total[row]) for row in rows]
        so_far.update(rows)
    assert [row for run in writes.unwritten for row in run] == [row for row in range(length) if not total[row]]
    assert writes.most == max(total.values(), default=0)


@settings(max_examples=100, deadline=None)
@given(cases())
def test_rows_and_columns_are_touched_in_turn(case: Case) -> None:
    for schedule in case.plan():
        launches = [launch for step in schedule.steps for launch in step.launches]
        rows = [(launch, [row for tile in launch.tiles for row in tile.q]) for launch in launches]
        check(row_writes(schedule), rows, schedule.query_length)
        for step in schedule.steps:
            length = schedule.buffer_length(step)
            columns = [(launch, [column for tile in launch.tiles for column in tile.k]) for launch in step.launches]
            check(column_writes(step, length), columns, length)


def test_the_example_in_the_docstring() -> None:
    assert doctest.testmod(module) == (0, 7)
