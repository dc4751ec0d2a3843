"""What tests measure errors with finds a NaN: Python's `max` and `>` pass over one, so it has to count as infinite."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import problem
from adapters.hf import compare
from ringattn.tensors import distance


@pytest.mark.parametrize("measure", [distance, compare.relative, problem.distance])
def test_a_nan_is_infinitely_far(measure: Callable[[Tensor, Tensor], float]) -> None:
    expected = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    assert measure(expected.clone(), expected) == 0.0 < measure(expected + 1, expected) < 3
    for at in range(3):
        for wrong in (torch.nan, torch.inf, -torch.inf):
            found = expected.index_fill(0, torch.tensor([at]), wrong)
            assert measure(found, expected) == measure(expected, found) == torch.inf
