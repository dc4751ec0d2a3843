"""Which sums results add up in: the eager ones of `merge` and `gradient`, or, on a GPU, the fused ones of `fused`."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Protocol

import torch
from torch import Tensor

from ringattn_core.gradient import ColumnSum, RowSum, slot_sum
from ringattn_core.kernel import Block, Kernel
from ringattn_core.merge import Partial
from ringattn_core.schedule import Launch, Schedule, Step


class OutTotal(Protocol):
    """The running result of a rank's queries."""

    def place(self, launch: Launch, heads: slice) -> Block | None:
        """Where a block may be written directly, so that to add it is nothing; None if nowhere."""
        ...

    def add(self, launch: Launch, heads: slice, block: Block) -> None: ...

    def finish(self, dtype: torch.dtype, sinks: Tensor | None = None) -> tuple[Tensor, Tensor]: ...


class RowTotal(Protocol):
    """The running gradient of a rank's queries."""

    @property
    def total(self) -> Tensor: ...

    def place(self, launch: Launch, heads: slice) -> Tensor | None: ...

    def add(self, launch: Launch, heads: slice, part: Tensor) -> None: ...


class ColumnTotal(Protocol):
    """The running gradient of the keys or values in a step's buffer."""

    @property
    def total(self) -> Tensor: ...

    def place(self, launch: Launch) -> Tensor | None: ...

    def add(self, launch: Launch, part: Tensor) -> None: ...


def out_total(schedule: Schedule, kernel: Kernel, q: Tensor, head_dim_v: int) -> OutTotal:
    """Room for out and lse, (tokens, num_heads, head_dim_v) and (num_heads, tokens)."""
    if not _fuses(kernel, q):
        return Partial(q, head_dim_v)
    from ringattn_core.fused import FusedPartial

    return FusedPartial(schedule, q, head_dim_v, kernel.fills)


def row_total(schedule: Schedule, kernel: Kernel, q: Tensor) -> RowTotal:
    """Room for dq, shaped like q: in the accumulator's dtype, or, fused, summed in it and in q's own dtype."""
    if not _fuses(kernel, q):
        return RowSum(q)
    from ringattn_core.fused import FusedRowSum

    return FusedRowSum(schedule, q, kernel.fills)


def column_total(step: Step, kernel: Kernel, x: Tensor) -> ColumnTotal:
    """Room for the gradient of a step's keys or values, shaped like x; the dtypes are those of `row_total`."""
    if not _fuses(kernel, x):
        return ColumnSum(x)
    from ringattn_core.fused import FusedColumnSum

    return FusedColumnSum(step, x, kernel.fills)


def add_slots(own: Tensor, slots: Tensor, lots: tuple[tuple[int, range], ...]) -> Tensor:
    """own plus, for every lot (slot, rows), what lies in those rows of the slot; added in the accumulator's dtype.

    own: (rows, heads, dim); slots: (slots, rows or more, heads, dim). The sum comes in that dtype too, or, fused, where
    own has 16 bits on a GPU, in own's.
    """
    if own.is_cuda and own.element_size() == 2 and own.is_contiguous() and _has_triton():
        from ringattn_core.fused import fused_slots

        return fused_slots(own, slots, lots)
    return slot_sum(own, slots, lots)


def _fuses(kernel: Kernel, x: Tensor) -> bool:
    """The fused sums are for kernels whose results come in the inputs' 16 bits, on a GPU that Triton compiles for."""
    return x.is_cuda and kernel.rounds and x.element_size() == 2 and _has_triton()


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None
