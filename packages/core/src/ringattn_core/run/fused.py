"""Folding blocks and gradients on a GPU in one pass each, in place: the same sums as in `merge` and `gradient`.

A block that comes first is the running result, without a copy, where it covers all rows. A later one is read once, and
the running result read and written once: in the final dtype, which a row that is touched no more than twice never
leaves, or in float32 where more is to come.

Fast kernels do not tell which of NaN, +inf and nothing but -inf made a row's sum of exponentials no finite number: some
return lse inf for all, some -inf, and out may even be 0. So here such a row of any block is NaN, in out and in lse.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from operator import attrgetter

import torch
import triton
import triton.language as tl
from torch import Tensor

from ringattn_core.plan.row_writes import RowWrites, column_writes, row_writes
from ringattn_core.plan.schedule import Launch, Step
from ringattn_core.run.device_plan import DevicePlan
from ringattn_core.run.kernel import Block
from ringattn_core.run.merge import with_sinks
from ringattn_core.run.row_flags import column_flags_of, row_flags_of

ROWS = 32


class FusedOutAccumulator:
    """`merge.OutAccumulator` for blocks in the final dtype."""

    def __init__(self, plan: DevicePlan, q: Tensor, head_dim_v: int, supports_out: bool = False) -> None:
        self._sum = fused_rows(plan, q, head_dim_v, supports_out)
        self._lse: Tensor | None = self._room() if supports_out else None

    def out_for(self, launch: Launch) -> Block | None:
        out = self._sum.out_for(launch)
        return None if out is None else Block(out, self._running_lse[:, launch.rows.start : launch.rows.stop])

    def add(self, launch: Launch, block: Block) -> None:
        """Fold a launch's block in, in place."""
        if self._sum.has(launch, block.out):
            return
        if self._sum.adopt(launch, block.out):
            self._lse = block.lse
        else:
            self._sum.fold(launch, block.out, self._running_lse, block.lse)

    def finish(self, dtype: torch.dtype, sinks: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(out, lse), as of `OutAccumulator.finish`."""
        out, lse = self._sum.total, self._running_lse
        if len(out):
            grid = triton.cdiv(len(out), ROWS), out.shape[1]
            width = triton.next_power_of_2(out.shape[2])
            _mark_undefined[grid](out, lse, *out.shape[::2], *out.stride()[:2], lse.stride(0), ROWS, width)
        for rows in self._sum.writes.unwritten:
            out[rows.start : rows.stop], lse[:, rows.start : rows.stop] = 0, -torch.inf
        return (out, lse) if sinks is None else with_sinks(out, lse, sinks)

    @property
    def _running_lse(self) -> Tensor:
        if self._lse is None:
            self._lse = self._room()
        return self._lse

    def _room(self) -> Tensor:
        tokens, num_heads, _ = self._sum.shape
        return self._sum.like.new_empty((num_heads, tokens), dtype=torch.float32)


class FusedSum:
    """A running sum of what launches compute for some rows, (rows, heads, dim), in the final dtype.

    `writes` says how often each row is written, `flags` what that means for the rows of a launch, and `box` is the box
    of rows that a launch's results cover. The sum is shaped like `like`, with `dim` as its last dimension.
    """

    def __init__(
        self,
        writes: RowWrites,
        flags: Callable[[Launch], Tensor],
        box: Callable[[Launch], range],
        like: Tensor,
        dim: int,
        supports_out: bool,
    ) -> None:
        self.writes, self.shape, self.like = writes, (*like.shape[:2], dim), like
        self._flags, self._box, self._supports_out = flags, box, supports_out
        # What concurrent launches write into exists before any of them begins.
        self._narrow: Tensor | None = self._room() if supports_out else None
        self._wide: Tensor | None = None
        self._outs: dict[Launch, Tensor] = {}

    def out_for(self, launch: Launch) -> Tensor | None:
        """Where a kernel may write a part that is the first in all its rows; it leaves gaps between tiles alone."""
        if not (self._supports_out and self._first(launch)):
            return None
        box = self._box(launch)
        place = self._outs[launch] = self.total[box.start : box.stop]
        return place

    def add(self, launch: Launch, part: Tensor) -> None:
        """Add what a launch computed."""
        if not (self.has(launch, part) or self.adopt(launch, part)):
            self.fold(launch, part)

    def has(self, launch: Launch, part: Tensor) -> bool:
        """Is the part in its place already?"""
        return part is self._outs.get(launch)

    def adopt(self, launch: Launch, part: Tensor) -> bool:
        """Take a part that is first everywhere as the running result itself, if it is whole."""
        whole = self._narrow is None and part.shape == self.shape and part.is_contiguous()
        if whole and not self.writes.unwritten and self._first(launch):
            self._narrow = part
            return True
        return False

    @property
    def total(self) -> Tensor:
        """The result, once every launch has been added."""
        if self._narrow is None:
            self._narrow = self._room()
        return self._narrow

    def _first(self, launch: Launch) -> bool:
        return all(write.write_index == 0 for write in self.writes.of[launch])

    def _room(self) -> Tensor:
        """Room for the result, 0 in the rows that no launch touches."""
        room = self.like.new_empty(self.shape)
        for rows in self.writes.unwritten:
            room[rows.start : rows.stop] = 0
        return room

    def fold(self, launch: Launch, part: Tensor, lse: Tensor | None = None, part_lse: Tensor | None = None) -> None:
        """Fold in a part in place; weighted by log-sum-exps, or, without them, plainly added."""
        row_flags, box, narrow = self._flags(launch), self._box(launch), self.total
        if self._wide is None and self.writes.most > 2:
            self._wide = torch.empty(self.shape, dtype=torch.float32, device=part.device)
        wide = narrow if self._wide is None else self._wide
        weighted = lse is not None and part_lse is not None
        old, new = (lse, part_lse) if weighted else (narrow, part)
        assert old is not None and new is not None
        dim = part.shape[2]
        _fold_rows[(triton.cdiv(len(box), ROWS), part.shape[1])](
            narrow, wide, old, part, new, row_flags, len(box), box.start, dim,
            *narrow.stride()[:2], *wide.stride()[:2], old.stride(0), *part.stride()[:2], new.stride(0),
            weighted, ROWS, triton.next_power_of_2(dim), num_warps=8,
        )  # fmt: skip


def fused_rows(plan: DevicePlan, q: Tensor, dim: int, supports_out: bool = False) -> FusedSum:
    """The sum of what launches compute for a rank's queries, dq or out, as of `gradient.GradAccumulator`."""
    return FusedSum(row_writes(plan.schedule), partial(row_flags_of, plan), attrgetter("rows"), q, dim, supports_out)


def fused_columns(plan: DevicePlan, step: Step, x: Tensor, supports_out: bool = False) -> FusedSum:
    """The sum of what launches compute for the keys or values in a step's buffer, as of `gradient.GradAccumulator`."""
    flags = partial(column_flags_of, plan, step, len(x))
    return FusedSum(column_writes(step, len(x)), flags, attrgetter("columns"), x, x.shape[2], supports_out)


@triton.jit  # type: ignore[untyped-decorator]
def _fold_rows(  # type: ignore[no-untyped-def]
    narrow, wide, lse, part, part_lse, row_flags, rows, start, dim,
    narrow_row, narrow_head, wide_row, wide_head, lse_head, part_row, part_head, part_lse_head,
    weighted: tl.constexpr, block: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    """One block of rows of one head."""
    head = tl.program_id(1)
    row = tl.program_id(0) * block + tl.arange(0, block)
    column = tl.arange(0, width)[None, :]
    code = tl.load(row_flags + row, mask=row < rows, other=0).to(tl.int32)
    touched = (code & 1) != 0
    from_narrow, from_wide, to_wide = (code & 2) != 0, (code & 4) != 0, (code & 8) != 0
    within = column < dim
    place = (start + row).to(tl.int64)
    at_narrow = narrow + place[:, None] * narrow_row + head * narrow_head + column
    at_wide = wide + place[:, None] * wide_row + head * wide_head + column
    at_part = part + row.to(tl.int64)[:, None] * part_row + head * part_head + column
    fresh = tl.load(at_part, mask=touched[:, None] & within, other=0.0).to(tl.float32)
    state = tl.load(at_narrow, mask=from_narrow[:, None] & within, other=0.0).to(tl.float32)
    state += tl.load(at_wide, mask=from_wide[:, None] & within, other=0.0).to(tl.float32)
    if weighted:
        at_lse = lse + head * lse_head + place
        infinity, again = float("inf"), from_narrow | from_wide
        old = tl.load(at_lse, mask=again, other=-infinity)
        new = tl.load(part_lse + head * part_lse_head + row, mask=touched, other=0.0)
        top = tl.maximum(old, new)
        weight_old, weight_new = tl.exp(old - top), tl.exp(new - top)
        # A row that is touched sees a key: -inf stands for no sum yet only where nothing has been folded in.
        defined = (tl.abs(new) < infinity) & ((tl.abs(old) < infinity) | ~again)
        total = tl.where(defined, weight_old + weight_new, float("nan"))
        state = state * (weight_old / total)[:, None] + fresh * (weight_new / total)[:, None]
        tl.debug_barrier()  # Several warps hold the same row: all have read its old lse before one of them writes.
        tl.store(at_lse, top + tl.log(total), mask=touched)
    else:
        state += fresh
    tl.store(at_narrow, state.to(narrow.dtype.element_ty), mask=(touched & ~to_wide)[:, None] & within)
    tl.store(at_wide, state.to(wide.dtype.element_ty), mask=to_wide[:, None] & within)


@triton.jit  # type: ignore[untyped-decorator]
def _mark_undefined(  # type: ignore[no-untyped-def]
    out, lse, rows, dim, out_row, out_head, lse_head, block: tl.constexpr, width: tl.constexpr
):
    """One block of rows of one head: NaN where lse is not finite, nothing elsewhere."""
    head = tl.program_id(1)
    row = tl.program_id(0) * block + tl.arange(0, block)
    column = tl.arange(0, width)[None, :]
    at_lse = lse + head * lse_head + row
    undefined = (row < rows) & ~(tl.abs(tl.load(at_lse, mask=row < rows, other=0.0)) < float("inf"))
    nan = tl.full((block, width), float("nan"), dtype=tl.float32).to(out.dtype.element_ty)
    at_out = out + row.to(tl.int64)[:, None] * out_row + head * out_head + column
    tl.store(at_out, nan, mask=undefined[:, None] & (column < dim))
    tl.debug_barrier()  # Several warps hold the same row: all have read its lse before one of them writes.
    tl.store(at_lse, tl.full((block,), float("nan"), dtype=tl.float32), mask=undefined)
