"""Sums of what was found in several places."""

from __future__ import annotations

import torch

from ringattn_core.gradient import Part
from ringattn_core.index import places
from ringattn_core.totals import add_parts

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
