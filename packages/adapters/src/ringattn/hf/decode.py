"""A few new tokens, on every rank, against the keys of a whole text, spread over the ranks.

Each rank attends to what it holds, and the parts are added up by their log-sum-exp: tree attention in one step (Shyam
et al. 2024, arXiv:2408.04093), flash decoding's across devices.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ringattn.hf.cache import ShardedCache
from ringattn_core.kernel import accumulator_dtype

SCORES = 1 << 26  # at most so many scores at a time, but for one query


class Decoding:
    """A call with `tokens` new tokens after those in the cache: what its layers' attention gets to know.

    mask: (rows, all tokens), False at padding, or None.
    """

    # No dataclass, for the reason that `ShardedBatch` is none.
    def __init__(self, cache: ShardedCache, tokens: int, mask: Tensor | None) -> None:
        self.cache, self.tokens, self.mask = cache, tokens, mask

    @property
    def start(self) -> int:
        """The position of the first new token."""
        return self.cache.length


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    step: Decoding,
    positions: Tensor,
    *,
    scale: float,
    window: int | None,
    softcap: float,
    sinks: Tensor | None,
) -> Tensor:
    """The new tokens' attention: (rows, tokens, num_heads, head_dim_v), in q's dtype.

    q: (rows, num_heads, tokens, head_dim), the same on every rank. k, v: (rows, num_kv_heads, keys, head_dim and
    head_dim_v), this rank's, at `positions` (keys,).
    """
    height = max(1, SCORES // (q.shape[0] * q.shape[1] * max(1, k.shape[2])))
    parts = []
    for first in range(0, q.shape[2], height):
        block = q[:, :, first : first + height]
        alive = _alive(block, step, positions, step.start + first, window)
        parts.append(_partial(block, k, v, alive, scale, softcap))
    out, lse = (torch.cat(each, dim=2) for each in zip(*parts, strict=True))
    return _merged(out, lse, step, sinks).to(q.dtype).transpose(1, 2)


def _alive(q: Tensor, step: Decoding, positions: Tensor, first: int, window: int | None) -> Tensor:
    """Which keys each query sees: (rows or 1, 1, tokens, keys)."""
    behind = torch.arange(first, first + q.shape[2], device=q.device)[:, None] - positions[None, :]
    alive = (behind >= 0) if window is None else (behind >= 0) & (behind < window)
    return alive[None, None] if step.mask is None else alive & step.mask[:, positions][:, None, None, :]


def _partial(q: Tensor, k: Tensor, v: Tensor, alive: Tensor, scale: float, softcap: float) -> tuple[Tensor, Tensor]:
    """What this rank's keys say: (rows, num_heads, tokens, head_dim_v) and lse (rows, num_heads, tokens, 1)."""
    # The query heads of one kv head lie below each other, as rows of one product: no key is copied for each of them.
    rows, heads, tokens, _ = q.shape
    _, kv_heads, keys, _ = k.shape
    dtype = accumulator_dtype(q.dtype)
    grouped = q.to(dtype).reshape(rows, kv_heads, -1, q.shape[3])
    scores = (grouped @ k.to(dtype).mT * scale).view(rows, heads, tokens, keys)
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~alive, -torch.inf)
    lse = scores.logsumexp(dim=-1, keepdim=True)
    # A rank without a key for a query has lse -inf there, and a weight of 0.
    weights = torch.exp(scores - lse).nan_to_num(0.0).view(rows, kv_heads, grouped.shape[2], keys)
    return (weights @ v.to(dtype)).view(rows, heads, tokens, v.shape[3]), lse


def _merged(out: Tensor, lse: Tensor, step: Decoding, sinks: Tensor | None) -> Tensor:
    """All ranks' parts as one; the sinks count once."""
    gathered = step.cache.comm.all_gather(torch.cat([out, lse], dim=-1)).wait()
    outs, lses = gathered[..., :-1], gathered[..., -1:]
    total = lses.logsumexp(dim=0)
    if sinks is not None:
        total = torch.logaddexp(total, sinks.to(total.dtype)[None, :, None, None])
    return (torch.exp(lses - total).nan_to_num(0.0) * outs).sum(dim=0)
