"""Sums of what was found in several places."""

from __future__ import annotations

import torch

from ringattn_core.plan.schedule import Launch
from ringattn_core.plan.tile import Tile
from ringattn_core.run.accumulate import add_parts
from ringattn_core.run.device_plan import DevicePlan
from ringattn_core.run.gradient import GradAccumulator, Part
from ringattn_core.run.index import column_index, places, row_index

CPU = torch.device("cpu")


def test_every_part_adds_what_it_has_for_a_row() -> None:
    like = torch.empty(5, 2, 3, dtype=torch.float64)
    first, second = torch.randn(5, 2, 3, dtype=torch.float64), torch.randn(9, 2, 3, dtype=torch.float64)
    parts = [
        Part(first, places([(range(5), 0)], 5, CPU)),
        Part(second, places([(range(1, 3), 6), (range(4, 5), 0)], 5, CPU)),
    ]
    want = first.clone()
    want[1:3] += second[6:8]
    want[4] += second[0]
    assert torch.equal(add_parts(like, parts), want)


def test_it_is_added_in_float32_and_in_the_order_of_the_parts() -> None:
    like = torch.empty(1, 1, 1, dtype=torch.bfloat16)
    parts = [Part(torch.full((1, 1, 1), x, dtype=torch.bfloat16), places([(range(1), 0)], 1, CPU)) for x in (1, 2**-9)]
    total = add_parts(like, parts * 2)
    assert total.dtype == torch.float32 and total.item() == 2 + 2**-8  # in bfloat16 it would be 2
    large = [Part(torch.full((1, 1, 1), x), places([(range(1), 0)], 1, CPU)) for x in (2.0**30, -(2.0**30), 1.0)]
    assert add_parts(like, large).item() == 1.0 and add_parts(like, large[::-1]).item() == 0.0


def test_no_part_at_all_is_zero() -> None:
    like = torch.full((3, 2, 2), torch.nan, dtype=torch.bfloat16)
    assert torch.equal(add_parts(like, []), torch.zeros(3, 2, 2))


def test_what_is_not_finite_reaches_the_rows_it_belongs_to_and_no_others() -> None:
    """A part covers a box, and what lies between its rows belongs to none, whatever it is."""
    launch = Launch((Tile(range(1, 2), range(0, 1)), Tile(range(3, 5), range(4, 6))))
    like = torch.empty(6, 2, 3, dtype=torch.float64)
    for total, first, inside in (
        (GradAccumulator(DevicePlan(CPU), like, row_index), 1, [1, 3, 4]),
        (GradAccumulator(DevicePlan(CPU), like, column_index), 0, [0, 4, 5]),
    ):
        part = torch.full((len(launch.rows) if first else len(launch.columns), 2, 3), torch.nan, dtype=torch.float64)
        part[inside[1] - first] = 1.0
        total.add(launch, part)
        assert total.total[[inside[0], inside[2]]].isnan().all()
        assert (total.total[inside[1]] == 1).all()
        assert (total.total[[row for row in range(6) if row not in inside]] == 0).all()


def test_a_first_part_that_covers_everything_is_copied() -> None:
    """Kernels keep what they return: the next part is not added into it."""
    launch, like = Launch((Tile(range(3), range(2)),)), torch.empty(3, 2, 2, dtype=torch.bfloat16)
    total, first = GradAccumulator(DevicePlan(CPU), like, row_index), torch.randn(3, 2, 2)
    for part in (given := first.clone(), torch.ones(3, 2, 2), first):
        total.add(launch, part)
    assert torch.equal(given, first) and total.total.dtype == torch.float32
    assert torch.equal(total.total, first + 1 + first)
    assert torch.equal(GradAccumulator(DevicePlan(CPU), like, row_index).total, torch.zeros(3, 2, 2))


def test_a_part_that_is_not_finite_leaves_rows_that_it_has_no_place_for() -> None:
    like, odd = torch.empty(4, 1, 2, dtype=torch.float64), torch.tensor([torch.nan, torch.inf]).double()
    parts = [
        Part(odd.expand(2, 1, 2), places([(range(1, 3), 0)], 4, CPU)),
        Part(torch.ones(4, 1, 2), places([(range(4), 0)], 4, CPU)),
    ]
    total = add_parts(like, parts)
    assert torch.equal(total[[0, 3]], torch.ones(2, 1, 2, dtype=torch.float64))
    assert total[1:3, 0, 0].isnan().all() and (total[1:3, 0, 1] == torch.inf).all()
