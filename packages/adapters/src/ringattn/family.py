"""The calling conventions of ring-flash-attention, each written once: a family of functions is a layout and a route.

Names, signatures and the order of arguments are those of https://github.com/zhuzilin/ring-flash-attention, so its users
change an import. Every function takes this rank's share of the tokens and returns this rank's share.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import Tensor

from ringattn.attention import attention
from ringattn.context_parallel import ContextParallel
from ringattn.lengths import read
from ringattn.llama3 import head_groups, stream_borders
from ringattn_comms.connect import Group
from ringattn_core.layout import Layout, contiguous
from ringattn_core.route import Route, gather

Window = tuple[int, int]
Function = Callable[..., Any]

_DOC = """{summary}

    {tensors}
    {lengths}dropout_p: share of attention probabilities dropped, in [0, 1).
    softmax_scale: what scores are multiplied with; None is head_dim ** -0.5.
    causal, window_size: query i sees key j of its sequence if -left <= j - i <= right; -1 is an open side, causal means
        right = 0. Positions are global, so a window reaches over the borders of ranks.
    alibi_slopes: (num_heads,) or (batch, num_heads) float32.
    deterministic: gradients are bitwise the same from run to run.
    return_attn_probs: also return (softmax_lse, None); lse is {lse} float32, the natural logarithm.
    group: a ProcessGroup, a one-dimensional DeviceMesh, or None for all processes.

    Returns out, shaped like q and in its dtype, or (out, softmax_lse, None). Raises ValueError or TypeError for what
    does not fit, before anything is communicated. The same as `ringattn.attention` with layout {layout}, route {route}.
    """
_BATCH = (
    "float16, bfloat16, float32 or float64; q (batch, tokens, num_heads, head_dim), k and v the same with num_kv_heads."
)
_PACKED = "float16, bfloat16, float32 or float64; q (tokens, num_heads, head_dim), k and v the same with num_kv_heads."
_LOCAL = """cu_seqlens: int32 borders of the packed sequences *on this rank*: global ones divided by the group's size.
    max_seqlen: unused, there for the signature.
    """


def batch(prefix: str, layout: Layout, route: Route) -> tuple[Function, Function, Function]:
    """func, kvpacked_func and qkvpacked_func for (batch, tokens, heads, head_dim), every rank with as many tokens."""

    def func(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: Window = (-1, -1),
        alibi_slopes: Tensor | None = None,
        deterministic: bool = False,
        return_attn_probs: bool = False,
        group: Group = None,
    ) -> Any:
        cp = ContextParallel(group, layout, route)
        tail = dropout_p, softmax_scale, causal, window_size, alibi_slopes, deterministic, return_attn_probs
        return _attend(q, k, v, cp, None, *tail)

    return _named(func, prefix, _doc("Attention over a batch", _BATCH, "", "(batch, num_heads, tokens)", layout, route))


def varlen(prefix: str, layout: Layout, route: Route) -> tuple[Function, Function, Function]:
    """The same for packed sequences, each of them divided by the layout."""

    def func(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: Window = (-1, -1),
        alibi_slopes: Tensor | None = None,
        deterministic: bool = False,
        return_attn_probs: bool = False,
        group: Group = None,
    ) -> Any:
        cp = ContextParallel(group, layout, route)
        borders = [border * cp.cp_size for border in read(cu_seqlens)]
        tail = dropout_p, softmax_scale, causal, window_size, alibi_slopes, deterministic, return_attn_probs
        return _attend(q, k, v, cp, borders, *tail)

    doc = _doc("Attention over packed sequences", _PACKED, _LOCAL, "(num_heads, tokens)", layout, route)
    return _named(func, prefix, doc)


def balanced_gather(prefix: str, layout: Layout) -> tuple[Function, Function, Function]:
    """`varlen` over an all-gather, `heads_k_stride` kv heads at a time: llama 3's communication, with balanced work."""

    def func(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        heads_k_stride: int,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: Window = (-1, -1),
        alibi_slopes: Tensor | None = None,
        deterministic: bool = False,
        return_attn_probs: bool = False,
        group: Group = None,
    ) -> Any:
        cp = ContextParallel(group, layout, gather, head_groups=head_groups(k, heads_k_stride))
        borders = [border * cp.cp_size for border in read(cu_seqlens)]
        tail = dropout_p, softmax_scale, causal, window_size, alibi_slopes, deterministic, return_attn_probs
        return _attend(q, k, v, cp, borders, *tail)

    lengths = _LOCAL + "heads_k_stride: kv heads gathered at a time; it divides num_kv_heads.\n    "
    doc = _doc("Balanced attention over packed sequences", _PACKED, lengths, "(num_heads, tokens)", layout, gather)
    return _named(func, prefix, doc)


def llama3(prefix: str) -> tuple[Function, Function, Function]:
    """The llama 3 functions: a contiguous slice of the whole packed stream on every rank, keys all-gathered."""

    def func(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        heads_k_stride: int,
        local_k_slice: slice,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: Window = (-1, -1),
        alibi_slopes: Tensor | None = None,
        deterministic: bool = False,
        return_attn_probs: bool = False,
        group: Group = None,
    ) -> Any:
        groups = head_groups(k, heads_k_stride)
        cp = ContextParallel(group, contiguous, gather, per_sequence=False, head_groups=groups)
        total = k.shape[0] * cp.cp_size
        borders = stream_borders(cu_seqlens_q, cu_seqlens_k, local_k_slice, cp.cp_rank, total // cp.cp_size, total)
        tail = dropout_p, softmax_scale, causal, window_size, alibi_slopes, deterministic, return_attn_probs
        return _attend(q, k, v, cp, borders, *tail)

    lengths = (
        "cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, local_k_slice: what "
        "`llama3_flash_attn_prepare_cu_seqlens`\n        returned for this rank.\n    "
        "heads_k_stride: kv heads gathered at a time; it divides num_kv_heads.\n    "
    )
    doc = _doc("Attention over a packed stream", _PACKED, lengths, "(num_heads, tokens)", contiguous, gather)
    return _named(func, prefix, doc)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cp: ContextParallel,
    borders: list[int] | None,
    dropout_p: float,
    softmax_scale: float | None,
    causal: bool,
    window_size: Window,
    alibi_slopes: Tensor | None,
    deterministic: bool,
    return_attn_probs: bool,
) -> Any:
    out = attention(
        q,
        k,
        v,
        cp=cp,
        causal=causal,
        window_size=window_size,
        alibi_slopes=alibi_slopes,
        softmax_scale=softmax_scale,
        dropout_p=dropout_p,
        deterministic=deterministic,
        return_lse=return_attn_probs,
        cu_seqlens=borders,
    )
    return (*out, None) if return_attn_probs else out


def _doc(summary: str, tensors: str, lengths: str, lse: str, layout: Layout, route: Route) -> str:
    name = "gather" if route is gather else "ring"
    return _DOC.format(
        summary=f"{summary}, exact, over the keys of all ranks of a group.",
        tensors=tensors,
        lengths=lengths,
        lse=lse,
        layout=f'"{layout.__name__}"',
        route=f'"{name}"',
    )


def _named(func: Function, prefix: str, doc: str) -> tuple[Function, Function, Function]:
    """func under its name, and the two that take k and v, or q, k and v, in one (..., 2 or 3, heads, head_dim)."""

    @wraps(func)
    def kvpacked(q: Tensor, kv: Tensor, *args: Any, **kwargs: Any) -> Any:
        return func(q, *_unpacked(kv, 2, "kv"), *args, **kwargs)

    @wraps(func)
    def qkvpacked(qkv: Tensor, *args: Any, **kwargs: Any) -> Any:
        return func(*_unpacked(qkv, 3, "qkv"), *args, **kwargs)

    names = f"{prefix}_func", f"{prefix}_kvpacked_func", f"{prefix}_qkvpacked_func"
    for function, name, tensors in zip((func, kvpacked, qkvpacked), names, ("q k v", "q kv", "qkv"), strict=True):
        vars(function)["__signature__"] = _signature(func, tensors.split())
        for attribute, value in (
            ("__name__", name),
            ("__qualname__", name),
            ("__module__", "ringattn"),
            ("__doc__", doc),
        ):
            setattr(function, attribute, value)
    return func, kvpacked, qkvpacked


def _unpacked(packed: Tensor, count: int, name: str) -> tuple[Tensor, ...]:
    if packed.dim() < 4 or packed.shape[-3] != count:
        raise ValueError(
            f"{name} must be (batch, tokens, {count}, heads, head_dim) or (tokens, {count}, heads, head_dim), got "
            f"{tuple(packed.shape)}."
        )
    return packed.unbind(-3)


def _signature(func: Function, tensors: list[str]) -> inspect.Signature:
    """func's signature with other tensors in front."""
    own = inspect.signature(func)
    tail = [p for name, p in own.parameters.items() if name not in ("q", "k", "v")]
    front = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation="Tensor") for name in tensors]
    return own.replace(parameters=front + tail)
