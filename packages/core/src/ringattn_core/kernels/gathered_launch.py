"""A launch as FlashAttention-2 takes it, PyTorch's own or the package's: rows without gaps and cumulative lengths."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ringattn_core.kernels.lengths import column_lengths, row_lengths
from ringattn_core.plan.schedule import Launch
from ringattn_core.plan.tile import CAUSAL, FULL
from ringattn_core.run.device_plan import DevicePlan, planned
from ringattn_core.run.index import LaunchIndex, column_index, row_index
from ringattn_core.run.kernel import Block, Grads


@dataclass(frozen=True, slots=True, eq=False)
class GatheredLaunch:
    """Gathers a launch's rows and columns before a call, and spreads the results over its box afterwards."""

    rows: LaunchIndex
    columns: LaunchIndex
    # cu_seqlens of queries and keys, and the longest of each; None: a single tile goes as a batch of one.
    lengths: tuple[Tensor, Tensor, int, int] | None

    def of_rows(self, x: Tensor) -> Tensor:
        """The launch's rows of (tokens, heads, dim)."""
        return self._batched(x[self.rows.whole])

    def of_columns(self, x: Tensor) -> Tensor:
        """The launch's columns of (tokens, heads, dim)."""
        return self._batched(x[self.columns.whole])

    def of_lse(self, lse: Tensor) -> Tensor:
        """The launch's rows of (heads, tokens), contiguous: the operators look at no stride of lse."""
        return self._batched(lse[:, self.rows.whole].contiguous())

    def block(self, out: Tensor, lse: Tensor) -> Block:
        """What a forward call returns, in the launch's box."""
        out, lse = (out, lse) if self.lengths else (out[0], lse[0])
        if _few_rows(out):
            lse = lse.masked_fill(out.isnan().all(-1).T, torch.nan)
        if isinstance(self.rows.box, slice):
            return Block(out, lse)
        box_lse = lse.new_empty((lse.shape[0], self.rows.length))
        box_lse[:, self.rows.box] = lse
        return Block(_in_box(out, self.rows), box_lse)

    def grads(self, dq: Tensor, dk: Tensor, dv: Tensor) -> Grads:
        """What a backward call returns, in the launch's boxes."""
        dq, dk, dv = (dq, dk, dv) if self.lengths else (dq[0], dk[0], dv[0])
        return Grads(_in_box(dq, self.rows), _in_box(dk, self.columns), _in_box(dv, self.columns))

    def _batched(self, x: Tensor) -> Tensor:
        return x if self.lengths else x[None]


@planned
def gathered_launch(plan: DevicePlan, launch: Launch) -> GatheredLaunch:
    """The launch on the device of a plan."""
    rows, columns = row_lengths(plan, launch), column_lengths(plan, launch)
    longest = columns.longest
    if launch.window not in (FULL, CAUSAL):
        # FlashAttention-2 compares the right side of a window with the number of keys instead of that of queries. It
        # takes a side that reaches as far as there are keys for open, and an open side next to a closed left one for
        # the number of keys. Both are wrong for tiles with more queries than keys, unless the longest key length,
        # which is only a bound, is given as the number of queries.
        longest = max(longest, rows.longest)
    alone = len(launch.tiles) == 1 and longest == columns.longest
    lengths = None if alone else (rows.compact, columns.compact, rows.longest, longest)
    return GatheredLaunch(row_index(plan, launch), column_index(plan, launch), lengths)


def _few_rows(out: Tensor) -> bool:
    """May FlashAttention-2 have divided the keys of (rows, heads, dim) among multiprocessors, to keep them all busy?

    It does where blocks of 128 rows fill less than 0.8 of them twice. Where the scores of a row are NaN, it then leaves
    a share of its keys out of lse, and only out is NaN.
    """
    if out.device.type != "cuda":
        return False
    multiprocessors = torch.cuda.get_device_properties(out.device).multi_processor_count
    return out.shape[0] * out.shape[1] < 0.8 * 2 * 128 * multiprocessors


def _in_box(x: Tensor, index: LaunchIndex) -> Tensor:
    if isinstance(index.box, slice):
        return x
    spread = x.new_empty((index.length, *x.shape[1:]))
    spread[index.box] = x
    return spread
