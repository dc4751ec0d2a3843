"""Adding up blocks of attention: softmax over parts of the keys is exact when each part brings its log-sum-exp.

For blocks (out_a, lse_a) and (out_b, lse_b) of the same queries: lse = log(exp(lse_a) + exp(lse_b)) and out =
exp(lse_a - lse) * out_a + exp(lse_b - lse) * out_b (Milakov and Gimelshein 2018, arXiv:1805.02867; Rabe and Staats
2021, arXiv:2112.05682).

A row that sees no key has out 0 and lse -inf. A row that sees keys and has no finite lse is NaN, as in a softmax over
all keys: a score is NaN or +inf, or all scores are -inf. A weight of 0 is multiplied like any other, so that a value
that is not finite stays visible too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ringattn_core.plan.schedule import Launch
from ringattn_core.run.device_plan import DevicePlan
from ringattn_core.run.index import LaunchIndex, row_index
from ringattn_core.run.kernel import Block, accumulator_dtype


class OutAccumulator:
    """The running result of a rank's queries: `out` (tokens, num_heads, head_dim_v) and `lse` (num_heads, tokens)."""

    def __init__(self, plan: DevicePlan, q: Tensor, head_dim_v: int) -> None:
        self._plan, self._empty = plan, True
        dtype = accumulator_dtype(q.dtype)
        tokens, num_heads, _ = q.shape
        self.out = q.new_empty((tokens, num_heads, head_dim_v), dtype=dtype)
        self.lse = q.new_full((num_heads, tokens), -torch.inf, dtype=dtype)
        # Which rows have been in a launch: no row of a tile is dead, so these see a key.
        self.seen = q.new_zeros(tokens, dtype=torch.bool)

    def out_for(self, launch: Launch) -> None:
        """Nothing is written here directly."""

    def add(self, launch: Launch, block: Block) -> None:
        """Fold a launch's block in, in place."""
        index = row_index(self._plan, launch)
        if self._empty and index.covers(len(self.out)):
            self._empty = False
            self.out.copy_(block.out)
            self.lse.copy_(block.lse)
            self.seen.fill_(True)
        else:
            self._clear()
            self._fold(index, block.out[index.box], block.lse[:, index.box].to(self.lse.dtype))

    def _clear(self) -> None:
        """Nothing is added up yet where no block has been folded in."""
        if self._empty:
            self.out.zero_()
        self._empty = False

    def _fold(self, index: LaunchIndex, block_out: Tensor, block_lse: Tensor) -> None:
        rows = index.whole
        lse = self.lse[:, rows]
        total = torch.logaddexp(lse, block_lse)
        old, new = (_weight(part, total) for part in (lse, block_lse))
        self.out[rows] = self.out[rows] * old + block_out * new
        self.lse[:, rows] = total
        self.seen[rows] = True

    def finish(self, dtype: torch.dtype, sinks: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(out in `dtype`, lse); `sinks` (num_heads,) enter as one more key per head whose value is 0.

        Attention sinks: Xiao et al. 2023, arXiv:2309.17453, in the learnt form of gpt-oss.
        """
        self._clear()
        out, lse = (self.out, self.lse) if sinks is None else with_sinks(self.out, self.lse, sinks)
        undefined = self.seen & ~(lse.abs() < torch.inf)
        return out.masked_fill_(undefined.T.unsqueeze(-1), torch.nan).to(dtype), lse


def merge_gathered(gathered: Tensor, dtype: torch.dtype, sinks: Tensor | None = None) -> Tensor:
    """Attention of the same queries to several sets of keys, merged: (rows, tokens, num_heads, head_dim_v) in `dtype`.

    gathered: (sets, rows, num_heads, tokens, head_dim_v + 1), each set's out with its lse as the last column. In a set
    without keys a query has out 0 and lse -inf. A query with lse -inf in all sets, and no sink, becomes NaN: its scores
    may all be -inf. sinks: (num_heads,), as of `OutAccumulator.finish`.
    """
    outs, lses = gathered[..., :-1], gathered[..., -1]
    if sinks is not None:
        lses = torch.cat([lses, sinks.to(lses.dtype)[None, None, :, None].expand_as(lses[:1])])
    # A sink has a weight and no out: its value is 0.
    return weighted_sum(outs, lses.softmax(dim=0)[: len(outs)]).to(dtype).transpose(1, 2).contiguous()


def weighted_sum(outs: Tensor, weights: Tensor) -> Tensor:
    """The sum over sets of their `outs`, (sets, ..., head_dim_v), times `weights`, (sets, ...)."""
    return (weights.unsqueeze(-1) * outs).sum(dim=0)


def with_sinks(out: Tensor, lse: Tensor, sinks: Tensor) -> tuple[Tensor, Tensor]:
    """Fold in one more key per head whose value is 0 and whose score is the sink; out and lse keep their dtypes."""
    total = torch.logaddexp(lse, sinks.to(lse.dtype)[:, None])
    weight = torch.exp(lse - finite_or_nan(total)).masked_fill(total == -torch.inf, 0.0)
    return (out * weight.T.unsqueeze(-1)).to(out.dtype), total


def finite_or_nan(lse: Tensor) -> Tensor:
    """lse with NaN for -inf and +inf: what makes every probability of such a row NaN, as softmax does."""
    return lse.add(lse, alpha=0)  # 0 * inf is NaN.


def _weight(part: Tensor, total: Tensor) -> Tensor:
    """What a part of the keys weighs, (tokens, num_heads, 1): 0 where all of its scores are -inf, or it has no keys."""
    return torch.exp(part - total).masked_fill(part == -torch.inf, 0.0).T.unsqueeze(-1)


def sink_gradient(sinks: Tensor, lse: Tensor, delta: Tensor) -> Tensor:
    """The gradient of `sinks` (num_heads,) from a rank's rows: a sink's probability is exp(sink - lse), its value 0."""
    # lse is -inf where there is neither a live key nor a sink.
    weight = torch.exp(sinks.to(lse.dtype)[:, None] - lse).masked_fill(lse == -torch.inf, 0.0)
    return -(weight * delta).sum(dim=1).to(sinks.dtype)
