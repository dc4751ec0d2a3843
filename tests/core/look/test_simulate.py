"""Predictions: what follows from a schedule exactly, and what was measured, to a few per cent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf

import pytest
from hypothesis import given, settings

from plans import Case, cases, causal
from ringattn_core.look.machine import H100, H200, Kernels, Link, Machine
from ringattn_core.look.shape import Shape
from ringattn_core.look.simulate import Forecast, _Message, _Pass, _Rank, fastest, predict
from ringattn_core.plan.coalesced_copies import coalesced_copies
from ringattn_core.plan.layout import contiguous, zigzag
from ringattn_core.plan.local_rows import default_early_rows
from ringattn_core.plan.planner import plan, plan_all
from ringattn_core.plan.route import Route, at_once, gather, ring, waves
from ringattn_core.plan.schedule import Schedule

SHAPE = Shape(num_heads=32, num_kv_heads=8, head_dim=128)
# One operation a second, one byte a second, no overhead: everything can be worked out by hand.
PLAIN = Machine(Kernels(1.0, 0.0, 0.0), Kernels(1.0, 0.0, 0.0), inf, Link(0.0, 1.0), Link(0.0, 1.0), Link(0.0, 1.0))
SMALL = Shape(num_heads=1, num_kv_heads=1, head_dim=1, itemsize=1)  # 4 operations a cell, 2 bytes a token


@pytest.mark.parametrize(
    ("cp_size", "tokens", "route", "forward", "both"),
    [
        (2, 4096, waves(2), 0.472, 1.835),
        (2, 4096, gather, 0.448, 1.865),
        (2, 8192, waves(2), 1.670, 6.329),
        (2, 8192, gather, 1.621, 6.288),
        (2, 32768, waves(2), 25.76, 101.3),
        (2, 32768, gather, 24.85, 101.2),
        (4, 4096, waves(2), 0.880, 3.630),
        (4, 4096, waves(3), 0.896, 3.657),
        (4, 4096, gather, 0.955, 3.848),
        (4, 4096, ring, 0.985, 3.709),
        (4, 8192, waves(2), 3.154, 12.51),
        (4, 8192, waves(3), 3.237, 12.55),
        (4, 8192, gather, 3.263, 12.93),
        (4, 8192, ring, 3.414, 12.68),
        (4, 32768, waves(2), 51.84, 204.0),
        (4, 32768, gather, 51.03, 206.4),
        (8, 8192, ring, 7.08, 25.33),
        (8, 8192, waves(2), 6.41, 24.42),
        (8, 8192, waves(3), 6.33, 24.25),
    ],
)
def test_rows_that_were_measured(cp_size: int, tokens: int, route: Route, forward: float, both: float) -> None:
    """Milliseconds of the slowest rank, FA4, zigzag: on two and on four H100s (`predicted_vs_measured.py`), and on one
    that plays each rank of eight (`play_ranks.py`).
    """
    first, second = (
        plan_all(zigzag, route, (0, cp_size * tokens), cp_size, window=(-1, 0), num_early_rows=num_early_rows)
        for num_early_rows in (default_early_rows(tokens), 0)
    )
    for measured, backward in ((forward, ()), (both, second)):
        found = predict(first, replace(SHAPE, grad_itemsize=2), H100, backward=backward, one_sided=True)
        assert found.time * 1e3 == pytest.approx(measured, rel=0.1)


def both(schedules: Sequence[Schedule], shape: Shape, machine: Machine, **options: bool) -> Forecast:
    """Both passes by the same schedules."""
    return predict(schedules, shape, machine, backward=schedules, **options)


def test_a_rank_alone_computes_and_nothing_else() -> None:
    forecast = predict(causal(zigzag, ring, 1, 8), SMALL, PLAIN)
    assert forecast.time == forecast.compute == forecast.ideal == 36 * 4
    assert forecast.waiting == forecast.merge == forecast.bytes_sent == forecast.bytes_received == 0
    assert forecast.efficiency == 1.0


def test_a_row_costs_more_than_the_keys_that_it_sees() -> None:
    machine = replace(PLAIN, forward=replace(PLAIN.forward, row=3), backward=replace(PLAIN.backward, row=5))
    schedules = causal(zigzag, ring, 1, 8)
    assert predict(schedules, SMALL, machine).time == (36 + 8 * 3) * 4
    assert both(schedules, SMALL, machine).time == (36 + 8 * 3) * 4 + (36 + 8 * 5) * 10
    twice = predict(causal(contiguous, ring, 2, 8), SMALL, machine)
    assert twice.compute == (10 + 16 + 2 * 4 * 3) * 4, "rank 1 has its rows in two launches"


def test_a_ring_hides_what_it_moves_behind_what_it_computes() -> None:
    # A shard of 4 tokens takes 8 s to arrive; the first step takes 40 s and the second 64 s.
    forecast = predict(causal(contiguous, ring, 2, 8), SMALL, PLAIN)
    assert (forecast.time, forecast.waiting) == (40 + 64, 0)
    assert (forecast.bytes_sent, forecast.bytes_received) == (8, 8)


def test_a_gather_waits_for_the_first_key() -> None:
    forecast = predict(causal(contiguous, gather, 2, 8), SMALL, PLAIN)
    assert (forecast.time, forecast.waiting) == (8 + 40 + 64, 8)


def test_a_gather_computes_meanwhile_what_needs_no_other_key() -> None:
    # Rank 1 has the 6 cells of its last two rows to compute before the 6 of the others, whose keys take 8 s to arrive.
    forecast = predict(causal(contiguous, gather, 2, 8, window=(2, 0)), SMALL, PLAIN)
    assert (forecast.time, forecast.waiting) == (6 * 4 + 6 * 4, 0)


def test_a_slow_link_is_waited_for() -> None:
    slow = replace(PLAIN, two_sided=Link(0.0, 0.1))
    forecast = predict(causal(contiguous, ring, 2, 8), SMALL, slow)
    assert (forecast.time, forecast.waiting) == (80 + 64, 40)


def test_gradients_come_home_after_the_last_step() -> None:
    # Backward takes 10 operations a cell; the gradients of 4 keys, in float32, take 32 s to come home.
    forecast = both(causal(contiguous, ring, 2, 8), SMALL, PLAIN)
    assert forecast.time == (40 + 64) + (100 + 160) + 32
    assert forecast.bytes_sent == 8 + 8 + 32 + 32, "keys twice; gradients hop on and then home"
    direct = both(causal(contiguous, waves(2), 2, 8), SMALL, PLAIN)
    assert direct.time == forecast.time, "with two ranks, two waves are a ring"


def test_one_sided_copies_move_only_the_rows_that_are_needed() -> None:
    schedules = causal(contiguous, waves(2), 4, 64, window=(3, 0))
    whole, rows = (predict(schedules, SMALL, PLAIN, one_sided=side) for side in (False, True))
    assert (whole.bytes_received, rows.bytes_received) == (3 * 16 * 2, 3 * 2)
    assert rows.time <= whole.time


def test_a_causal_contiguous_layout_waits_and_zigzag_does_not() -> None:
    unbalanced, balanced = (predict(causal(layout, ring, 8, 1 << 18), SHAPE, H200) for layout in (contiguous, zigzag))
    assert unbalanced.time > 1.7 * balanced.time
    assert unbalanced.efficiency < 0.6 and balanced.efficiency > 0.9


def test_adding_up_costs_what_it_reads_and_writes() -> None:
    machine = replace(PLAIN, memory=1.0)
    schedules = causal(contiguous, ring, 2, 8)
    # The second launch of rank 1 is added to the first: 4 rows of 1 head, read in 1 byte, read and written in 4.
    assert predict(schedules, SMALL, machine).merge == 4 * (1 + 2 * 4)


def test_gradients_are_added_up_too() -> None:
    machine = replace(PLAIN, memory=1.0)
    rows, arriving = 4 * (1 + 2 * 4), 3 * 4 * 8  # dq's; of 4 keys, in float32: two are read and one is written
    assert both(causal(contiguous, ring, 2, 8), SMALL, machine).merge == 2 * rows + 2 * arriving
    # Rank 0's late half is a second launch over the same 8 keys and values, to whose gradients it adds; its rows are
    # untouched until then.
    columns = 8 * 2 * (1 + 2 * 4)
    assert both(causal(zigzag, at_once, 2, 8), SMALL, machine).merge == columns + arriving
    # If the halves have a hop each, the gradients of one's own keys are added where they are found the second time.
    assert both(causal(zigzag, gather, 2, 8), SMALL, machine).merge == arriving + arriving
    assert predict(causal(zigzag, gather, 2, 8), SMALL, machine).merge == 0


def sending(ranks: list[_Rank], machine: Machine = PLAIN, *, one_sided: bool = False) -> _Pass:
    """A forward pass of a ring of contiguous shards of 4 tokens, of 8 bytes each."""
    return _Pass(ranks, causal(contiguous, ring, len(ranks), 4 * len(ranks)), SMALL, machine, one_sided, False)


def test_a_message_waits_for_both_ends_and_a_copy_for_its_reader() -> None:
    def arrivals(one_sided: bool) -> list[float]:
        ranks = [_Rank(device=5.0), _Rank(device=9.0), _Rank(device=1.0)]
        messages = [_Message((rank - 1) % 3, rank, 4) for rank in range(3)]
        return sending(ranks, one_sided=one_sided)._send(1, messages, 1)

    assert arrivals(one_sided=False) == [5 + 8, 9 + 8, 9 + 8]
    assert arrivals(one_sided=True) == [5 + 8, 9 + 8, 1 + 8]


def test_one_transfer_follows_the_other_on_a_link() -> None:
    """Also one that only sends has its link busy, and its bytes are counted."""
    moving = sending([_Rank(device=5.0), _Rank()])
    assert moving._send(1, [_Message(0, 1, 4)], 1) == [0.0, 5 + 8]
    assert [rank.link for rank in moving.ranks] == [5 + 8, 5 + 8]
    assert moving._send(1, [_Message(0, 1, 4)], 1) == [0.0, 13 + 8]
    assert [(rank.sent, rank.received) for rank in moving.ranks] == [(16, 0), (0, 16)]


def test_a_link_moves_both_ways_at_once() -> None:
    moving = sending([_Rank(), _Rank()])
    assert moving._send(1, [_Message(0, 1, 4), _Message(1, 0, 2)], 1) == [8.0, 8.0]


def test_every_part_of_a_message_takes_time_to_begin() -> None:
    """Keys and values of each piece are two parts: the first begins after the latency, each other a little later."""
    slow = Link(latency=3.0, bandwidth=1.0, copy=0.5)
    moving = sending([_Rank(), _Rank(), _Rank()], replace(PLAIN, one_sided=slow), one_sided=True)
    assert moving._send(1, [_Message(0, 1, 4), _Message(0, 2, 4), _Message(1, 2, 4)], 1) == [
        0.0,
        3 + 1 * 0.5 + 8,
        3 + 3 * 0.5 + 16,
    ]


def test_a_hop_on_which_all_need_all_is_a_collective() -> None:
    machine = replace(PLAIN, collective=Link(0.0, 4.0))
    assert predict(causal(contiguous, gather, 2, 8), SMALL, machine).waiting == 8 / 4
    assert predict(causal(contiguous, gather, 2, 8), SMALL, machine, one_sided=True).waiting == 8
    assert predict(causal(contiguous, ring, 2, 8), SMALL, replace(machine, two_sided=Link(0.0, 0.1))).waiting == 40


def test_many_pieces_travel_with_the_rows_between_them_and_are_put_in_order() -> None:
    """One box from each source; a box is read and written again, and so are its gradients."""
    schedules = causal(zigzag, gather, 2, *[8] * 40)
    boxes = [coalesced_copies(schedule.steps[1], rank) or () for rank, schedule in enumerate(schedules)]
    assert all(len(box) == 2 for box in boxes) and len(schedules[0].steps[1].key_slices) > 40
    from_others = [sum(len(part.rows) for part in box if part.source != rank) for rank, box in enumerate(boxes)]
    assert len(_Pass([_Rank(), _Rank()], schedules, SMALL, PLAIN, True, False)._keys(1)) == 2, "one for each rank"
    copied = predict(schedules, SMALL, PLAIN, one_sided=True)
    assert copied.bytes_received == 2 * max(from_others)
    machine, step = replace(PLAIN, memory=1.0), schedules[0].steps[1]
    for backward, times in ((False, 2), (True, 4)):
        ranks = [_Rank(), _Rank()]
        for rank, one_sided in zip(ranks, (False, True), strict=True):
            _Pass(ranks, schedules, SMALL, machine, one_sided, backward)._compute(rank, schedules[0], step)
        assert ranks[1].merge - ranks[0].merge == times * 2 * boxes[0][-1].columns.stop


def test_head_groups_compute_and_add_up_the_same() -> None:
    """Without a loss for every launch, groups of heads one after the other take as long as all at once."""
    machine, shape = replace(PLAIN, memory=1.0), replace(SMALL, num_heads=8, num_kv_heads=4)
    for route in (ring, gather, waves(2)):
        schedules = Case(zigzag, route, (0, 96), (0, 96), 4, window=(-1, 0)).plan()
        of_a_group = replace(shape, num_heads=2, num_kv_heads=1)
        whole, part = (both(schedules, each, machine) for each in (shape, of_a_group))
        assert (4 * part.compute, 4 * part.merge) == (whole.compute, whole.merge)


def test_the_host_can_be_the_bound() -> None:
    slow_host = replace(H200, forward=replace(H200.forward, call=10e-3))
    schedules = causal(zigzag, ring, 8, 4096)
    assert predict(schedules, SHAPE, slow_host).time >= 8 * 10e-3
    assert predict(schedules, SHAPE, slow_host).waiting > 60e-3


def test_head_groups_move_the_same_bytes_in_more_messages() -> None:
    schedules = Case(zigzag, gather, (0, 4096), (0, 4096), 4).plan()
    groups, of_a_group = 4, replace(SHAPE, num_heads=SHAPE.num_heads // 4, num_kv_heads=SHAPE.num_kv_heads // 4)
    whole, part = (predict(schedules, shape, H200) for shape in (SHAPE, of_a_group))
    assert groups * part.bytes_sent == whole.bytes_sent
    assert part.peak_bytes < whole.peak_bytes


@settings(max_examples=100, deadline=None)
@given(cases())
def test_predictions_hold_together(case: Case) -> None:
    schedules = case.plan()
    for one_sided in (False, True):
        forward, two = (
            predict(schedules, SHAPE, H200, backward=backward, one_sided=one_sided) for backward in ((), schedules)
        )
        assert 0 <= forward.compute <= forward.time <= two.time
        assert 0 <= forward.waiting <= forward.time
        assert forward.bytes_received <= two.bytes_received
        assert forward.efficiency <= 1.0 + 1e-9 and two.efficiency <= 1.0 + 1e-9


def routes(tokens: int, cp_size: int = 8) -> dict[str, Sequence[Schedule]]:
    candidates = {"waves(2)": waves(2), "waves(3)": waves(3), "gather": gather, "ring": ring}
    return {name: causal(zigzag, route, cp_size, tokens) for name, route in candidates.items()}


def choice(planned: dict[str, Sequence[Schedule]], backward: bool = True, **options: bool) -> str:
    predicted = both if backward else predict
    return fastest({name: predicted(schedules, SHAPE, H200, **options) for name, schedules in planned.items()})


def test_waves_are_chosen_where_launches_are_small() -> None:
    assert choice(routes(8 * 4096)).startswith("waves")
    assert choice(routes(8 * 4096), backward=False, one_sided=True) == "waves(3)"


def test_equal_routes_go_to_the_first() -> None:
    planned = routes(2 * 4096, cp_size=2)
    assert choice(planned, backward=False) == "waves(2)"
    backwards = {name: planned[name] for name in ("ring", "waves(2)")}
    assert choice(backwards, backward=False) == "ring"


def test_what_is_nearly_as_fast_goes_to_the_first() -> None:
    once = predict(causal(zigzag, ring, 2, 8), SMALL, PLAIN)
    times = {"first": 1.009, "second": 1.0, "third": 1.03}
    forecasts = {name: replace(once, time=time) for name, time in times.items()}
    assert fastest(forecasts, alike=0.01) == "first"
    assert fastest(forecasts, alike=0.001) == fastest(forecasts) == "second"


def test_a_schedule_of_nothing_takes_no_time() -> None:
    schedules = [plan(zigzag, gather, (0, 0), (0, 0), rank, 2) for rank in range(2)]
    forecast = both(schedules, SHAPE, H200)
    assert (forecast.time, forecast.efficiency, forecast.peak_bytes) == (0.0, 1.0, 0)


def test_a_rank_by_itself_is_a_mirror_of_the_others() -> None:
    """It sends what it receives, and starts no later for others; every second of it is worked out by hand."""
    schedules = causal(zigzag, waves(2), 4, 16)
    found = predict(schedules[3:], SMALL, PLAIN, one_sided=True)
    # Rank 3 holds the positions 6 to 9, and 10 remote keys of 2 bytes are seen by them: 0 to 5, and those of its own.
    remote = schedules[3].steps[1].fetched
    assert found.bytes_sent == found.bytes_received == 2 * remote
    local, rest = (4 * step.area for step in schedules[3].steps)
    assert found.time == max(local, 2 * remote) + rest
    assert found.time == predict(schedules, SMALL, PLAIN, one_sided=True).time


@pytest.mark.parametrize("one_sided", [False, True])
@pytest.mark.parametrize("route", [ring, waves(2), gather])
def test_ranks_that_are_alike_take_as_long_by_themselves(route: Route, one_sided: bool) -> None:
    schedules = plan_all(zigzag, route, (0, 1 << 16), 8, window=(-1, -1))
    every, few = (both(each, SHAPE, H200, one_sided=one_sided) for each in (schedules, schedules[2:4]))
    assert few.time == pytest.approx(every.time, rel=1e-3) and few.bytes_sent == every.bytes_sent


def test_a_sequence_stands_for_others_in_one_launch_or_in_one_each() -> None:
    """Of one sequence a launch has one tile; of two alike it has two, and takes all copies of them."""
    machine = replace(PLAIN, forward=Kernels(1.0, 5.0, 100.0))
    once, twice = (plan_all(contiguous, ring, borders, 1, window=(-1, 0)) for borders in ((0, 4), (0, 4, 8)))
    assert predict(once, SMALL, machine, times=3).time == max(3 * 100, 3 * (5 + 4 * 10))
    assert predict(twice, SMALL, machine, times=3).time == max(100, 5 + 3 * 4 * 20)
