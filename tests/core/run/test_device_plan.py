"""A device plan makes each index tensor once, is freed with its schedule, and stays for a CUDA graph that reads it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from ringattn_core.plan import planner
from ringattn_core.plan.layout import LAYOUTS, Sharding, zigzag
from ringattn_core.plan.planner import plan
from ringattn_core.plan.route import ring
from ringattn_core.plan.schedule import Launch, Schedule
from ringattn_core.plan.tile import Tile
from ringattn_core.run import device_plan as module
from ringattn_core.run import index
from ringattn_core.run.device_plan import DevicePlan, device_plan, planned
from ringattn_core.run.index import row_index, sequence_index, stream_index

CPU = torch.device("cpu")
GAPS = Launch((Tile(range(2), range(3)), Tile(range(5, 6), range(4, 7))))


def schedule_of(number: int) -> Schedule:
    borders = (0, 8, 20 + number)
    return plan(zigzag, ring, borders, borders, 1, 2)


def filled(schedule: Schedule) -> list[weakref.ref[Any]]:
    """A plan with an index tensor in it."""
    indices = device_plan(schedule, CPU)
    return [weakref.ref(indices), weakref.ref(row_index(indices, GAPS).whole)]


def alive(references: Sequence[weakref.ref[Any]]) -> list[bool]:
    gc.collect()
    return [reference() is not None for reference in references]


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> dict[int, object]:
    """What graphs of this test read."""
    mine = dict[int, object]()
    monkeypatch.setattr(module, "_captured", mine)
    return mine


def test_a_result_is_made_once_for_a_plan_and_its_arguments() -> None:
    calls = list[tuple[DevicePlan, Launch, int]]()

    @planned
    def noted(indices: DevicePlan, launch: Launch, number: int) -> None:
        calls.append((indices, launch, number))

    first, second = DevicePlan(CPU), DevicePlan(CPU)
    for indices, number in ((first, 1), (first, 1), (first, 2), (second, 1), (first, 2)):
        assert noted(indices, GAPS, number) is None
    assert calls == [(first, GAPS, 1), (first, GAPS, 2), (second, GAPS, 1)]


def test_a_schedule_has_one_plan_on_each_device() -> None:
    schedule = schedule_of(0)
    indices = device_plan(schedule, CPU)
    assert device_plan(schedule, CPU) is indices and indices.schedule is schedule
    assert device_plan(schedule, torch.device("meta")) is not indices
    with pytest.raises(AssertionError, match="only passes of a schedule"):
        _ = DevicePlan(CPU).schedule


def test_plans_of_a_thousand_batches_are_freed_with_their_schedules() -> None:
    found = [reference for number in range(1000) for reference in filled(schedule_of(number))]
    planner._planned.cache_clear()
    assert not any(alive(found))


def test_a_plan_that_a_graph_reads_is_not_freed(captured: dict[int, object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Made before or during the capture: a graph that was captured reads it whenever it is replayed."""
    schedules = [schedule_of(number) for number in range(3)]
    found = filled(schedules[0]) + filled(schedules[1])
    monkeypatch.setattr(module, "capturing", lambda: True)
    for schedule in schedules[1:]:
        found += filled(schedule)  # One plan is there already, the other is made now.
    monkeypatch.setattr(module, "capturing", lambda: False)
    del schedule
    schedules.clear()
    planner._planned.cache_clear()
    assert alive(found) == [False] * 2 + [True] * 6 and found[2]() is found[4]()
    captured.clear()
    assert not any(alive(found))


def test_positions_that_a_graph_reads_are_not_freed(
    captured: dict[int, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "capturing", lambda: True)
    for make, memory in ((stream_index, index._stream_index), (sequence_index, index._sequence_index)):
        found = weakref.ref(make(Sharding(LAYOUTS["striped"], (0, 11), 2), 1, CPU))
        memory.cache_clear()
        assert alive([found]) == [True]
    captured.clear()
    assert alive([found]) == [False]


@pytest.mark.usefixtures("captured")
def test_graphs_of_ever_new_plans_are_an_error_before_memory_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_CAPTURED", 2)
    monkeypatch.setattr(module, "capturing", lambda: True)
    schedules = [schedule_of(number) for number in range(3)]
    for schedule in (*schedules[:2], *schedules[:2]):
        device_plan(schedule, CPU)
    with pytest.raises(RuntimeError, match="capture one graph for each of a few packings, and use them again"):
        device_plan(schedules[2], CPU)


def test_what_inference_made_is_of_use_in_training() -> None:
    indices = DevicePlan(CPU)
    with torch.inference_mode():
        rows = row_index(indices, GAPS).whole
    x = torch.zeros(6, requires_grad=True)
    x[rows].sum().backward()
    assert x.grad is not None and x.grad.tolist() == [1, 1, 0, 0, 0, 1]
