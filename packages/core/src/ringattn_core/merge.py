"""Adding up blocks of attention: softmax over parts of the keys is exact when each part brings its log-sum-exp.

For blocks (out_a, lse_a) and (out_b, lse_b) of the same queries: lse = log(exp(lse_a) + exp(lse_b)) and out =
exp(lse_a - lse) * out_a + exp(lse_b - lse) * out_b (Milakov and Gimelshein 2018, arXiv:1805.02867; Rabe and Staats
2021, arXiv:2112.05682). A row without a live key has lse -inf and out 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ringattn_core.index import row_index
from ringattn_core.kernel import Block, accumulator_dtype
from ringattn_core.schedule import Launch


class Partial:
    """The running result of a rank's queries: `out` (tokens, num_heads, head_dim_v) and `lse` (num_heads, tokens)."""

    def __init__(self, q: Tensor, head_dim_v: int) -> None:
        dtype = accumulator_dtype(q.dtype)
        tokens, num_heads, _ = q.shape
        self.out = q.new_zeros((tokens, num_heads, head_dim_v), dtype=dtype)
        self.lse = q.new_full((num_heads, tokens), -torch.inf, dtype=dtype)

    def place(self, launch: Launch, heads: slice) -> None:
        """Nothing is written here directly."""

    def add(self, launch: Launch, heads: slice, block: Block) -> None:
        """Fold a launch's block for some of the query heads in, in place."""
        rows = row_index(launch, self.out.device)
        inside = slice(None) if isinstance(rows, slice) else rows - launch.rows.start
        block_lse = block.lse[:, inside].to(self.lse.dtype)
        lse = self.lse[heads][:, rows]
        total = torch.logaddexp(lse, block_lse)
        # A row without a live key so far has lse - total = -inf + inf: its weights are 0.
        old, new = (torch.exp(part - total).nan_to_num_(0.0).T.unsqueeze(-1) for part in (lse, block_lse))
        # Where the block has no weight its rows may hold anything, even NaN.
        fresh = torch.where(new > 0, block.out[inside], 0.0)
        self.out[rows, heads] = self.out[rows, heads] * old + fresh * new
        self.lse[heads, rows] = total

    def finish(self, dtype: torch.dtype, sinks: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(out in `dtype`, lse); `sinks` (num_heads,) enter as one more key per head whose value is 0.

        Attention sinks: Xiao et al. 2023, arXiv:2309.17453, in the learnt form of gpt-oss.
        """
        out, lse = (self.out, self.lse) if sinks is None else with_sinks(self.out, self.lse, sinks)
        return out.to(dtype), lse


def with_sinks(out: Tensor, lse: Tensor, sinks: Tensor) -> tuple[Tensor, Tensor]:
    """Fold in one more key per head whose value is 0 and whose score is the sink; out and lse keep their dtypes."""
    total = torch.logaddexp(lse, sinks.to(lse.dtype)[:, None])
    weight = torch.exp(lse - total).nan_to_num_(0.0).T.unsqueeze(-1)
    return (out * weight).to(out.dtype), total


def sink_gradient(sinks: Tensor, lse: Tensor, delta: Tensor) -> Tensor:
    """The gradient of `sinks` (num_heads,) from a rank's rows: a sink's probability is exp(sink - lse), its value 0."""
    # lse is -inf where there is neither a live key nor a sink.
    weight = torch.exp(sinks.to(lse.dtype)[:, None] - lse).masked_fill(lse == -torch.inf, 0.0)
    return -(weight * delta).sum(dim=1).to(sinks.dtype)
