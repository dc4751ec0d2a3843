"""Ranges as indices: the same rows and columns, as a slice wherever that will do."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from ringattn_core.plan.layout import LAYOUTS, Sharding
from ringattn_core.plan.schedule import Launch
from ringattn_core.plan.tile import Tile
from ringattn_core.run import index
from ringattn_core.run.index import column_index, places, row_index, sequence_index, stream_index

CPU = torch.device("cpu")


def test_a_slice_where_there_is_no_gap() -> None:
    launch = Launch((Tile(range(2, 5), range(0, 3)), Tile(range(5, 6), range(4, 7))))
    assert row_index(launch, CPU) == slice(2, 6)
    columns = column_index(launch, CPU)
    assert isinstance(columns, torch.Tensor) and columns.tolist() == [0, 1, 2, 4, 5, 6]


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


def launch_of(start: int) -> Launch:
    return Launch((Tile(range(start, start + 2), range(3)), Tile(range(start + 5, start + 6), range(4, 7))))


def alive(tensors: list[weakref.ref[torch.Tensor]]) -> list[bool]:
    gc.collect()
    return [reference() is not None for reference in tensors]


def test_an_index_goes_with_its_launch_unless_a_graph_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made before or during the capture: a graph that was captured reads it whenever it is replayed."""
    captured = dict[int, object]()
    monkeypatch.setattr(index, "_captured", captured)
    launches = [launch_of(start) for start in range(3)]
    found = [weakref.ref(row_index(launch, CPU)) for launch in launches[:2]]
    monkeypatch.setattr(index, "capturing", lambda: True)
    for launch in launches[1:]:
        found.append(weakref.ref(row_index(launch, CPU)))  # One is there already, the other is made now.
    monkeypatch.setattr(index, "capturing", lambda: False)
    del launch
    launches.clear()
    assert alive(found) == [False, True, True, True] and found[1]() is found[2]()
    captured.clear()
    assert not any(alive(found))


def test_what_is_kept_by_its_use_stays_for_a_graph_too(monkeypatch: pytest.MonkeyPatch) -> None:
    captured = dict[int, object]()
    monkeypatch.setattr(index, "_captured", captured)
    monkeypatch.setattr(index, "capturing", lambda: True)
    for make in (stream_index, sequence_index):
        found = weakref.ref(make(Sharding(LAYOUTS["striped"], (0, 11), 2), 1, CPU))
        make.__wrapped__.cache_clear()  # type: ignore[attr-defined]
        assert alive([found]) == [True]
    captured.clear()
    assert alive([found]) == [False]


def test_graphs_of_ever_new_plans_are_an_error_before_memory_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "_captured", dict[int, object]())
    monkeypatch.setattr(index, "_MOST_CAPTURED", 2)
    monkeypatch.setattr(index, "capturing", lambda: True)
    launches = [launch_of(start) for start in range(3)]
    for launch in (*launches[:2], *launches[:2]):
        row_index(launch, CPU)
    with pytest.raises(RuntimeError, match="capture one graph for each of a few packings, and use them again"):
        row_index(launches[2], CPU)


def test_what_inference_made_is_of_use_in_training() -> None:
    with torch.inference_mode():
        positions = stream_index(Sharding(LAYOUTS["striped"], (0, 5), 2), 1, CPU)
    x = torch.zeros(5, requires_grad=True)
    x[positions].sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0, 1, 0, 1, 0]
