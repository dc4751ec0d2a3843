"""Errors for bad input: what was given, what was expected, and what to do."""

from __future__ import annotations

from math import isfinite
from numbers import Real
from operator import index
from typing import Any

import torch
from torch import Tensor

from ringattn.context_parallel import ContextParallel
from ringattn_core.plan.schedule import Schedule

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def shapes(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raise unless the shapes of q, k and v are those that `attention` takes, and match each other."""
    if q.dim() not in (3, 4) or k.dim() != q.dim() or v.dim() != q.dim():
        raise ValueError(
            "q, k and v must all be (batch, tokens, heads, head_dim), or all (tokens, heads, head_dim); got "
            f"{_shapes(q, k, v)}."
        )
    if k.shape[:-1] != v.shape[:-1] or k.shape[:-3] != q.shape[:-3]:
        raise ValueError(
            f"k and v must have the same batch, tokens and heads, and q the same batch; got {_shapes(q, k, v)}."
        )
    if q.shape[-1] != k.shape[-1]:
        raise ValueError(
            f"q and k must have the same head_dim, got {q.shape[-1]} and {k.shape[-1]}: {_shapes(q, k, v)}."
        )
    if 0 in (q.shape[-1], v.shape[-1]):
        raise ValueError(f"head_dim must be 1 or more, got {_shapes(q, k, v)}.")
    if k.shape[-2] == 0 or q.shape[-2] % k.shape[-2]:
        raise ValueError(
            f"num_kv_heads must divide num_heads: q has {q.shape[-2]} heads and k has {k.shape[-2]}. Each kv head "
            "serves a group of query heads of the same size."
        )


def _shapes(q: Tensor, k: Tensor, v: Tensor) -> str:
    return f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"


def dtypes(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raise unless q, k and v have one floating-point dtype and one device."""
    if len({q.dtype, k.dtype, v.dtype}) > 1 or q.dtype not in _DTYPES:
        raise TypeError(
            f"q, k and v must have one dtype out of float16, bfloat16, float32 and float64; got q {q.dtype}, "
            f"k {k.dtype}, v {v.dtype}. Cast them with .to({q.dtype if q.dtype in _DTYPES else torch.bfloat16})."
        )
    if len({q.device, k.device, v.device}) > 1:
        raise ValueError(
            f"q, k and v must be on one device; got q {q.device}, k {k.device}, v {v.device}. Move them with "
            ".to(q.device)."
        )


def numbers(dropout_p: float, softcap: float, softmax_scale: float) -> None:
    """Raise unless these are finite numbers."""
    given: dict[str, Any] = {"dropout_p": dropout_p, "softcap": softcap, "softmax_scale": softmax_scale}
    for name, number in given.items():
        if not isinstance(number, Real) or not isfinite(number):
            raise ValueError(f"{name} must be a finite number, got {number!r}.")


def options(
    q: Tensor,
    sinks: Tensor | None,
    alibi_slopes: Tensor | None,
    sequences: int,
    dropout_p: float,
    softcap: float,
    softmax_scale: float,
) -> None:
    """Raise unless the options fit these queries; `sequences` counts the packed sequences of all rows."""
    heads = q.shape[-2]
    numbers(dropout_p, softcap, softmax_scale)
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"dropout_p must be in [0, 1), got {dropout_p}: it is the share of probabilities to drop.")
    if not softcap >= 0.0:
        raise ValueError(f"softcap must be positive, or 0 for none, got {softcap}.")
    if sinks is not None:
        if sinks.shape != (heads,):
            raise ValueError(f"sinks must be one logit for each of the {heads} query heads, got {tuple(sinks.shape)}.")
        _same_device(q, sinks, "sinks")
    if alibi_slopes is not None:
        per_row, per_sequence = (q.shape[0] if q.dim() == 4 else 1, heads), (sequences, heads)
        if alibi_slopes.shape not in ((heads,), per_row, per_sequence):
            raise ValueError(
                f"alibi_slopes must be (num_heads,) = ({heads},), (batch, num_heads) = {per_row} or (sequences, "
                f"num_heads) = {per_sequence}, those of all rows, got {tuple(alibi_slopes.shape)}."
            )
        _same_device(q, alibi_slopes, "alibi_slopes")
        if alibi_slopes.requires_grad and torch.is_grad_enabled():
            raise ValueError("alibi_slopes get no gradient, but require one: pass alibi_slopes.detach().")


def _same_device(q: Tensor, x: Tensor, name: str) -> None:
    if not x.is_floating_point() or x.device != q.device:
        raise TypeError(f"{name} must be floating point and on {q.device}, as q is; got {x.dtype} on {x.device}.")


def sides(window_size: tuple[int, int]) -> tuple[int, int]:
    """(left, right), with -1 for an open side. Raises TypeError unless it is a pair of whole numbers."""
    try:
        left, right = (max(index(side), -1) for side in window_size)
    except (TypeError, ValueError):
        raise TypeError(
            f"window_size must be (left, right), two whole numbers, -1 for an open side; got {window_size!r}."
        ) from None
    return left, right


def window(causal: bool, window_size: tuple[int, int]) -> tuple[int, int]:
    """The mask as one pair (left, right), with -1 for an open side. Raises where causal and window_size contradict."""
    left, right = sides(window_size)
    if causal and right > 0:
        raise ValueError(
            f"causal=True and window_size={tuple(window_size)} contradict each other: causal sees no key after the "
            f"query, the window {right}. Say window_size=({left}, 0), or causal=False."
        )
    return left, 0 if causal else right


def causal_window(causal: bool, window_size: tuple[int, int]) -> tuple[int, int]:
    """The same, except that causal overrides the right side, as in FlashAttention's functions."""
    left, right = sides(window_size)
    return left, 0 if causal else right


def parallel(cp: ContextParallel) -> None:
    """Raise unless `cp` is one."""
    if not isinstance(cp, ContextParallel):
        raise TypeError(f"cp must be a ContextParallel, got {type(cp).__name__}: say ContextParallel(group).")


def head_groups(groups: int, k: Tensor) -> None:
    """Raise unless the groups of kv heads have one size."""
    if k.shape[-2] % groups:
        raise ValueError(
            f"head_groups must divide num_kv_heads, got {groups} groups of {k.shape[-2]} kv heads: every message has "
            "the same size."
        )


def shares(schedule: Schedule, q: Tensor, k: Tensor, batch: int) -> None:
    """Raise unless this rank's tensors have the length of its share of the sequences."""
    for name, borders, x, tokens, sharding in (
        ("q", "cu_seqlens", q, schedule.query_length, schedule.queries),
        ("k", "cu_seqlens_k or cu_seqlens", k, schedule.key_length, schedule.keys),
    ):
        if x.shape[-3] * batch != tokens:
            rank = f"rank {schedule.cp_rank} of {schedule.cp_size}"
            raise ValueError(
                f"{name} has {x.shape[-3]} tokens, but {rank} holds {tokens // batch} of the "
                f"{sharding.cu_seqlens[-1] // batch} in all, which are those of the mask, or the end of {borders}, or "
                f"else cp_size times what {name} has. Masks and borders are global, and q, k, v this rank's shares: "
                "does cp.shard make them?"
            )
