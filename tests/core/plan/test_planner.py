"""What the planner derives: every cell once, and the special cases that other libraries write by hand."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings

from plans import Case, cases, causal, computed, returning, wound
from ringattn_core.look.coverage import mask_area
from ringattn_core.look.verify import verify
from ringattn_core.plan import planner
from ringattn_core.plan.layout import Layout, contiguous, striped, zigzag
from ringattn_core.plan.lines import shards
from ringattn_core.plan.local_rows import default_early_rows
from ringattn_core.plan.planner import outgoing_rows, plan, plan_all
from ringattn_core.plan.route import Route, double_ring, gather, ring, waves
from ringattn_core.plan.schedule import Launch, Schedule
from ringattn_core.plan.tile import Tile
from work import instructions

FULL, CAUSAL = (-1, -1), (-1, 0)


def launches(schedule: Schedule, hop: int) -> list[tuple[Launch, ...]]:
    return [step.launches for step in schedule.steps if step.hop == hop]


def only(schedule: Schedule, hop: int) -> Tile:
    """The single tile that is computed on a hop."""
    (((tile,),),) = ([launch.tiles for launch in found] for found in launches(schedule, hop))
    return tile


@settings(max_examples=200, deadline=None)
@given(cases())
def test_every_live_cell_is_computed_once(case: Case) -> None:
    schedules = case.plan()
    assert computed(schedules) == Counter(case.live())
    verify(schedules, case.window)
    assert sum(schedule.area for schedule in schedules) == mask_area(case.cu_seqlens_q, case.cu_seqlens_k, case.window)


@settings(max_examples=25, deadline=None)
@given(cases(most=1 << 18))
def test_long_sequences_are_proved_without_looking_at_cells(case: Case) -> None:
    verify(case.plan(), case.window)


@pytest.mark.parametrize("layout", [contiguous, zigzag, striped, wound])
def test_every_small_window(layout: Layout) -> None:
    """All of them: borders of windows meet borders of chunks in ways that random cases seldom find."""
    for route, cp_size, tokens in product((ring, waves(2), gather, returning), (1, 2, 3), (7, 16)):
        for window in product((-1, 0, 1, 2, 4), (-1, 0, 1, 3)):
            case = Case(layout, route, (0, tokens), (0, tokens), cp_size, window)
            assert computed(case.plan()) == Counter(case.live()), case


def test_ring_is_causal_then_full_then_nothing() -> None:
    for rank, schedule in enumerate(causal(contiguous, ring, 4, 16)):
        square = range(4), range(4)
        assert only(schedule, 0) == Tile(*square, high=0) and only(schedule, 0).window == CAUSAL
        for hop in range(1, 4):
            if hop <= rank:
                assert only(schedule, hop) == Tile(*square)
            else:
                assert launches(schedule, hop) == [()]


def test_zigzag_has_three_branches_of_one_launch_each() -> None:
    for rank, schedule in enumerate(causal(zigzag, ring, 4, 32)):
        assert only(schedule, 0) == Tile(range(8), range(8), high=0)
        for hop in range(1, 4):
            earlier = hop <= rank
            expected = Tile(range(8), range(4)) if earlier else Tile(range(4, 8), range(8))
            assert only(schedule, hop) == expected


def test_zigzag_varlen_takes_half_of_every_sequence_in_one_launch() -> None:
    schedule = causal(zigzag, ring, 2, 8, 16)[0]
    ((launch,),) = launches(schedule, 1)
    assert launch.tiles == (Tile(range(2, 4), range(0, 4)), Tile(range(8, 12), range(4, 12)))


def test_stripes_of_later_ranks_are_shifted_by_one() -> None:
    for rank, schedule in enumerate(causal(striped, ring, 4, 32)):
        for hop in range(4):
            if hop <= rank:
                assert only(schedule, hop) == Tile(range(8), range(8), high=0)
            else:
                # q[1:] against k[:-1]: no query sees the key of its own row, so of column - row, -1 is the most.
                assert only(schedule, hop) == Tile(range(1, 8), range(0, 7), high=-1)
            assert only(schedule, hop).window == CAUSAL


def test_a_gathered_stream_is_cut_as_llama3_does() -> None:
    # llama3_flash_attn_prepare_cu_seqlens gives rank 1 the queries [0, 2, 8] and the keys [0, 10, 16].
    case = Case(contiguous, gather, (0, 10, 16), (0, 10, 16), 2, per_sequence=False)
    first, second = case.plan()
    assert launches(first, 1) == [()]
    # The second document lies on rank 1 alone; the first one's last queries are the last of their keys: aligned
    # bottom-right, that is causal.
    assert only(second, 0) == Tile(range(2, 8), range(2, 8), high=0)
    assert only(second, 1) == Tile(range(0, 2), range(0, 10), high=8) and only(second, 1).window == CAUSAL


def test_balanced_gather_takes_each_half_against_all_keys_before_it() -> None:
    own, everything = causal(zigzag, gather, 4, 32)[1].steps
    assert (own.launches, own.key_slices) == ((), ())
    first, second = everything.launches
    assert first.tiles == (Tile(range(0, 4), range(0, 8), high=4),)
    assert second.tiles == (Tile(range(4, 8), range(0, 28), high=20),)
    assert first.window == second.window == CAUSAL


def test_the_first_chunk_of_a_balanced_gather_needs_nobody() -> None:
    first, second = causal(zigzag, gather, 2, 16)
    assert only(first, 0) == Tile(range(4), range(4), high=0)
    assert only(first, 1) == Tile(range(4, 8), range(16), high=8)
    assert launches(second, 0) == [()] and only(second, 1) == Tile(range(8), range(12), high=4)


def test_of_a_gathered_window_only_the_rows_near_a_border_wait_for_others() -> None:
    first, second = causal(contiguous, gather, 2, 1 << 14, window=(4095, 0))
    assert only(first, 0) == Tile(range(8192), range(8192), low=-4095, high=0) and launches(first, 1) == [()]
    # Row 4095 of rank 1 is the first that sees no key of rank 0. Its other rows before see all up to themselves.
    assert only(second, 0) == Tile(range(4095, 8192), range(8192), low=-4095, high=0)
    assert only(second, 1) == Tile(range(4095), range(8190), low=0, high=4095)
    assert [(key_slice.source, key_slice.rows) for key_slice in second.steps[1].key_slices] == [
        (0, range(4097, 8192)),
        (1, range(4095)),
    ]
    assert [(key_slice.source, key_slice.rows) for key_slice in outgoing_rows(first, 1)] == [(1, range(4097, 8192))]


def test_rows_in_the_middle_are_settled_where_a_window_looks_both_ways() -> None:
    schedule = causal(contiguous, gather, 3, 30, window=(2, 3))[1]
    assert only(schedule, 0) == Tile(range(2, 7), range(10), low=-2, high=3)
    assert [tile.q for launch in launches(schedule, 1)[0] for tile in launch.tiles] == [range(2), range(7, 10)]


@pytest.mark.parametrize("layout", [contiguous, zigzag, striped])
def test_a_gather_of_documents_that_lie_on_one_rank_each_gathers_nothing(layout: Layout) -> None:
    """Whatever the layout does with one token, it lies on one rank; and contiguous shards may hold whole documents."""
    borders = tuple(range(17)) if layout is not contiguous else (0, 4, 8, 11, 16)
    for window in (FULL, CAUSAL, (3, 0)):
        for schedule in Case(layout, gather, borders, borders, 2, window, per_sequence=False).plan():
            assert [(step.hop, step.sources) for step in schedule.steps] == [(0, (schedule.cp_rank,))]
            assert schedule.area > 0


def test_alone_a_gather_is_one_step() -> None:
    for route in (gather, returning):
        (schedule,) = causal(zigzag, route, 1, 16, 3)
        assert [step.hop for step in schedule.steps] == [0]


def whole_on_one_rank(case: Case) -> tuple[list[list[int]], list[list[int]]]:
    """Of every rank the queries that see nobody else's keys, and those that do, by looking at every cell.

    Where a rank's tokens are some way apart the former are those of sequences of which it has all keys.
    """
    schedules = case.plan()
    owner = {k: schedule.cp_rank for schedule in schedules for k in schedule.keys.positions(schedule.cp_rank)}
    runs = [
        run for schedule in schedules for d in (schedule.queries, schedule.keys) for _, run in d.runs(schedule.cp_rank)
    ]
    apart = max((run.step for run in runs if len(run) > 1), default=1) > 1
    seen: dict[int, set[int]] = {}
    for q, k in case.live():
        keys = range(*case.cu_seqlens_k[(s := bisect_right(case.cu_seqlens_q, q)) - 1 : s + 1])
        seen.setdefault(q, set()).update({owner[k] for k in keys} if apart else {owner[k]})
    local_rows, others = [], []
    for schedule in schedules:
        mine = [q for q in schedule.queries.positions(schedule.cp_rank) if q in seen]
        local_rows.append([q for q in mine if seen[q] == {schedule.cp_rank}])
        others.append([q for q in mine if seen[q] != {schedule.cp_rank}])
    return local_rows, others


def rows(schedule: Schedule, hop: int) -> list[int]:
    """The positions of the queries that are computed on a hop, in storage order."""
    positions = schedule.queries.positions(schedule.cp_rank)
    found = {row for step in schedule.steps if step.hop == hop for launch in step.launches for row in _rows(launch)}
    return [positions[row] for row in sorted(found)]


def _rows(launch: Launch) -> list[int]:
    return [row for tile in launch.tiles for row in tile.q]


@settings(max_examples=300, deadline=None)
@given(cases())
def test_a_gather_computes_every_row_on_the_first_hop_on_which_all_its_keys_are_at_hand(case: Case) -> None:
    case = replace(case, route=gather, num_early_rows=0)
    schedules = case.plan()
    local_rows, others = whole_on_one_rank(case)
    assert [rows(schedule, 0) for schedule in schedules] == local_rows
    assert [rows(schedule, 1) for schedule in schedules] == others
    for schedule in schedules:
        assert [step.hop for step in schedule.steps] == ([0, 1] if any(others) else [0])
        first, *later = schedule.steps
        assert first.sources == first.destinations == (schedule.cp_rank,)
        assert {key_slice.source for key_slice in first.key_slices} <= {schedule.cp_rank}
        assert [step.sources for step in later] == [tuple(range(case.cp_size))] * len(later)


def test_ahead_of_others_keys_a_gather_computes_its_last_rows_against_its_own() -> None:
    first, second = causal(zigzag, gather, 2, 32, num_early_rows=2)
    assert only(first, 0) == Tile(range(8), range(8), high=0), "half of its rows need nobody"
    assert only(first, 1) == Tile(range(8, 16), range(32), high=16)
    assert only(second, 0) == Tile(range(14, 16), range(16), high=0)
    rest, early_rows = second.steps[1].launches
    assert rest.tiles == (Tile(range(14), range(22), high=8),)
    assert early_rows.tiles == (Tile(range(14, 16), range(8)),)
    assert [(key_slice.source, key_slice.rows) for key_slice in second.steps[1].key_slices] == [
        (0, range(8)),
        (1, range(14)),
    ]


def test_rows_to_begin_with_are_the_last_of_the_longest_sequence_if_it_has_enough() -> None:
    def early_rows(*lengths: int, num_early_rows: int) -> list[list[int]]:
        return [rows(schedule, 0) for schedule in causal(zigzag, gather, 2, *lengths, num_early_rows=num_early_rows)]

    # Rank 1 holds 4..11 of the first sequence, 17 and 18 of the second; of rank 0's rows 0..3 and 16 need nobody.
    assert early_rows(16, 4, num_early_rows=3) == [[0, 1, 2, 3, 16], [9, 10, 11]]
    assert early_rows(16, 4, num_early_rows=7) == [[0, 1, 2, 3, 14, 15, 16], [5, 6, 7, 8, 9, 10, 11]]
    assert early_rows(16, 4, num_early_rows=9) == [[0, 1, 2, 3, 12, 13, 14, 15, 16], []]
    assert early_rows(16, 4, num_early_rows=0) == [[0, 1, 2, 3, 16], []]


def test_so_many_rows_are_worth_to_begin_with() -> None:
    assert [default_early_rows(rows) for rows in (0, 1024, 2047, 2048, 4096, 8192, 10_000)] == [
        0,
        0,
        0,
        256,
        512,
        1024,
        1024,
    ]


def test_two_waves_of_zigzag_take_three_launches_at_most() -> None:
    for schedule in causal(zigzag, waves(2), 8, 1 << 20):
        first, second = schedule.steps
        assert len(first.launches) == 1 and 1 <= len(second.launches) <= 2


@pytest.mark.parametrize("layout", [contiguous, zigzag, striped])
def test_a_full_mask_is_one_launch_a_step(layout: Layout) -> None:
    for route in (ring, waves(3), gather):
        for schedule in causal(layout, route, 4, 40, window=FULL):
            steps = schedule.steps[1:] if route is gather else schedule.steps  # No row needs its own rank's keys only.
            assert [len(step.launches) for step in steps] == [1] * len(steps)
            assert all(launch.window == FULL for step in schedule.steps for launch in step.launches)


def test_hops_beyond_the_window_vanish_for_all_ranks() -> None:
    for schedule in causal(contiguous, ring, 8, 64, window=(8, 0)):
        assert [step.hop for step in schedule.steps] == [0, 1]
    assert only(schedule, 0) == Tile(range(8), range(8), high=0), "nothing of a chunk of 8 is 8 back"
    assert only(schedule, 1) == Tile(range(8), range(8), low=0) and only(schedule, 1).window == (0, -1)


def test_a_wave_fetches_only_the_rows_that_a_window_reaches() -> None:
    schedule = causal(contiguous, gather, 8, 64, window=(5, 0))[3]
    assert [(key_slice.source, key_slice.rows) for key_slice in schedule.steps[1].key_slices] == [
        (2, range(3, 8)),
        (3, range(0, 5)),
    ]


def test_of_a_wave_only_live_keys_lie_in_the_buffer_in_the_order_of_their_positions() -> None:
    schedule = causal(zigzag, waves(2), 4, 32)[1]
    assert [(key_slice.source, key_slice.rows, key_slice.offset) for key_slice in schedule.steps[1].key_slices] == [
        (0, range(0, 4), 0),
        (2, range(0, 4), 4),
        (3, range(0, 8), 8),
        (2, range(4, 8), 16),
    ]


def test_cross_attention_is_aligned_bottom_right() -> None:
    case = Case(contiguous, ring, (0, 3), (0, 5), 1)
    assert only(case.plan()[0], 0) == Tile(range(3), range(5), high=2)


def test_queries_without_keys_take_part_without_launches() -> None:
    schedules = Case(zigzag, ring, (0, 8), (0, 0), 2).plan()
    assert [len(schedule.steps) for schedule in schedules] == [1, 1]
    assert [schedule.area for schedule in schedules] == [0, 0]


def test_ranks_without_a_token_walk_along() -> None:
    schedules = causal(contiguous, ring, 8, 3)
    assert [schedule.query_length for schedule in schedules] == [0, 0, 1, 0, 0, 1, 0, 1]
    assert len({tuple(step.hop for step in schedule.steps) for schedule in schedules}) == 1


def test_double_ring_takes_a_node_at_a_time() -> None:
    schedule = causal(zigzag, double_ring(4), 8, 64)[5]
    assert [step.sources for step in schedule.steps] == [(5,), (4, 6, 7), (0, 1, 2, 3)]


def test_a_layout_that_stores_sequences_in_another_order_splits_launches_instead_of_clashing() -> None:
    # The window makes tiles of both sequences alike, but one's rows come first and the other's columns.
    schedules = Case(wound, ring, (0, 1, 35, 48), (0, 1, 35, 62), 4, (8, 3), per_sequence=False).plan()
    verify(schedules, (8, 3))


@settings(max_examples=100, deadline=None)
@given(cases())
def test_what_is_lent_is_what_others_fetch(case: Case) -> None:
    schedules = case.plan()
    for owner in schedules:
        for index, step in enumerate(owner.steps):
            fetched = Counter(
                (schedule.cp_rank, row)
                for schedule in schedules
                for key_slice in schedule.steps[index].key_slices
                for row in key_slice.rows
                if key_slice.source == owner.cp_rank != schedule.cp_rank
            )
            assert (
                Counter(
                    (key_slice.source, row) for key_slice in outgoing_rows(owner, step.hop) for row in key_slice.rows
                )
                == fetched
            )


def test_plans_are_kept() -> None:
    assert causal(zigzag, ring, 2, 8)[0] is causal(zigzag, ring, 2, 8)[0]


def test_the_plans_of_all_ranks_are_those_of_each() -> None:
    case = Case(zigzag, gather, (0, 6, 20), (0, 9, 12), 3, (4, 2), per_sequence=False, batch=2, num_early_rows=4)
    options = {"window": case.window, "per_sequence": False, "batch": 2, "num_early_rows": 4}
    every = plan_all(zigzag, gather, case.cu_seqlens_q, 3, cu_seqlens_k=case.cu_seqlens_k, **options)
    assert every == tuple(case.plan())


def test_bad_borders_are_refused() -> None:
    with pytest.raises(ValueError, match="cu_seqlens_q must start at 0 and have one entry more"):
        plan(zigzag, ring, (1, 4), (0, 4), 0, 1)
    with pytest.raises(ValueError, match=r"cu_seqlens_k must never decrease, but entry 2 is 4 after 8"):
        plan(zigzag, ring, (0, 8, 12), (0, 8, 4), 0, 1)
    with pytest.raises(ValueError, match="cu_seqlens_q has 2 sequences and cu_seqlens_k has 1"):
        plan(zigzag, ring, (0, 8, 12), (0, 8), 0, 1)
    with pytest.raises(ValueError, match="cp_rank must be from 0 to cp_size - 1 = 3, got 4"):
        plan(zigzag, ring, (0, 8), (0, 8), 4, 4)
    for batch in (0, 2):
        with pytest.raises(ValueError, match=f"rows of equal length, got {batch} for 8 queries and 5 keys"):
            plan(zigzag, ring, (0, 8), (0, 5), 0, 4, batch=batch)


@pytest.mark.parametrize(
    "layout",
    [
        lambda extent, rank, size: (extent[::-1],),
        lambda extent, rank, size: (extent[: len(extent) // 2], extent[len(extent) // 2 :: 2]),
    ],
    ids=["backwards", "two strides"],
)
def test_layouts_for_which_masks_are_no_bands_are_refused(layout: Layout) -> None:
    with pytest.raises(ValueError, match="All runs of a layout must have one positive stride"):
        plan(layout, ring, (0, 8), (0, 8), 0, 1)


@pytest.mark.parametrize("route", [ring, waves(2), gather], ids=["ring", "waves", "gather"])
def test_planning_many_documents_is_no_quadratic_affair(route: Route) -> None:
    def work(documents: int) -> int:
        borders = tuple(range(0, 64 * documents + 1, 64))
        plan.cache_clear()
        planner._planned.cache_clear()
        shards.cache_clear()
        return instructions(lambda: plan(zigzag, route, borders, borders, 3, 8, window=CAUSAL))

    assert work(400) < 5 * work(100), "four times the documents are four times the work"
