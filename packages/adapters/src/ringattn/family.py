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

from ringattn import checks
from ringattn.agree import telling
from ringattn.context_parallel import ContextParallel
from ringattn.lengths import Borders, read, scaled
from ringattn.llama3 import head_groups, stream_borders, stream_slopes
from ringattn.native import attention
from ringattn.no_compile import no_compile
from ringattn.tensors import check_tensors
from ringattn_comms.connect import Group, communicator
from ringattn_core.plan.layout import Layout, contiguous
from ringattn_core.plan.route import Route, at_once, gather
from ringattn_core.plan.tile import Window

Function = Callable[..., Any]

_DOC = """{summary}, exact, over the keys of all ranks of a group.

    {tensors} float16, bfloat16, float32 or float64.
    {lengths}dropout_p: share of attention probabilities dropped, in [0, 1).
    softmax_scale: what scores are multiplied with; None is head_dim ** -0.5.
    causal, window_size: query i sees key j of its sequence if -left <= j - i <= right; -1 is an open side, causal means
        right = 0 whatever window_size says. Positions are global, so a window reaches over the borders of ranks.
    alibi_slopes: (num_heads,), (batch, num_heads), or (sequences, num_heads) for those that cu_seqlens tell of; floats.
    deterministic: gradients are bitwise the same from run to run.
    return_attn_probs: also return (softmax_lse, None); lse is {lse} float32, the natural logarithm.
    group: a ProcessGroup, a one-dimensional DeviceMesh, or None for all processes.

    Returns out, shaped like q and in its dtype, or (out, softmax_lse, None). Raises ValueError or TypeError for what
    does not fit, before anything is communicated. The same as `ringattn.attention` in the layout `{layout}`, by
    ringattn_core's route `{route}`; arguments and results are as in zhuzilin/ring-flash-attention.
    """
_TENSORS = {
    "q k v": "q: ({rows}, num_heads, head_dim); k, v: ({rows}, num_kv_heads, head_dim).",
    "q kv": "q: ({rows}, num_heads, head_dim); kv: ({rows}, 2, num_kv_heads, head_dim), k before v.",
    "qkv": "qkv: ({rows}, 3, num_heads, head_dim), q before k before v.",
}
_LOCAL = """cu_seqlens: int32 borders of the packed sequences *on this rank*: global ones divided by the group's size.
    max_seqlen: unused, there for the signature.
    """
_STRIDE = """heads_k_stride: kv heads gathered at a time; it divides num_kv_heads.
    """
_PREPARED = """cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, local_k_slice: what
        `llama3_flash_attn_prepare_cu_seqlens` returned for this rank.
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

    return _named(func, prefix, "Attention over a batch", "batch, tokens", "", layout, route)


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
        with telling(lambda: cp.communicator):
            borders = _global_borders(cu_seqlens, q, k, v, cp)
        tail = dropout_p, softmax_scale, causal, window_size, alibi_slopes, deterministic, return_attn_probs
        return _attend(q, k, v, cp, borders, *tail)

    return _named(func, prefix, "Attention over packed sequences", "tokens", _LOCAL, layout, route)


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
        with telling(lambda: communicator(group)):
            checks.shapes(q, k, v)
            cp = ContextParallel(group, layout, gather, head_groups=head_groups(k, heads_k_stride))
            borders = _global_borders(cu_seqlens, q, k, v, cp)
        tail = dropout_p, softmax_scale, causal, window_size, alibi_slopes, deterministic, return_attn_probs
        return _attend(q, k, v, cp, borders, *tail)

    summary = "Balanced attention over packed sequences"
    return _named(func, prefix, summary, "tokens", _LOCAL + _STRIDE, layout, gather)


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
        with telling(lambda: communicator(group)):
            checks.shapes(q, k, v)
            groups = head_groups(k, heads_k_stride)
            cp = ContextParallel(group, contiguous, at_once, per_sequence=False, head_groups=groups)
            borders = stream_borders(cu_seqlens_q, cu_seqlens_k, local_k_slice, cp.cp_rank, cp.cp_size, q.shape[-3])
            if alibi_slopes is not None and alibi_slopes.shape[:-1] == (len(cu_seqlens_q) - 1,):
                alibi_slopes = stream_slopes(alibi_slopes, local_k_slice, borders)
        tail = dropout_p, softmax_scale, causal, window_size, alibi_slopes, deterministic, return_attn_probs
        return _attend(q, k, v, cp, borders, *tail)

    return _named(func, prefix, "Attention over a packed stream", "tokens", _PREPARED + _STRIDE, contiguous, at_once)


def _global_borders(cu_seqlens: Tensor, q: Tensor, k: Tensor, v: Tensor, cp: ContextParallel) -> Borders:
    """The borders of the whole sequences, of which every rank holds as much as `cu_seqlens` say of this one."""
    checks.shapes(q, k, v)
    local = read(cu_seqlens)
    if not local[-1] == q.shape[-3] == k.shape[-3]:
        raise ValueError(
            f"cu_seqlens end at {local[-1]}, but q has {q.shape[-3]} tokens and k {k.shape[-3]}: here they are the "
            f"borders of the sequences as this rank holds them, the global ones divided by the {cp.cp_size} ranks."
        )
    return scaled(local, cp.cp_size)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cp: ContextParallel,
    borders: Borders | None,
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
        window_size=checks.causal_window(causal, window_size),
        alibi_slopes=alibi_slopes,
        softmax_scale=softmax_scale,
        dropout_p=dropout_p,
        deterministic=deterministic,
        return_lse=return_attn_probs,
        cu_seqlens=borders,
    )
    return (*out, None) if return_attn_probs else out


def _named(
    func: Function, prefix: str, summary: str, rows: str, lengths: str, layout: Layout, route: Route
) -> tuple[Function, Function, Function]:
    """func under its name, and the two that take k and v, or q, k and v, in one (..., 2 or 3, heads, head_dim)."""
    func = no_compile(func)

    @wraps(func)
    def kvpacked(q: Tensor, kv: Tensor, *args: Any, **kwargs: Any) -> Any:
        with telling(lambda: communicator(kwargs.get("group"))):
            k, v = _unpacked(kv, 2, "kv", rows)
        return func(q, k, v, *args, **kwargs)

    @wraps(func)
    def qkvpacked(qkv: Tensor, *args: Any, **kwargs: Any) -> Any:
        with telling(lambda: communicator(kwargs.get("group"))):
            q, k, v = _unpacked(qkv, 3, "qkv", rows)
        return func(q, k, v, *args, **kwargs)

    names = f"{prefix}_func", f"{prefix}_kvpacked_func", f"{prefix}_qkvpacked_func"
    functions: tuple[Function, Function, Function] = func, kvpacked, qkvpacked
    for function, name, tensors in zip(functions, names, _TENSORS, strict=True):
        vars(function)["__signature__"] = _signature(func, tensors.split())
        function.__name__ = function.__qualname__ = name
        function.__module__ = "ringattn"
        function.__doc__ = _DOC.format(
            summary=summary,
            tensors=_TENSORS[tensors].format(rows=rows),
            lengths=lengths,
            lse=f"({rows.replace('tokens', 'num_heads, tokens')})",
            layout=layout.__name__,
            route="gather" if route is gather else route.__name__,
        )
    return functions


def _unpacked(packed: Tensor, count: int, name: str, rows: str) -> tuple[Tensor, ...]:
    check_tensors(f"{name} must be a tensor", packed)
    if packed.dim() not in (4, 5) or packed.shape[-3] != count:
        raise ValueError(f"{name} must be ({rows}, {count}, heads, head_dim), got {tuple(packed.shape)}.")
    return packed.unbind(-3)


def _signature(func: Function, tensors: list[str]) -> inspect.Signature:
    """func's signature with other tensors in front."""
    own = inspect.signature(func)
    tail = [p for name, p in own.parameters.items() if name not in ("q", "k", "v")]
    front = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation="Tensor") for name in tensors]
    return own.replace(parameters=front + tail)
