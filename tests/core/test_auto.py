"""What "auto" takes: the same on all ranks, for the sizes where routes differ."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from ringattn_core.auto import BACKWARD, CANDIDATES, EQUAL, FORWARD, NEARLY, Routes, auto_routes, typical
from ringattn_core.layout import Division, Layout, balanced, contiguous, zigzag
from ringattn_core.machine import H100
from ringattn_core.planner import plan_all
from ringattn_core.schedule import Schedule
from ringattn_core.settled import early_rows
from ringattn_core.shape import Shape
from ringattn_core.simulate import predict
from ringattn_core.tile import FULL

SHAPE = Shape(32, 8, 128, grad_itemsize=2)
CAUSAL = (-1, 0)
WAVES = Routes("waves", "waves")


def choice(tokens: int, cp_size: int, **changes: object) -> Routes:
    given = {"window": CAUSAL, "shape": SHAPE, "machine": H100, "one_sided": True} | changes
    return auto_routes(zigzag, (0, tokens), cp_size, **given)


@pytest.mark.parametrize(("cp_size", "tokens"), [(2, 1 << 14), (4, 1 << 15), (8, 1 << 16), (8, 1 << 18)])
def test_it_is_the_fastest_by_prediction(cp_size: int, tokens: int) -> None:
    planned = {
        name: [
            plan_all(zigzag, route, (0, tokens), cp_size, window=CAUSAL, ahead=ahead)
            for ahead in (early_rows(tokens // cp_size), 0)
        ]
        for name, route in CANDIDATES.items()
    }
    chosen = choice(tokens, cp_size)
    first = planned[chosen.forward][0]
    for name, pairs, alike in (
        (chosen.forward, {name: (planned[name][0], ()) for name in FORWARD}, EQUAL),
        (chosen.backward, {name: (first, planned[name][1]) for name in BACKWARD}, NEARLY),
    ):
        times = {
            each: predict(forward, SHAPE, H100, backward=backward, one_sided=True).time
            for each, (forward, backward) in pairs.items()
        }
        bound = (1 + alike) * min(times.values())
        assert times[name] <= bound
        assert all(times[each] > bound for each in list(times)[: list(times).index(name)]), "or one of more preference"


def test_divisions_of_one_magnitude_share_a_choice() -> None:
    for tokens in (33_000, 50_001, 65_536):
        assert typical(Division(zigzag, (0, tokens), 8)) == (0, 1 << 16)


def documents(layout: Layout, count: int, *, per_sequence: bool = True) -> Division:
    return Division(layout, tuple(range(0, count * 1000 + 1, 1000)), 8, per_sequence)


def test_sequences_count_where_they_lie_whole_on_a_rank() -> None:
    assert typical(documents(zigzag, 19)) == typical(documents(contiguous, 19)) == (0, 1 << 15)
    for division in (documents(balanced, 19), documents(contiguous, 19, per_sequence=False)):
        borders = typical(division)
        lengths = sorted(stop - start for start, stop in pairwise(borders))
        assert (borders[0], borders[-1], len(lengths)) == (0, 1 << 15, 16)
        assert lengths[8] == pytest.approx(1245, rel=0.2) and lengths[-1] > 4 * lengths[8], "a few hold most tokens"
    assert len(typical(documents(balanced, 1000))) - 1 == 32, "to plan for all would take too long"
    assert typical(documents(balanced, 0)) == (0, 1)


def test_documents_make_another_choice_than_one_sequence() -> None:
    """Most rows of a rank see its own keys only, and wait for nobody."""
    given = {"window": CAUSAL, "shape": SHAPE, "machine": H100, "one_sided": True}
    dealt = documents(balanced, 33)
    assert auto_routes(balanced, typical(dealt), 4, **given).forward == "gather"
    assert auto_routes(balanced, (0, typical(dealt)[-1]), 4, **given).forward == "waves"


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

    def square(schedule: Schedule) -> str:
        launches = [launch for step in schedule.steps for launch in step.launches]
        able = all(launch.window == FULL or len(launch.rows) == len(launch.columns) for launch in launches)
        return "flash_attn_4" if able else "torch_flash"

    assert choice(1 << 13, 2) == choice(1 << 13, 2, kernel=lambda schedule: "flash_attn_4") != WAVES
    assert choice(1 << 13, 2, kernel=square) == WAVES


def test_a_route_that_no_kernel_can_compute_is_not_taken() -> None:
    def waves_only(schedule: Schedule) -> str | None:
        return "flash_attn_4" if schedule.route is CANDIDATES["waves"] else None

    assert choice(1 << 12, 4, kernel=waves_only) == WAVES
    assert choice(1 << 12, 4, kernel=lambda schedule: None) == WAVES
