"""What bad input gets: a message that says what was given, what was expected, and what to do."""

from __future__ import annotations

import torch
from torch import Tensor

from ringattn_core.schedule import Schedule

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def tensors(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raise unless q, k and v are what `attention` takes, one with the other."""
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if q.dim() not in (3, 4) or k.dim() != q.dim() or v.dim() != q.dim():
        raise ValueError(
            f"q, k and v must all be (batch, tokens, heads, head_dim), or all (tokens, heads, head_dim); got {shapes}."
        )
    if len({q.dtype, k.dtype, v.dtype}) > 1 or q.dtype not in _DTYPES:
        raise TypeError(
            f"q, k and v must have one dtype out of float16, bfloat16, float32 and float64; got q {q.dtype}, "
            f"k {k.dtype}, v {v.dtype}. Cast them with .to(q.dtype)."
        )
    if len({q.device, k.device, v.device}) > 1:
        raise ValueError(f"q, k and v must be on one device; got q {q.device}, k {k.device}, v {v.device}.")
    if k.shape[:-1] != v.shape[:-1] or k.shape[:-3] != q.shape[:-3]:
        raise ValueError(f"k and v must have the same batch, tokens and heads, and q the same batch; got {shapes}.")
    if q.shape[-1] != k.shape[-1]:
        raise ValueError(f"q and k must have the same head_dim, got {q.shape[-1]} and {k.shape[-1]} ({shapes}).")
    if k.shape[-2] == 0 or q.shape[-2] % k.shape[-2]:
        raise ValueError(
            f"num_kv_heads must divide num_heads: q has {q.shape[-2]} heads and k has {k.shape[-2]}. Each kv head "
            "serves a group of query heads of the same size."
        )


def options(q: Tensor, sinks: Tensor | None, alibi_slopes: Tensor | None, dropout_p: float, softcap: float) -> None:
    """Raise unless the options are possible for these queries."""
    heads = q.shape[-2]
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"dropout_p must be in [0, 1), got {dropout_p}: it is the share of probabilities to drop.")
    if softcap < 0:
        raise ValueError(f"softcap must be positive, or 0 for none, got {softcap}.")
    if sinks is not None and sinks.shape != (heads,):
        raise ValueError(f"sinks must be one logit for each of the {heads} query heads, got {tuple(sinks.shape)}.")
    if alibi_slopes is not None:
        per_row = (q.shape[0], heads) if q.dim() == 4 else (1, heads)
        if alibi_slopes.shape not in ((heads,), per_row):
            raise ValueError(
                f"alibi_slopes must be (num_heads,) = ({heads},) or (batch, num_heads) = {per_row}, got "
                f"{tuple(alibi_slopes.shape)}."
            )


def window(causal: bool, window_size: tuple[int, int]) -> tuple[int, int]:
    """The mask as one pair (left, right), with -1 for an open side. Raises where causal and window_size contradict."""
    left, right = (-1 if side < 0 else int(side) for side in window_size)
    if causal and right > 0:
        raise ValueError(
            f"causal=True and window_size={tuple(window_size)} contradict each other: causal sees no key after the "
            f"query, the window {right}. Say window_size=({left}, 0), or causal=False."
        )
    return left, 0 if causal else right


def shares(schedule: Schedule, q: Tensor, k: Tensor, batch: int) -> None:
    """Raise unless this rank's tensors are as long as its share of the sequences."""
    for name, x, tokens, division in (
        ("q", q, schedule.query_length, schedule.queries),
        ("k", k, schedule.key_length, schedule.keys),
    ):
        if x.shape[-3] * batch != tokens:
            raise ValueError(
                f"cu_seqlens sum up to {division.cu_seqlens[-1] // batch} tokens, of which rank {schedule.cp_rank} of "
                f"{schedule.cp_size} holds {tokens // batch}, but {name} has {x.shape[-3]}. cu_seqlens are global "
                "borders, and q, k, v this rank's shares in the order of the layout: cp.shard makes them."
            )
