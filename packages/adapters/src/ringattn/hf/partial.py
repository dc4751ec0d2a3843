"""Attention of a few queries to a part of the keys, with the log-sum-exp that is needed to merge such parts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ringattn_core.kernels.finite import finite
from ringattn_core.kernels.torch_flash_cuda import LIMITS
from ringattn_core.run.kernel import Options, accumulator_dtype
from ringattn_core.run.merge import finite_or_nan

_LANES = 64  # an upper bound on the lanes of a CPU's vector register
SCORES = 1 << 26  # the maximal number of scores of a block of queries, if it has more than one

Part = tuple[Tensor, Tensor]  # out (rows, num_heads, tokens, head_dim_v), lse (rows, num_heads, tokens)


def fused(q: Tensor, k: Tensor, v: Tensor, scale: float, softcap: float) -> Part | None:
    """PyTorch's flash attention, for queries that see all keys; None for tensors that it does not support.

    q: (rows, num_heads, tokens, head_dim); k, v: (rows, num_kv_heads, keys, head_dim). None too if a CPU's result does
    not tell whether scores are finite. On a GPU it divides the keys of one query among multiprocessors (flash
    decoding). out is in q's dtype.
    """
    dim = q.shape[3]
    if softcap or dim != v.shape[3] or any(x.stride(3) != 1 for x in (q, k, v)):
        return None
    if q.device.type == "cpu":
        # With fewer keys than the lanes of a vector register its results are finite although the inputs are not.
        if k.shape[2] < _LANES and not finite([q], [k, v], scale):
            return None
        # The kv heads are the batch of this call, and the query heads of each share its keys without a copy.
        group = q.view(q.shape[0], k.shape[1], -1, *q.shape[2:]).flatten(0, 1)
        keys, values = (x.flatten(0, 1).unsqueeze(1).expand(-1, group.shape[1], -1, -1) for x in (k, v))
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(group, keys, values, scale=scale)
        if bool(((lse == 0) & (out == 0).all(dim=-1)).any()):
            return None  # This is the result for scores that are all -inf, and may be one for other scores.
        return out.reshape(q.shape), lse.reshape(q.shape[:3])
    if LIMITS.why_unsupported(q, v, Options(scale)) is not None:
        return None
    by_token = (x.transpose(1, 2) for x in (q, k, v))
    lengths = (None, None, q.shape[2], k.shape[2])
    out, lse, *_ = torch.ops.aten._flash_attention_forward(*by_token, *lengths, 0.0, False, False, scale=scale)
    return out.transpose(1, 2), lse


def plain(q: Tensor, k: Tensor, v: Tensor, alive: Callable[[slice], Tensor], scale: float, softcap: float) -> Part:
    """The same in plain PyTorch, for any mask, in the accumulator's dtype and a block of queries at a time.

    alive: for a slice of the queries, the keys that they see, (rows or 1, 1, tokens, keys).
    """
    rows, heads, tokens, _ = q.shape
    kv_heads, keys, dtype = k.shape[1], k.shape[2], accumulator_dtype(q.dtype)
    k, v = k.to(dtype), v.to(dtype)
    height = max(1, SCORES // (rows * heads * keys))
    parts = []
    for start in range(0, tokens, height):
        queries = slice(start, min(tokens, start + height))
        # The query heads of one kv head are rows of one product, so that no key is copied.
        grouped = q[:, :, queries].to(dtype).reshape(rows, kv_heads, -1, q.shape[3])
        scores = (grouped @ k.mT * scale).view(rows, heads, -1, keys)
        if softcap:
            scores = torch.tanh(scores / softcap) * softcap
        scores = scores.masked_fill(~alive(queries), -torch.inf)
        lse = scores.logsumexp(dim=-1)
        # lse -inf: a query sees none of these keys, or has the score -inf with each. Then all of them weigh 0. A score
        # of NaN or +inf makes the weights NaN, as a softmax does.
        weights = torch.exp(scores - finite_or_nan(lse).unsqueeze(-1))
        weights = weights.masked_fill((lse == -torch.inf).unsqueeze(-1), 0.0).view(rows, kv_heads, -1, keys)
        parts.append(((weights @ v).view(rows, heads, -1, v.shape[3]), lse))
    outs, lses = zip(*parts, strict=True)
    return torch.cat(outs, dim=2), torch.cat(lses, dim=2)
