"""Ranges as indices: the same rows and columns, as a slice wherever that will do."""

from __future__ import annotations

import pytest
import torch

from ringattn_core.plan.layout import LAYOUTS, Sharding
from ringattn_core.plan.schedule import Launch
from ringattn_core.plan.tile import Tile
from ringattn_core.run.device_plan import DevicePlan
from ringattn_core.run.index import LaunchIndex, column_index, places, row_index, sequence_index, stream_index

CPU = torch.device("cpu")


def test_a_slice_where_there_is_no_gap() -> None:
    launch = Launch((Tile(range(2, 5), range(0, 3)), Tile(range(5, 6), range(4, 7))))
    indices = DevicePlan(CPU)
    assert row_index(indices, launch) == LaunchIndex(slice(2, 6), slice(0, 4), 4)
    columns = column_index(indices, launch)
    assert all(isinstance(index, torch.Tensor) and index.tolist() == [0, 1, 2, 4, 5, 6] for index in columns[:2])
    assert columns.length == 7 and not columns.covers(7)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_stream_positions_of_every_rank(layout: str) -> None:
    sharding = Sharding(LAYOUTS[layout], (0, 7, 7, 8), 3)
    for rank in range(3):
        positions = stream_index(sharding, rank, CPU)
        assert positions.dtype == torch.int64 and positions.tolist() == sharding.positions(rank)


@pytest.mark.parametrize("per_sequence", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_sequence_of_every_token(layout: str, per_sequence: bool) -> None:
    sharding = Sharding(LAYOUTS[layout], (0, 7, 7, 8), 3, per_sequence)
    for rank in range(3):
        found = sequence_index(sharding, rank, CPU).tolist()
        assert found == [2 if position == 7 else 0 for position in sharding.positions(rank)]


def test_where_rows_lie_elsewhere() -> None:
    found = places([(range(1, 3), 5), (range(4, 5), 0)], 6, CPU)
    assert found.dtype == torch.int32 and found.tolist() == [-1, 5, 6, -1, 0, -1]
    assert places([], 2, CPU).tolist() == [-1, -1]


def test_what_inference_made_is_of_use_in_training() -> None:
    with torch.inference_mode():
        positions = stream_index(Sharding(LAYOUTS["striped"], (0, 5), 2), 1, CPU)
    x = torch.zeros(5, requires_grad=True)
    x[positions].sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0, 1, 0, 1, 0]
