"""What "auto" takes: the same on all ranks, for the sizes where routes differ."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate, pairwise
from math import inf

import pytest

from ringattn_core.look import auto
from ringattn_core.look.auto import (
    CANDIDATES,
    EQUAL,
    GATHER_FIRST,
    NEARLY,
    WAVES_FIRST,
    Routes,
    _decisive,
    _planned,
    auto_routes,
    candidates,
    typical,
)
from ringattn_core.look.machine import H100, H200
from ringattn_core.look.shape import Shape, total_bytes
from ringattn_core.look.simulate import predict
from ringattn_core.plan.layout import Layout, Sharding, balanced, contiguous, striped, zigzag
from ringattn_core.plan.local_rows import default_early_rows
from ringattn_core.plan.planner import plan_all
from ringattn_core.plan.schedule import Schedule
from ringattn_core.plan.tile import FULL

SHAPE = Shape(32, 8, 128, grad_itemsize=2)
CAUSAL = (-1, 0)
WAVES = Routes("waves", "waves")


def choice(tokens: int, cp_size: int, **changes: object) -> Routes:
    given = {"window": CAUSAL, "shape": SHAPE, "machine": H100, "one_sided": True} | changes
    return auto_routes(Sharding(zigzag, (0, tokens), cp_size), **given)


@pytest.mark.parametrize(("cp_size", "tokens"), [(2, 1 << 14), (4, 1 << 15), (8, 1 << 16), (8, 1 << 18)])
def test_it_is_the_fastest_by_prediction(cp_size: int, tokens: int) -> None:
    planned = {
        name: [
            plan_all(zigzag, route, (0, tokens), cp_size, window=CAUSAL, num_early_rows=num_early_rows)
            for num_early_rows in (default_early_rows(tokens // cp_size), 0)
        ]
        for name, route in CANDIDATES.items()
    }
    chosen = choice(tokens, cp_size)
    first = planned[chosen.forward][0]
    for name, pairs, alike in (
        (chosen.forward, {name: (planned[name][0], ()) for name in GATHER_FIRST}, EQUAL),
        (chosen.backward, {name: (first, planned[name][1]) for name in WAVES_FIRST}, NEARLY),
    ):
        times = {
            each: predict(forward, SHAPE, H100, backward=backward, one_sided=True).time
            for each, (forward, backward) in pairs.items()
        }
        bound = (1 + alike) * min(times.values())
        assert times[name] <= bound
        assert all(times[each] > bound for each in list(times)[: list(times).index(name)]), "or one of more preference"


def documents(layout: Layout, *lengths: int, cp_size: int = 4, **changes: object) -> Sharding:
    return Sharding(layout, (0, *accumulate(lengths)), cp_size, **changes)


def lengths(sharding: Sharding) -> list[int]:
    return [stop - start for start, stop in pairwise(sharding.cu_seqlens)]


DRAWN = [100 + 37 * (index * index % 101) for index in range(19)]  # of lengths that differ
EACH = [(zigzag, True), (contiguous, True), (striped, False)]  # Every rank has a share of each sequence.
STREAM = [(balanced, True), (contiguous, False)]


@pytest.mark.parametrize(("layout", "per_sequence"), EACH + STREAM)
def test_few_sequences_are_looked_at_as_they_are(layout: Layout, per_sequence: bool) -> None:
    few = documents(layout, *DRAWN, per_sequence=per_sequence)
    assert typical(few) == (few, 1, 1.0)


@pytest.mark.parametrize(("layout", "per_sequence"), EACH + STREAM)
def test_few_lengths_stand_for_many_documents_of_as_much_work(layout: Layout, per_sequence: bool) -> None:
    many = [length + index for index, length in enumerate(DRAWN * 20)]
    some, rows, times = typical(documents(layout, *many, per_sequence=per_sequence))
    assert rows == 1 and len(lengths(some)) == (24 if some.spreads_sequences else 48)
    assert len(lengths(some)) * times == pytest.approx(len(many))
    for power in (1, 2):
        wanted = sum(length**power for length in many)
        assert times * sum(length**power for length in lengths(some)) == pytest.approx(wanted, rel=0.02)


def test_a_row_stands_for_equal_ones_that_are_divided_each_by_itself() -> None:
    assert typical(documents(balanced, 4000, 4000, 4000, batch=3)) == (documents(balanced, 4000), 3, 1.0)
    assert typical(documents(balanced, *[1000, 3000] * 3, batch=3)) == (documents(balanced, 1000, 3000), 3, 1.0)
    unlike = documents(balanced, 1000, 3000, 3000, 1000, batch=2)
    assert typical(unlike) == (unlike, 1, 1.0)


@pytest.mark.parametrize(("layout", "per_sequence"), EACH + STREAM)
def test_the_ranks_looked_at_take_about_as_long_as_all(layout: Layout, per_sequence: bool) -> None:
    """Among them the busiest: of a stream that is cut into equal parts, the one with the end of a long document."""
    pack = documents(layout, *DRAWN[:5], 30_000, *DRAWN * 2, cp_size=8, per_sequence=per_sequence)
    ranks = _decisive(pack, CAUSAL)
    assert len(ranks) < 5 and {0, 4, 7} <= {*ranks}
    every, some = candidates(pack, CAUSAL), candidates(pack, CAUSAL, ranks=ranks)
    work = [schedule.area for schedule in every[0]["ring"]]
    assert pack.spreads_sequences or work.index(max(work)) in ranks
    for name in CANDIDATES:
        for one_sided in (True, False):
            times = [
                predict(forward[name], SHAPE, H100, backward=backward[name], one_sided=one_sided).time
                for forward, backward in (every, some)
            ]
            assert times[1] == pytest.approx(times[0], rel=0.27)


def test_the_choice_for_many_documents_looks_at_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four ranks at most, of 24 documents, on four routes and with and without early rows."""
    planned = list[Sharding]()

    def counted(sharding: Sharding, *rest: object) -> Schedule:
        planned.append(sharding)
        return _planned(sharding, *rest)

    monkeypatch.setattr(auto, "_planned", counted)
    auto_routes(documents(zigzag, *DRAWN * 50, cp_size=16), CAUSAL, SHAPE, H100, one_sided=True)
    assert len(planned) <= 4 * 4 * 2 and {len(lengths(each)) for each in planned} == {24}


def test_of_nothing_there_is_nothing() -> None:
    for sharding in (documents(zigzag, 0), documents(balanced, 0, 0), documents(balanced)):
        assert typical(sharding).sharding.cu_seqlens[-1] == 0
    assert typical(documents(balanced, 0, 5, 0)).sharding.cu_seqlens == (0, 5)
    assert auto_routes(documents(balanced), CAUSAL, SHAPE, H100, one_sided=True) == WAVES


def test_documents_make_another_choice_than_one_sequence() -> None:
    """Most rows of a rank see its own keys only, and wait for nobody."""
    dealt = documents(balanced, *DRAWN)
    alone = replace(dealt, cu_seqlens=(0, dealt.cu_seqlens[-1]))
    routes = [auto_routes(each, CAUSAL, SHAPE, H100, one_sided=True).forward for each in (dealt, alone)]
    assert routes == ["gather", "waves"]


def test_a_gather_of_documents_holds_hardly_more_and_goes_first() -> None:
    """Of equal ones: each rank has 15 of them, and half of one or two parts."""
    dealt = documents(balanced, *[500] * 62)

    def planned(name: str, num_early_rows: int = 0) -> tuple[Schedule, ...]:
        return plan_all(balanced, CANDIDATES[name], dealt.cu_seqlens, 4, window=CAUSAL, num_early_rows=num_early_rows)

    forward = planned("gather", default_early_rows(7750))
    gather, waves = (
        predict(forward, SHAPE, H100, backward=planned(name), one_sided=True) for name in ("gather", "waves")
    )
    assert gather.time < waves.time <= (1 + NEARLY) * gather.time
    assert waves.peak_bytes < gather.peak_bytes <= 1.05 * waves.peak_bytes
    assert auto_routes(dealt, CAUSAL, SHAPE, H100, one_sided=True) == ("gather", "gather")


def test_for_too_many_ranks_to_plan_for_it_is_waves() -> None:
    assert choice(1 << 20, 64) == WAVES
    assert choice(0, 2) == WAVES


def test_slow_links_make_another_choice() -> None:
    """Smaller steps hide more of what they bring; a ring's gradients pass through every rank on their way home."""
    links = {name: replace(getattr(H100, name), bandwidth=10e9) for name in ("two_sided", "collective")}
    found = [choice(1 << 16, 8, machine=machine, one_sided=False) for machine in (H100, replace(H100, **links))]
    assert found == [Routes("waves", "waves"), Routes("ring", "waves(3)")]


def test_a_route_is_as_fast_as_the_kernel_that_can_compute_it() -> None:
    """Rows of a gather see more keys than there are rows, which is not for every kernel."""

    def square(schedule: Schedule) -> tuple[float, float]:
        launches = [launch for step in schedule.steps for launch in step.launches]
        able = all(launch.window == FULL or len(launch.rows) == len(launch.columns) for launch in launches)
        return (1.0, 1.0) if able else (0.49, 0.5)

    assert choice(1 << 13, 2) == choice(1 << 13, 2, speed=lambda schedule: (1.0, 1.0)) != WAVES
    assert choice(1 << 13, 2, speed=square) == WAVES


def test_a_route_that_no_kernel_can_compute_is_not_taken() -> None:
    def waves_only(schedule: Schedule) -> tuple[float, float] | None:
        return (1.0, 1.0) if schedule.route is CANDIDATES["waves"] else None

    assert choice(1 << 12, 4, speed=waves_only) == WAVES
    assert choice(1 << 12, 4, speed=lambda schedule: None) == WAVES


@pytest.mark.parametrize("cp_size", [4, 32])
def test_what_does_not_fit_is_never_taken(cp_size: int) -> None:
    sharding, window, shape = Sharding(zigzag, (0, 2**16 * cp_size), cp_size), (-1, 0), Shape(32, 32, 128)
    needed = {}
    for name, route in CANDIDATES.items():
        schedules = plan_all(zigzag, route, sharding.cu_seqlens, cp_size, window=window)
        parts = [
            [total_bytes(schedule, shape, backward=backward, one_sided=False) for schedule in schedules]
            for backward in (False, True)
        ]
        needed[name] = tuple(map(max, parts))
    assert needed["ring"][1] < needed["waves"][1]

    def chosen(capacity: float) -> Routes:
        return auto_routes(sharding, window, shape, replace(H200, capacity=capacity), one_sided=False)

    assert chosen(inf).backward == "waves"
    for capacity in (needed["waves"][1] - 1, needed["ring"][1]):
        found = chosen(capacity)
        assert needed[found.forward][0] <= capacity and needed[found.backward][1] <= capacity
    assert chosen(1) == ("ring", "ring")
