"""Schedules check themselves and know their sizes."""

from __future__ import annotations

import pytest

from plans import causal
from ringattn_core.plan.layout import zigzag
from ringattn_core.plan.route import gather, ring, waves
from ringattn_core.plan.schedule import KeySlice, Launch, Step
from ringattn_core.plan.tile import Tile


def test_a_launch_is_the_box_around_its_tiles() -> None:
    launch = Launch((Tile(range(2, 4), range(0, 3)), Tile(range(6, 7), range(3, 9))))
    assert (launch.rows, launch.columns, launch.window) == (range(2, 7), range(0, 9), (-1, -1))
    assert not launch.dense_rows and launch.dense_columns
    assert launch.area == 6 + 6


@pytest.mark.parametrize(
    "second",
    [
        Tile(range(3, 6), range(4, 8)),  # a row twice
        Tile(range(4, 8), range(3, 6)),  # a column twice
        Tile(range(4, 8), range(4, 8), high=0),  # another window
    ],
)
def test_tiles_that_no_kernel_takes_together_are_no_launch(second: Tile) -> None:
    with pytest.raises(AssertionError):
        Launch((Tile(range(4), range(4)), second))


def test_a_step_counts_the_rows_that_it_needs() -> None:
    key_slices = (KeySlice(1, range(0, 4), 0), KeySlice(2, range(3, 5), 4))
    step = Step(1, (1, 2), (2, 1), key_slices, (Launch((Tile(range(2), range(6), high=0),)),))
    assert (step.fetched, step.area) == (6, 1 + 2)
    assert [key_slice.columns for key_slice in key_slices] == [range(0, 4), range(4, 6)]


def test_of_one_source_the_buffer_is_a_shard_and_of_several_what_is_needed() -> None:
    first, second = causal(zigzag, waves(2), 4, 16)[0].steps
    schedule = causal(zigzag, waves(2), 4, 16)[0]
    assert (schedule.buffer_length(first), schedule.buffer_length(second)) == (4, 12)
    assert second.fetched == 12


def test_a_schedule_counts_its_tokens_and_cells() -> None:
    schedules = causal(zigzag, gather, 3, 13, 0, 5)
    assert sum(schedule.area for schedule in schedules) == 13 * 14 // 2 + 5 * 6 // 2
    assert sum(schedule.query_length for schedule in schedules) == 18
    assert max(schedule.key_length for schedule in schedules) == schedules[0].shard_size


def test_only_rings_shift() -> None:
    assert [causal(zigzag, route, 4, 16)[0].shifts for route in (ring, waves(2), waves(4), gather)] == [
        True,
        False,
        True,
        False,
    ]
