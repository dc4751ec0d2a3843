"""Boxes hold every piece, one for each source, and only where the pieces are many."""

from __future__ import annotations

import pytest

from ringattn_core.plan.coalesced_copies import coalesced_copies
from ringattn_core.plan.layout import zigzag
from ringattn_core.plan.planner import plan
from ringattn_core.plan.route import Route, gather, waves
from ringattn_core.plan.schedule import KeySlice, Step

MANY, FEW = tuple(range(0, 1240, 40)), (0, 400, 1240)


@pytest.mark.parametrize("route", [gather, waves(2), waves(3)], ids=["gather", "waves(2)", "waves(3)"])
@pytest.mark.parametrize("rank", range(4))
def test_a_box_for_each_source_around_all_its_pieces(route: Route, rank: int) -> None:
    step = plan(zigzag, route, MANY, MANY, rank, 4, window=(-1, 0)).steps[-1]
    found = coalesced_copies(step, rank)
    assert found is not None and {box.source for box in found} == {key_slice.source for key_slice in step.key_slices}
    assert [box.source == rank for box in found] == sorted(box.source == rank for box in found), "its own comes last"
    assert [box.offset for box in found] == [0, *(box.columns.stop for box in found[:-1])], "they lie side by side"
    for box in found:
        rows = [row for key_slice in step.key_slices if key_slice.source == box.source for row in key_slice.rows]
        assert (box.rows.start, box.rows.stop - 1) == (min(rows), max(rows))


def test_pieces_that_are_far_apart_travel_as_they_are() -> None:
    """Through a short window each of four ranks needs the ends of documents only."""
    borders = tuple(range(0, 48 * 16384 + 1, 16384))
    step = plan(zigzag, waves(2), borders, borders, 1, 4, window=(127, 0)).steps[-1]
    assert len(step.key_slices) > 8 * len(step.sources) and coalesced_copies(step, 1) is None


def step_of(counts: dict[int, int], gap: int, more: int = 0) -> Step:
    """For each source so many pieces of 4 rows, with so many rows between them, and some more before the last."""
    key_slices = [
        KeySlice(source, range(start + extra, start + extra + 4), 4 * piece)
        for source, count in counts.items()
        for piece in range(count)
        for start, extra in [(piece * (4 + gap), more * (piece == count - 1))]
    ]
    return Step(1, tuple(counts), (), tuple(key_slices), ())


@pytest.mark.parametrize("counts", [{1: 9}, {1: 8, 2: 9}, {1: 9, 2: 8}], ids=str)
def test_a_copy_that_is_saved_is_worth_512_rows(counts: dict[int, int]) -> None:
    """As many pieces less as there are gaps between those of one source; and 8 for each source are few."""
    assert coalesced_copies(step_of(counts, 512), 0) is not None
    assert coalesced_copies(step_of(counts, 512, more=1), 0) is None
    assert coalesced_copies(step_of(dict.fromkeys(counts, 8), 0), 0) is None


def test_few_pieces_travel_as_they_are() -> None:
    for schedule in (plan(zigzag, gather, FEW, FEW, rank, 4, window=(-1, 0)) for rank in range(4)):
        assert all(coalesced_copies(step, schedule.cp_rank) is None for step in schedule.steps)
