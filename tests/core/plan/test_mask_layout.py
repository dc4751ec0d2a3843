"""Shares of a mask: of all tokens, equal in tokens and in live cells, to a row."""

from __future__ import annotations

import doctest
import pickle
from collections.abc import Sequence
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringattn_core.look.verify import verify
from ringattn_core.plan import mask_layout, masks
from ringattn_core.plan.layout import Layout, Sharding, balanced, zigzag
from ringattn_core.plan.mask import Mask
from ringattn_core.plan.mask_layout import balanced_for, layout_for
from ringattn_core.plan.mask_planner import plan_mask
from ringattn_core.plan.route import ring

LENGTHS = st.lists(st.integers(1, 400), min_size=1, max_size=12)


@st.composite
def trees(draw: st.DrawFn) -> Mask:
    lengths = draw(LENGTHS)
    return masks.tree([draw(st.integers(-1, node - 1)) for node in range(len(lengths))], lengths)


@st.composite
def shared_prefixes(draw: st.DrawFn) -> Mask:
    prompts = draw(LENGTHS)
    return masks.shared_prefix(prompts, [draw(LENGTHS) for _ in prompts])


@st.composite
def images(draw: st.DrawFn) -> Mask:
    texts = masks.packed(draw(LENGTHS))
    length = texts.num_queries
    ends = sorted(draw(st.lists(st.integers(0, length), max_size=8)))
    return texts | masks.two_way(map(range, ends[::2], ends[1::2]), length)


@st.composite
def others(draw: st.DrawFn) -> Mask:
    length, part = draw(st.integers(1, 3000)), draw(st.integers(1, 500))
    return draw(
        st.sampled_from(
            [
                masks.chunked(length, part),
                masks.window(length, part) | masks.first(length, part // 4),
                masks.prefix(length, min(part, length)),
                masks.full(length),
                masks.causal(length) - masks.window(length, part),
                Mask((), length, length),
            ]
        )
    )


def shares(layout: Layout, mask: Mask, cp_size: int) -> tuple[list[list[int]], list[int]]:
    """The positions and the live cells of every rank."""
    sharding, work = Sharding(layout, (0, mask.num_queries), cp_size), mask.row_work()
    held = [sharding.positions(rank) for rank in range(cp_size)]
    return held, [sum(work[position] for position in positions) for positions in held]


@settings(max_examples=200, deadline=None)
@given(trees() | shared_prefixes() | images() | others(), st.integers(1, 8))
def test_balanced_is_even_to_a_row_for_any_mask(mask: Mask, cp_size: int) -> None:
    held, cells = shares(layout_for(balanced, mask), mask, cp_size)
    assert sorted(position for positions in held for position in positions) == [*range(mask.num_queries)]
    assert max(map(len, held)) - min(map(len, held)) <= 1
    assert max(cells) <= 1.01 * mask.area / cp_size + max(mask.row_work())


def test_the_schedules_compute_as_much() -> None:
    mask = masks.shared_prefix(512, [64] * 24)
    schedules = [plan_mask(mask, layout_for(balanced, mask), ring, rank, 4) for rank in range(4)]
    verify(schedules)
    areas = [schedule.area for schedule in schedules]
    assert max(areas) <= 1.01 * mask.area / 4 + 576
    causally = [plan_mask(mask, balanced, ring, rank, 4).area for rank in range(4)]
    assert max(causally) > 1.1 * mask.area / 4, "without the mask, rows count as those of a causal text"


def test_documents_are_mostly_not_cut() -> None:
    lengths = [100 + 37 * (index * index % 101) for index in range(1000)]
    mask, borders = masks.packed(lengths), {*accumulate(lengths, initial=0)}
    layout = layout_for(balanced, mask)
    runs = [run for rank in range(8) for run in layout(range(mask.num_queries), rank, 8)]
    assert 0 < len({end for run in runs for end in (run.start, run.stop)} - borders) <= 2 * 7


def test_rows_of_a_batch_are_divided_alike_and_even_together() -> None:
    rows = masks.causal(600), masks.prefix(600, 300)
    layout = layout_for(balanced, rows)
    stream = Sharding(layout, (0, 600, 1200), 4, batch=2)
    for rank in range(4):
        positions = stream.positions(rank)
        first, second = positions[: len(positions) // 2], positions[len(positions) // 2 :]
        assert [position + 600 for position in first] == second
    cells = [sum(shares(layout, mask, 4)[1][rank] for mask in rows) for rank in range(4)]
    assert max(cells) <= 1.01 * sum(mask.area for mask in rows) / 4 + 1200


def test_only_balanced_looks_at_masks() -> None:
    mask = masks.causal(8)
    assert layout_for(zigzag, mask) is zigzag
    layout = layout_for(balanced, mask)
    assert layout_for(layout, masks.full(8)) is layout, "a layout that is made for a mask stays"
    assert layout_for(balanced, masks.causal(8)) is layout
    assert pickle.loads(pickle.dumps(layout)) is layout


@pytest.mark.parametrize("given", [(), (masks.causal(4), masks.causal(5))])
def test_masks_of_several_lengths_share_no_layout(given: Sequence[Mask]) -> None:
    with pytest.raises(ValueError, match="same number of queries"):
        layout_for(balanced, given)


def test_a_stream_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="masks of 8 tokens, and cannot divide 9"):
        balanced_for((masks.causal(8),))(range(9), 0, 2)


def test_the_example_in_the_docstring() -> None:
    assert doctest.testmod(mask_layout) == (0, 4)
