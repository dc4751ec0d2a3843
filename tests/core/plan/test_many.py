"""The quick ways of the planner find what the slow ones find."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plans import Case, cases
from ringattn_core.plan import lines, planner
from ringattn_core.plan.chunks import Chunks
from ringattn_core.plan.layout import Layout, Sharding, chunk_owners, contiguous, zigzag
from ringattn_core.plan.schedule import Schedule


def forget() -> None:
    for cached in (planner.plan, planner._planned, planner._alive, lines.mask, lines.shards):  # type: ignore[attr-defined]
        cached.cache_clear()


def content(schedule: Schedule) -> object:
    steps = [
        (
            *(step.hop, step.sources, step.destinations),
            tuple(step.key_slices),
            [tuple(each.tiles) for each in step.launches],
        )
        for step in schedule.steps
    ]
    return steps, schedule.shard_size, schedule.shifts


@settings(max_examples=200, deadline=None)
@given(cases(), st.sampled_from([contiguous, zigzag]))
def test_columns_of_chunks_are_a_quicker_way_to_the_same_plan(case: Case, layout: Layout) -> None:
    case = replace(case, layout=layout, per_sequence=True)
    forget()
    quick = list(map(content, case.plan()))
    forget()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "chunk_owners", lambda layout, cp_size: None)
        assert list(map(content, case.plan())) == quick
    forget()


@pytest.mark.parametrize("layout", [contiguous, zigzag])
@pytest.mark.parametrize("cp_size", [1, 2, 3, 8])
def test_chunks_are_where_the_layout_puts_them(layout: Layout, cp_size: int) -> None:
    borders = (0, 0, 1, 6, 70, 71, 71)
    sharding = Sharding(layout, borders, cp_size)
    owners = chunk_owners(layout, cp_size)
    assert owners is not None
    chunks = Chunks(borders, owners, cp_size)
    assert chunks.longest() == max(map(sharding.length, range(cp_size)))
    for rank in range(cp_size):
        found = [
            (sequence, start + first, start + last, offset)
            for sequence, start in enumerate(borders[:-1])
            for index, offsets in zip(chunks.held[rank], chunks.offsets(rank), strict=False)
            for first, last in [(chunks.border(index).array()[sequence], chunks.border(index + 1).array()[sequence])]
            for offset in [offsets.array()[sequence]]
            if first < last
        ]
        spans = sharding.spans(rank)
        assert found == [(each.sequence, each.positions.start, each.positions.stop, each.offset) for each in spans]
        assert all(a <= b for a, b in pairwise(chunks.offsets(rank)[-1].array()))
