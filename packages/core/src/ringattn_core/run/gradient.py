"""Adding up the gradients that launches and ranks find, in the accumulator's dtype."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ringattn_core.plan.schedule import Launch
from ringattn_core.run.device_plan import DevicePlan
from ringattn_core.run.index import column_index, row_index
from ringattn_core.run.kernel import accumulator_dtype


class DqAccumulator:
    """The gradient of a rank's queries, (tokens, num_heads, head_dim)."""

    def __init__(self, plan: DevicePlan, q: Tensor) -> None:
        self._plan = plan
        self.total = torch.zeros_like(q, dtype=accumulator_dtype(q.dtype))

    def out_for(self, launch: Launch) -> None:
        """Nothing is written here directly."""

    def add(self, launch: Launch, part: Tensor) -> None:
        """Add what a launch found; `part` covers the box around its rows."""
        _add(self.total, row_index(self._plan, launch), launch.rows.start, part)


class DkvAccumulator:
    """The gradient of the keys or values in a step's buffer, (columns, kv heads, dim)."""

    def __init__(self, plan: DevicePlan, x: Tensor) -> None:
        self._plan = plan
        self.total = torch.zeros_like(x, dtype=accumulator_dtype(x.dtype))

    def out_for(self, launch: Launch) -> None:
        """Nothing is written here directly."""

    def add(self, launch: Launch, part: Tensor) -> None:
        """Add what a launch found; `part` covers the box around its columns."""
        _add(self.total, column_index(self._plan, launch), launch.columns.start, part)


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


def _add(total: Tensor, index: slice | Tensor, start: int, part: Tensor) -> None:
    if isinstance(index, slice):
        total[index] += part
    else:
        total[index] += part[index - start].to(total.dtype)
