"""The oracle: dense attention in plain PyTorch, one sequence at a time, with gradients by autograd.

In float64 it is the truth that everything else is measured against. In bfloat16 or float16 it is what anyone would
write in that dtype, and so the yardstick of what error is fair: ours may be twice as large, flash-attention's rule.

In a dense product 0 * NaN spreads what is not finite to rows that do not see it. `apart` gives every cell copies of its
query, key and value, 0 where the cell is dead, so that each row is the dense attention over its own keys alone.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: tuple[int, ...],
    cu_seqlens_k: tuple[int, ...],
    *,
    window: tuple[int, int] = (-1, -1),
    softmax_scale: float = 1.0,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    kept: Tensor | None = None,
    live: Tensor | None = None,
    apart: bool = False,
) -> tuple[Tensor, Tensor]:
    """(out, lse) of packed sequences: q (tokens, num_heads, head_dim), lse (num_heads, tokens), in q's dtype.

    `window` is aligned to the bottom right; a row without a live key has out 0 and lse -inf. `sinks` are (num_heads,),
    `alibi_slopes` (num_heads,) or (tokens, num_heads); `kept`, (num_heads, tokens of q, tokens of k), is what dropout
    leaves of every probability; `live`, (tokens of q, tokens of k), says which cells of the window are live.
    """
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    out, lse = q.new_zeros((*q.shape[:2], v.shape[2])), q.new_full((q.shape[1], len(q)), -torch.inf)
    for (first, stop), (first_k, stop_k) in zip(pairwise(cu_seqlens_q), pairwise(cu_seqlens_k), strict=True):
        rows, columns = torch.arange(first, stop), torch.arange(first_k, stop_k)
        aligned = rows[:, None] + stop_k - stop
        alive = torch.ones(len(rows), len(columns), dtype=torch.bool)
        if live is not None:
            alive &= live[rows][:, columns]
        if window[0] >= 0:
            alive &= columns >= aligned - window[0]
        if window[1] >= 0:
            alive &= columns <= aligned + window[1]
        queries, keys, values, products = q[rows], k[columns], v[columns], ("ihd,jhd->hij", "hij,jhd->ihd")
        if apart:
            queries, keys, values = (_of_cells(x, alive) for x in (queries[:, None], keys, values))
            products = "ijhd,ijhd->hij", "hij,ijhd->ihd"
        scores = torch.einsum(products[0], queries, keys) * softmax_scale
        if softcap > 0:
            scores = softcap * torch.tanh(scores / softcap)
        if alibi_slopes is not None:
            slopes = alibi_slopes.expand(len(q), -1)[rows].T
            scores = scores - (slopes[:, :, None] * (aligned - columns).abs()).to(scores.dtype)
        scores = scores.masked_fill(~alive, -torch.inf)
        if sinks is not None:
            scores = torch.cat([scores, sinks.to(scores.dtype)[:, None, None].expand(-1, len(rows), 1)], dim=-1)
        # Rows without a key are left out here, so that no gradient meets inf - inf.
        seen, others = alive.any(dim=1).nonzero().flatten(), rows[~alive.any(dim=1)]
        weights = torch.softmax(scores[:, seen], dim=-1)[:, :, : len(columns)]
        if kept is not None:
            weights = weights * kept[:, rows[seen]][:, :, columns]
        if apart:
            weights, values = weights.masked_fill(~alive[seen], 0.0), values[seen]
        out = out.index_copy(0, rows[seen], torch.einsum(products[1], weights, values))
        lse = lse.index_copy(1, rows[seen], torch.logsumexp(scores[:, seen], dim=-1))
        if sinks is not None:  # They see the sink alone, a key of value 0.
            sink = sinks.to(lse.dtype)
            nothing = torch.softmax(sink[:, None], dim=1)[:, 0] * 0.0
            out = out.index_copy(0, others, nothing[:, None].expand(len(others), -1, v.shape[2]))
            lse = lse.index_copy(1, others, sink[:, None].expand(-1, len(others)))
    return out, lse


def _of_cells(x: Tensor, live: Tensor) -> Tensor:
    """(rows, columns, heads, dim): a copy for every cell, 0 where it is dead."""
    return torch.where(live[:, :, None, None], x, 0.0)
