"""The mask's area in closed form, and complaints about cells that name them."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings

from plans import Case, cases, causal, unchecked, with_step
from ringattn_core.look.coverage import complaint_about_cells, mask_area
from ringattn_core.plan.layout import contiguous, zigzag
from ringattn_core.plan.route import gather, ring
from ringattn_core.plan.schedule import KeySlice, Launch
from ringattn_core.plan.tile import Tile


@settings(max_examples=200, deadline=None)
@given(cases())
def test_the_area_of_a_mask_counts_its_live_cells(case: Case) -> None:
    assert mask_area(case.cu_seqlens_q, case.cu_seqlens_k, case.window) == sum(1 for _ in case.live())


def test_areas_that_everyone_knows() -> None:
    n = 1 << 20
    assert mask_area((0, n), (0, n), (-1, -1)) == n * n
    assert mask_area((0, n), (0, n), (-1, 0)) == n * (n + 1) // 2
    assert mask_area((0, n), (0, n), (0, 0)) == n
    assert mask_area((0, 2, 2, 5), (0, 3, 3, 3), (-1, -1)) == 6


def test_no_complaint_about_what_is_right() -> None:
    assert complaint_about_cells(causal(zigzag, gather, 3, 20, 7), (-1, 0), 1) is None


def test_cells_left_out_are_named() -> None:
    schedules = causal(contiguous, ring, 2, 8)
    schedules[1] = with_step(schedules[1], 1, launches=())
    assert complaint_about_cells(schedules, (-1, 0), 1) == (
        "Of 36 live cells, 20 are computed. Some are missing where Span(sequence=0, positions=range(4, 8), offset=0) "
        "of rank 1 meets the keys Span(sequence=0, positions=range(0, 4), offset=0) of rank 0."
    )


def test_cells_computed_twice_are_counted() -> None:
    schedules = causal(contiguous, ring, 2, 8)
    launch = schedules[1].steps[1].launches[0]
    schedules[1] = with_step(schedules[1], 1, launches=(launch, Launch((Tile(range(1, 3), range(4)),))))
    complaint = complaint_about_cells(schedules, (-1, 0), 1)
    assert complaint is not None and "8 cells are computed already" in complaint and "Rank 1, hop 1" in complaint


def test_dead_cells_computed_are_counted() -> None:
    schedules = causal(contiguous, ring, 2, 8)
    schedules[0] = with_step(schedules[0], 0, launches=(Launch((Tile(range(4), range(4), high=1),)),))
    complaint = complaint_about_cells(schedules, (-1, 0), 1)
    assert complaint is not None and "3 cells are not live in the mask" in complaint


def test_a_tile_across_two_sequences_is_not_live() -> None:
    schedules = causal(contiguous, ring, 1, 4, 4, window=(-1, -1))
    schedules[0] = with_step(schedules[0], 0, launches=(Launch((Tile(range(8), range(8)),)),))
    complaint = complaint_about_cells(schedules, (-1, -1), 1)
    assert complaint is not None and "16 cells are not live in the mask" in complaint


def test_columns_beyond_the_buffer_are_named() -> None:
    schedules = causal(contiguous, gather, 2, 8)
    step = schedules[0].steps[0]
    schedules[0] = with_step(schedules[0], 0, launches=(unchecked(Tile(range(4), range(5), high=1)),))
    assert step.fetched == 4
    complaint = complaint_about_cells(schedules, (-1, 0), 1)
    assert complaint is not None and "has columns that no piece of the key buffer holds" in complaint


def test_a_piece_in_another_place_makes_other_cells() -> None:
    schedules = causal(contiguous, gather, 2, 8)
    first, second = schedules[1].steps[1].key_slices
    swapped = (replace(first, offset=4), replace(second, offset=0))
    assert complaint_about_cells([schedules[0], with_step(schedules[1], 1, key_slices=swapped)], (-1, 0), 1)


def test_own_cells_computed_again_on_a_later_hop_are_counted() -> None:
    schedules = causal(contiguous, gather, 2, 8)
    again = Launch((Tile(range(1), range(1)),))
    schedules[1] = with_step(schedules[1], 0, key_slices=(KeySlice(1, range(4), 0),), launches=(again,))
    complaint = complaint_about_cells(schedules, (-1, 0), 1)
    assert complaint is not None and "Rank 1, hop 1" in complaint and "1 cells are computed already" in complaint
