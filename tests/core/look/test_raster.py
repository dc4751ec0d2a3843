"""Pictures show the cells that are computed, and of many cells a fair choice."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from plans import Case, cases, causal
from ringattn_core.look.raster import held, raster, samples, sequence_at
from ringattn_core.plan.layout import striped, zigzag
from ringattn_core.plan.route import ring


@settings(max_examples=100, deadline=None)
@given(cases())
def test_with_room_for_all_every_live_cell_shows_its_hop(case: Case) -> None:
    schedules = case.plan()
    picture = raster(schedules, 10**6)
    live = {(q, k) for q, row in enumerate(picture.hops) for k, hop in enumerate(row) if hop is not None}
    assert live == set(case.live())
    for q, k in live:
        sources = case.route(picture.query_ranks[q], case.cp_size)[picture.hops[q][k] or 0]
        assert picture.key_ranks[k] in sources


@settings(max_examples=50, deadline=None)
@given(cases(), st.integers(1, 30))
def test_a_small_picture_is_a_choice_from_the_large_one(case: Case, size: int) -> None:
    schedules = case.plan()
    large, small = raster(schedules, 10**6), raster(schedules, size)
    rows, columns = (samples(borders[-1], size, case.cp_size) for borders in (case.cu_seqlens_q, case.cu_seqlens_k))
    assert small.hops == [[large.hops[row][column] for column in columns] for row in rows]
    assert small.query_ranks == [large.query_ranks[row] for row in rows]


@given(st.integers(0, 200), st.integers(1, 50), st.integers(1, 9))
def test_one_sample_of_each_part_in_order(length: int, most: int, period: int) -> None:
    found = samples(length, most, period)
    assert len(found) == min(length, most)
    assert found == sorted(set(found)) and all(0 <= position < length for position in found)


def test_the_stripes_of_all_ranks_are_seen_in_their_order() -> None:
    picture = raster(causal(striped, ring, 8, 1 << 20), 16)
    assert picture.query_ranks == picture.key_ranks == [0, 1, 2, 3, 4, 5, 6, 7] * 2
    assert picture.tokens == (1 << 16, 1 << 16)


def test_held_says_where_a_rank_stores_which_samples() -> None:
    sharding = causal(zigzag, ring, 2, 8, 4)[0].queries
    assert sharding.positions(0) == [0, 1, 6, 7, 8, 11]
    assert held(sharding, 0, [1, 3, 7, 11]) == [(1, 0), (3, 2), (5, 3)]
    assert [sequence_at(sharding, position) for position in (0, 7, 8, 11)] == [0, 0, 1, 1]
