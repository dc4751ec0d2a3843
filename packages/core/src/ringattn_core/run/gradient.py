"""Adding up the gradients that launches and ranks find, in the accumulator's dtype."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ringattn_core.plan.schedule import Launch
from ringattn_core.run.device_plan import DevicePlan
from ringattn_core.run.index import LaunchIndex
from ringattn_core.run.kernel import accumulator_dtype


class GradAccumulator:
    """The gradient of a rank's queries, or of the keys or values in a step's buffer: shaped like `x`.

    `index` is `row_index` for queries and `column_index` for keys.
    """

    def __init__(self, plan: DevicePlan, x: Tensor, index: Callable[[DevicePlan, Launch], LaunchIndex]) -> None:
        self._plan, self._like, self._index = plan, x, index
        self._total: Tensor | None = None

    def out_for(self, launch: Launch) -> None:
        """Nothing is written here directly."""

    def add(self, launch: Launch, part: Tensor) -> None:
        """Add what a launch found; `part` covers the box around its rows or columns."""
        index, dtype = self._index(self._plan, launch), accumulator_dtype(self._like.dtype)
        if self._total is None and index.covers(len(self._like)):
            self._total = part.to(dtype, copy=True)
        elif isinstance(index.whole, slice):
            self.total[index.whole].add_(part)
        else:
            self.total[index.whole] += part[index.box].to(dtype)

    @property
    def total(self) -> Tensor:
        """The sum so far, in the accumulator's dtype."""
        if self._total is None:
            self._total = torch.zeros_like(self._like, dtype=accumulator_dtype(self._like.dtype))
        return self._total


class Part(NamedTuple):
    """What somebody found for some rows of a sum."""

    found: Tensor  # (n, heads, dim)
    places: Tensor  # (rows of the sum,) int32: where in `found` each row of the sum lies; -1: nowhere


def part_sum(like: Tensor, parts: Sequence[Part]) -> Tensor:
    """The sum of some parts, one after the other, as of `accumulate.add_parts`."""
    total = torch.zeros_like(like, dtype=accumulator_dtype(like.dtype))
    for found, places in parts:
        if len(found):
            # Not by the rows that have a place: a GPU's host would wait for their number.
            nowhere = (places < 0)[:, None, None]
            total += found[places.clamp(min=0)].to(total.dtype).masked_fill(nowhere, 0.0)
    return total
