"""What one-sided passes copy: no more than is needed, to places that no two copies share."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, combinations

import pytest
import torch

from ringattn_comms import copies as module
from ringattn_comms.copies import Shapes, buffer_layout, copies, gradient_places, outgoing
from ringattn_comms.shared_buffer import BufferSlot
from ringattn_core.plan.layout import balanced, contiguous, zigzag
from ringattn_core.plan.planner import plan
from ringattn_core.plan.route import Route, gather, ring, waves
from ringattn_core.plan.schedule import Schedule
from ringattn_core.run.device_plan import DevicePlan, device_plan

DOCUMENTS = (0, *accumulate([3, 9, 4, 1, 7, 8]))
MANY = tuple(range(0, 40 * 12 + 1, 12))  # one copy takes all slices of a source
SHAPES = Shapes((2, 3), (2, 5), torch.float32)
LAYOUTS, ROUTES = [zigzag, contiguous, balanced], [waves(2), ring, gather]


def on_cpu(schedule: Schedule) -> DevicePlan:
    return device_plan(schedule, torch.device("cpu"))


def planned(layout, route: Route, window: int = -1, size: int = 4, borders=DOCUMENTS) -> list[Schedule]:
    return [plan(layout, route, borders, borders, rank, size, window=(window, 0)) for rank in range(size)]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("route", ROUTES, ids=str)
@pytest.mark.parametrize("window", [-1, 3])
def test_a_rank_lays_out_what_others_fetch_and_no_more(layout, route: Route, window: int) -> None:
    plans, parts = planned(layout, route, window), 0
    for rank, schedule in enumerate(plans):
        fetched = [
            key_slice.rows
            for other in plans
            for step in other.steps
            for key_slice in step.key_slices
            if key_slice.source == rank and other is not schedule
        ]
        box = slice(min(rows.start for rows in fetched), max(rows.stop for rows in fetched)) if fetched else slice(0, 0)
        laid_out, slots = outgoing(on_cpu(schedule), SHAPES)
        assert laid_out == box
        assert slots == buffer_layout(on_cpu(schedule), SHAPES).keys.rows(range(box.start, box.stop))
        parts += 0 < box.stop - box.start < schedule.key_length
    # Each sequence divided into four by `contiguous` gives a part that later ranks see whole.
    assert bool(parts) == (layout is not contiguous)


def test_of_many_sequences_the_whole_shard_is_laid_out() -> None:
    borders = tuple(range(0, 4 * 66 + 1, 4))
    schedule = plan(zigzag, waves(2), borders, borders, 0, 2, window=(0, 0))
    assert outgoing(on_cpu(schedule), SHAPES)[0] == slice(0, schedule.key_length)


@pytest.mark.parametrize("size", [2, 5])
def test_no_two_places_of_a_shared_buffer_overlap(size: int) -> None:
    layouts = [buffer_layout(on_cpu(schedule), SHAPES) for schedule in planned(zigzag, ring, size=size)]
    assert all(layout == layouts[0] for layout in layouts), "every rank knows where the others' tensors lie"
    layout = layouts[0]
    for owner in range(size):
        slots = [
            *layout.keys,
            *(slot for sender in range(size) if sender != owner for slot in layout.inbox(sender, owner)),
        ]
        assert len(slots) == 2 * size and layout.size == max(map(end, slots))
        for one, other in combinations(slots, 2):
            assert end(one) <= other.start or end(other) <= one.start


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("route", ROUTES, ids=str)
@pytest.mark.parametrize("borders", [DOCUMENTS, MANY], ids=["few slices", "many"])
def test_keys_come_from_where_their_owner_lays_them_out_and_gradients_go_to_its_inbox(
    layout, route: Route, borders: tuple[int, ...]
) -> None:
    plans = planned(layout, route, size=3, borders=borders)
    for rank, schedule in enumerate(plans):
        for copy in remote_copies(schedule):
            owner = on_cpu(plans[copy.source])
            laid_out, inbox = outgoing(owner, SHAPES)[0], buffer_layout(owner, SHAPES).inbox(rank, copy.source)
            assert laid_out.start <= copy.rows.start < copy.rows.stop <= laid_out.stop
            assert copy.keys == buffer_layout(owner, SHAPES).keys.rows(range(copy.rows.start, copy.rows.stop))
            assert copy.grads == inbox.rows(range(copy.rows.start, copy.rows.stop))
            found = gradient_places(owner)[1][rank]  # the rows of the inbox that the owner adds up
            assert (found[copy.rows] >= 0).any() and ((found < 0) | (found == torch.arange(len(found)))).all()


def remote_copies(schedule: Schedule) -> Iterator[module.Copy]:
    for step in schedule.steps:
        found = copies(on_cpu(schedule), step, SHAPES)
        assert all(copy.source == schedule.cp_rank and copy.grads is None for copy in found.local)
        turns = [(schedule.cp_rank - copy.source) % schedule.cp_size for copy in found.remote]
        assert turns == sorted(turns), "the rank before this one comes first"
        yield from found.remote


def end(slot: BufferSlot) -> int:
    return slot.start + slot.size
