"""The functions below autograd that ring-flash-attention's modules have: a forward and a backward pass of their own.

Their arguments are those of version 0.1.8, in its order; what the lengths mean is the family's own affair, see
`ringattn.family`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ringattn import checks
from ringattn.agree import telling
from ringattn.call import CallSpec, drawn_seed
from ringattn.context_parallel import ContextParallel
from ringattn.lengths import Borders, read, scaled
from ringattn.llama3 import head_groups, stream_borders
from ringattn.no_compile import no_compile
from ringattn.tensors import batched, flattened, flattened_lse
from ringattn_comms.connect import Group, communicator
from ringattn_core.plan.layout import Layout
from ringattn_core.plan.route import Route
from ringattn_core.run.execute import Result
from ringattn_core.run.transport import KV

Function = Callable[..., Any]
Divide = Callable[[Group, Tensor, Tensor, dict[str, Any]], tuple[ContextParallel, Borders | None]]
"""(group, q, k, the lengths by name) -> who holds what, and the borders of the whole sequences."""

_TAIL = {
    "dropout_p": 0.0,
    "causal": True,
    "window_size": (-1, -1),
    "alibi_slopes": None,
    "deterministic": False,
}


def batch(prefix: str, layout: Layout, route: Route) -> tuple[Function, Function]:
    """The two passes over (batch, tokens, heads, head_dim)."""
    return _pair(prefix, (), lambda group, q, k, lengths: (ContextParallel(group, layout, route), None))


def varlen(prefix: str, layout: Layout, route: Route, more: tuple[str, ...] = ()) -> tuple[Function, Function]:
    """The two passes over packed sequences, of which every rank holds an equal part."""

    def divide(group: Group, q: Tensor, k: Tensor, lengths: dict[str, Any]) -> tuple[ContextParallel, Borders]:
        cp = ContextParallel(group, layout, route)
        return cp, scaled(read(lengths["cu_seqlens"]), cp.cp_size)

    return _pair(prefix, ("cu_seqlens", "max_seqlen", *more), divide)


def zigzag_varlen(prefix: str, layout: Layout, route: Route) -> tuple[Function, Function]:
    """As `varlen`, with the indices of the halves, which the planner does not need."""
    return varlen(prefix, layout, route, ("half_index0", "half_index1"))


def llama3(prefix: str, layout: Layout, route: Route) -> tuple[Function, Function]:
    """The two passes over a slice of the packed stream."""
    names = "cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k", "heads_k_stride", "local_k_slice"

    def divide(group: Group, q: Tensor, k: Tensor, lengths: dict[str, Any]) -> tuple[ContextParallel, Borders]:
        groups = head_groups(k, lengths["heads_k_stride"])
        cp = ContextParallel(group, layout, route, per_sequence=False, head_groups=groups)
        told = lengths["cu_seqlens_q"], lengths["cu_seqlens_k"], lengths["local_k_slice"]
        return cp, stream_borders(*told, cp.cp_rank, cp.cp_size, q.shape[-3])

    return _pair(prefix, names, divide)


def _pair(prefix: str, lengths: tuple[str, ...], divide: Divide) -> tuple[Function, Function]:
    forward_signature = _signature(("process_group", "q", "k", "v", *lengths, "softmax_scale"))
    saved = "process_group", "dout", "q", "k", "v", "out", "softmax_lse"
    backward_signature = _signature((*saved, *lengths, "softmax_scale"))

    @no_compile
    def forward(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        given = _bound(forward_signature, args, kwargs)
        q, k, v = given["q"], given["k"], given["v"]
        seed = drawn_seed(given["dropout_p"])
        with telling(lambda: communicator(given["process_group"])):
            call = _request(given, divide, lengths).plan(q, k, v, None, given["alibi_slopes"], seed)
        with torch.no_grad():
            result, _ = call.forward(flattened(q), flattened(k), flattened(v), None)
        return result.out.view(*q.shape[:-1], v.shape[-1]), batched(result.lse, q)

    @no_compile
    def backward(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
        given = _bound(backward_signature, args, kwargs)
        q, k, v, lse = given["q"], given["k"], given["v"], given["softmax_lse"]
        with telling(lambda: communicator(given["process_group"])):
            if given["dropout_p"]:
                raise ValueError(
                    f"{prefix}_backward got dropout_p={given['dropout_p']}, but not the random numbers of the forward "
                    f"pass: call {prefix}_func, which keeps them."
                )
            call = _request(given, divide, lengths).plan(q, k, v, None, given["alibi_slopes"], 0)
        result = Result(flattened(given["out"]), flattened_lse(lse), [])
        flat = (flattened(x) for x in (given["dout"], q, k, v))
        with torch.no_grad():
            dout, flat_q, flat_k, flat_v = flat
            grads = call.backward(None, dout, None, flat_q, KV(flat_k, flat_v), result, None)
        return grads.dq.view_as(q), grads.dk.view_as(k), grads.dv.view_as(v)

    _describe(forward, f"{prefix}_forward", forward_signature, "The forward pass: (out, softmax_lse).")
    _describe(backward, f"{prefix}_backward", backward_signature, "The backward pass: (dq, dk, dv).")
    return forward, backward


def _signature(names: tuple[str, ...]) -> inspect.Signature:
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    required = [inspect.Parameter(name, kind) for name in names]
    return inspect.Signature(required + [inspect.Parameter(name, kind, default=value) for name, value in _TAIL.items()])


def _bound(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


def _request(given: dict[str, Any], divide: Divide, lengths: tuple[str, ...]) -> CallSpec:
    q, k, scale = given["q"], given["k"], given["softmax_scale"]
    cp, borders = divide(given["process_group"], q, k, {name: given[name] for name in lengths})
    return CallSpec(
        cp,
        given["causal"],
        checks.causal_window(given["causal"], given["window_size"]),
        softcap=0.0,
        softmax_scale=q.shape[-1] ** -0.5 if scale is None else scale,
        dropout_p=given["dropout_p"],
        deterministic=given["deterministic"],
        return_lse=True,
        cu_seqlens=borders,
    )


def _describe(function: Function, name: str, signature: inspect.Signature, doc: str) -> None:
    vars(function)["__signature__"] = signature
    function.__name__ = function.__qualname__ = name
    function.__doc__ = doc
