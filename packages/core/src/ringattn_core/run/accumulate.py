"""Which sums results add up in: the eager ones of `merge` and `gradient`, or, on a GPU, those of the fused modules."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from ringattn_core.optional import is_installed
from ringattn_core.plan.schedule import Launch, Step
from ringattn_core.run.device_plan import DevicePlan
from ringattn_core.run.gradient import GradAccumulator, Part, part_sum
from ringattn_core.run.index import column_index, row_index
from ringattn_core.run.kernel import Block, Kernel
from ringattn_core.run.merge import OutAccumulator
from ringattn_core.run.merge import merge_gathered as merge_gathered_eagerly


class OutTotal(Protocol):
    """The running result of a rank's queries."""

    def out_for(self, launch: Launch) -> Block | None:
        """Where a block may be written directly, so that to add it is nothing; None if nowhere."""
        ...

    def add(self, launch: Launch, block: Block) -> None: ...

    def finish(self, dtype: torch.dtype, sinks: Tensor | None = None) -> tuple[Tensor, Tensor]: ...


class GradTotal(Protocol):
    """The running gradient of a rank's queries, or of the keys or values in a step's buffer."""

    @property
    def total(self) -> Tensor: ...

    def out_for(self, launch: Launch) -> Tensor | None: ...

    def add(self, launch: Launch, part: Tensor) -> None: ...


def out_total(plan: DevicePlan, kernel: Kernel, q: Tensor, head_dim_v: int) -> OutTotal:
    """Room for out and lse, (tokens, num_heads, head_dim_v) and (num_heads, tokens)."""
    if not _fuses(kernel, q):
        return OutAccumulator(plan, q, head_dim_v)
    from ringattn_core.run.fused import FusedOutAccumulator

    return FusedOutAccumulator(plan, q, head_dim_v, kernel.supports_out)


def row_total(plan: DevicePlan, kernel: Kernel, q: Tensor) -> GradTotal:
    """Room for dq, shaped like q: in the accumulator's dtype, or, fused, summed in it and in q's own dtype."""
    if not _fuses(kernel, q):
        return GradAccumulator(plan, q, row_index)
    from ringattn_core.run.fused import fused_rows

    return fused_rows(plan, q, q.shape[2], kernel.supports_out)


def column_total(plan: DevicePlan, step: Step, kernel: Kernel, x: Tensor) -> GradTotal:
    """Room for the gradient of a step's keys or values, shaped like x; the dtypes are those of `row_total`."""
    if not _fuses(kernel, x):
        return GradAccumulator(plan, x, column_index)
    from ringattn_core.run.fused import fused_columns

    return fused_columns(plan, step, x, kernel.supports_out)


def add_parts(like: Tensor, parts: Sequence[Part]) -> Tensor:
    """The sum of what was found in several places, shaped like `like` (rows, heads, dim), always in the same order.

    It is added in the accumulator's dtype and comes in it too, or, fused, where all is in 16 bits on a GPU, in like's.
    """
    if all(_is_narrow(x) for x in (like, *(part.found for part in parts))) and has_triton():
        from ringattn_core.run.fused_parts import fused_parts

        return fused_parts(like, parts)
    return part_sum(like, parts)


def merge_gathered(gathered: Tensor, dtype: torch.dtype, sinks: Tensor | None = None) -> Tensor:
    """As `merge.merge_gathered`: in one kernel where all is in float32 on a GPU that Triton compiles for."""
    if not (gathered.is_cuda and gathered.dtype == torch.float32 and has_triton()):
        return merge_gathered_eagerly(gathered, dtype, sinks)
    from ringattn_core.run.fused_merge import merge_gathered as merge_gathered_in_one_kernel

    return merge_gathered_in_one_kernel(gathered, dtype, sinks)


def _is_narrow(x: Tensor) -> bool:
    return x.is_cuda and x.element_size() == 2


def _fuses(kernel: Kernel, x: Tensor) -> bool:
    """The fused sums are for kernels whose results come in the inputs' 16 bits, on a GPU that Triton compiles for."""
    return kernel.returns_input_dtype and _is_narrow(x) and has_triton()


@cache
def has_triton() -> bool:
    """Can fused kernels be compiled here? CPU builds of PyTorch come without Triton."""
    return is_installed("triton")
