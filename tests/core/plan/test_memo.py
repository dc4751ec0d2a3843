"""What is kept is bounded: by its bytes, or by the life of what it is about."""

from __future__ import annotations

import gc
import random
import tracemalloc
from itertools import accumulate

import pytest

from plans import causal
from ringattn_core.plan import lines, planner
from ringattn_core.plan.layout import Layout, balanced, contiguous, striped, zigzag
from ringattn_core.plan.memo import Numbered, Shared, by_owner, recent
from ringattn_core.plan.planner import plan
from ringattn_core.plan.route import gather, ring, waves


class Owner:
    pass


def test_what_belongs_to_an_owner_goes_with_it() -> None:
    made: list[int] = []
    square = by_owner(lambda owner, number: made.append(number) or number**2)
    owner = Owner()
    assert [square(owner, 3), square(owner, 3), square(owner, 4), square(Owner(), 3)] == [9, 9, 16, 9]
    assert made == [3, 4, 3]
    assert (reference := gc.get_referrers(owner)) is not None and len(reference) <= 1


def test_the_latest_results_are_kept_within_a_budget() -> None:
    made: list[int] = []
    numbers = recent(100, lambda result: 10 * len(result), least=2)(lambda count: made.append(count) or [0] * count)
    for count in (3, 4, 3, 5, 3, 4, 20, 30, 20, 30, 3):
        assert len(numbers(count)) == count
    # 4 was used longest ago when 5 came; two are kept whatever their size.
    assert made == [3, 4, 5, 4, 20, 30, 3]
    numbers.cache_clear()
    numbers(3)
    assert made[-2:] == [3, 3]


def test_equal_arguments_share_what_is_in_use() -> None:
    make = Shared(lambda number: Owner())
    first = make(1)
    assert make(1) is first and make(2) is not first
    del first
    gc.collect()
    assert make.cache_info() == "0 results that are in use"


def test_an_object_is_known_by_its_number_while_it_lives() -> None:
    numbered, owners = Numbered[Owner](), [Owner(), Owner()]
    numbers = [numbered.add(owner) for owner in owners]
    assert [numbered[number] for number in numbers] == owners and len(set(numbers)) == 2
    owners.pop()
    gc.collect()
    with pytest.raises(RuntimeError, match="is gone before its backward pass: keep the ContextParallel and the mask"):
        numbered[numbers[1]]
    assert numbered[numbers[0]] is owners[0]


def documents(seed: int, count: int, tokens: int) -> tuple[int, ...]:
    draw = random.Random(seed)
    return (0, *sorted(draw.sample(range(1, tokens), count - 1)), tokens)


def test_plans_of_ever_new_lengths_take_no_more_and_no_more_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """2,000 batches: as many objects live after all of them as after a tenth."""
    monkeypatch.setattr(planner._planned, "_budget", 1 << 18)
    alive = list[int]()
    for step in range(2000):
        borders = documents(step, 3, 96)
        layout: Layout = (zigzag, balanced, striped, contiguous)[step % 4]
        plan(
            layout, (gather, waves(2), ring)[step % 3], borders, borders, 1, 2, window=(-1, 0), num_early_rows=step % 2
        )
        if step % 200 == 199:
            gc.collect()
            alive.append(len(gc.get_objects()))
    planner._planned.cache_clear()
    assert alive[-1] - alive[0] < 2000, alive


@pytest.mark.parametrize("layout", [zigzag, contiguous, striped], ids=lambda layout: layout.__name__)
def test_plans_of_many_documents_for_many_ranks_are_small(layout: Layout) -> None:
    """The last plans of 512 ranks take as much, for each of their documents and ranks, as these of 64."""
    tracemalloc.start()
    try:
        planned = [
            plan(layout, route, borders, borders, 1, 64, window=(-1, 0))
            for borders in [documents(0, 60, 30_000)]
            for route in (ring, waves(2))
        ]
        for step in (step for each in planned for step in each.steps):
            tuple(step.key_slices)  # They are worked out when they are looked at.
        planner._planned.cache_clear()
        lines.mask.cache_clear()
        lines.shards.cache_clear()
        gc.collect()
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held < 64 * 60 * (900 if layout is striped else 250), held


def test_a_sequence_over_thousands_of_ranks_is_planned_in_little_memory() -> None:
    tracemalloc.start()
    try:
        for route in (ring, waves(2), gather):
            plan(zigzag, route, (0, 100_000_000), (0, 100_000_000), 3, 4096, window=(-1, 0))
            assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()
        planner._planned.cache_clear()


def test_what_was_found_for_a_schedule_goes_with_it() -> None:
    planned = causal(zigzag, gather, 4, *accumulate([3, 9, 4]))
    before = len(planner.outgoing_rows(planned[0], 1))
    assert before > 0 and planner.outgoing_rows(planned[0], 1) is planner.outgoing_rows(planned[0], 1)
