"""`attention` as a registered operator: torch.compile keeps it in one graph and does not look inside.

An operator takes only tensors and numbers, so a `ContextParallel` and masks are passed by their numbers; planning
happens inside.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ringattn.call import CallSpec, drawn_seed
from ringattn.context_parallel import CONTEXTS
from ringattn.tensors import batched, flattened, flattened_lse
from ringattn_core.errors import UnsupportedError
from ringattn_core.plan.mask import MASKS
from ringattn_core.run.execute import Result
from ringattn_core.run.kernel import accumulator_dtype
from ringattn_core.run.transport import KV

_INPUTS = "Tensor q, Tensor k, Tensor v, Tensor? sinks, Tensor? alibi_slopes"
_ASKED = (
    "SymInt number, bool causal, int left, int right, float softcap, float softmax_scale, float dropout_p, "
    "bool deterministic, bool return_lse, SymInt[]? cu_seqlens, SymInt[]? cu_seqlens_k, "
    "bool needs_gradients=False, SymInt[]? masks=None"
)

_OPTIONS = 8  # of those, from softcap to needs_gradients


def attend(
    request: CallSpec, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, alibi_slopes: Tensor | None
) -> tuple[Tensor, Tensor]:
    """out and lse, shaped like the inputs, by an operator that compilers keep whole. Lengths are lists or None."""
    lengths = request.cu_seqlens, request.cu_seqlens_k
    asked = (
        *(request.cp.number, request.causal, *request.window_size, request.softcap, request.softmax_scale),
        *(request.dropout_p, request.deterministic, request.return_lse),
        *(None if borders is None else [*borders] for borders in lengths),
        request.needs_gradients,
        None if request.masks is None else [mask.number for mask in request.masks],
    )
    out, lse, _ = torch.ops.ringattn.attention(q, k, v, sinks, alibi_slopes, *asked)
    return out, lse


@torch.library.custom_op(
    "ringattn::attention", mutates_args=(), schema=f"({_INPUTS}, {_ASKED}) -> (Tensor out, Tensor lse, Tensor drawn)"
)
def _forward(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, alibi_slopes: Tensor | None, *asked: Any
) -> tuple[Tensor, Tensor, Tensor]:
    request = _request(*asked)
    seed = drawn_seed(request.dropout_p)
    call = request.plan(q, k, v, sinks, alibi_slopes, seed)
    result, number = call.forward(flattened(q), flattened(k), flattened(v), sinks)
    if any(state is not None for state in result.rng_states):
        name = call.forward_pass.kernel.name
        raise UnsupportedError(
            f"The kernel {name!r} draws dropout masks itself, which torch.compile cannot carry to the "
            "backward pass: name another one, ContextParallel(..., kernel='reference'), or do without dropout."
        )
    out = result.out.view(*q.shape[:-1], v.shape[-1])
    return out, batched(result.lse, q).contiguous(), torch.tensor([seed, number])


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    *batch, tokens, num_heads, _ = q.shape
    lse = q.new_empty((*batch, num_heads, tokens), dtype=accumulator_dtype(q.dtype))
    return q.new_empty((*q.shape[:-1], v.shape[-1])), lse, torch.empty(2, dtype=torch.int64)


@torch.library.custom_op(
    "ringattn::attention_backward",
    mutates_args=(),
    schema=f"(Tensor? dout, Tensor? dlse, Tensor out, Tensor lse, Tensor drawn, {_INPUTS}, {_ASKED}) -> Tensor[]",
)
def _backward(
    dout: Tensor | None,
    dlse: Tensor | None,
    out: Tensor,
    lse: Tensor,
    drawn: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    alibi_slopes: Tensor | None,
    *asked: Any,
) -> list[Tensor]:
    """dq, dk, dv and, where there are sinks, dsinks."""
    seed, number = drawn.tolist()
    call = _request(*asked).plan(q, k, v, sinks, alibi_slopes, seed)
    result = Result(flattened(out), flattened_lse(lse), [])
    kv = KV(flattened(k), flattened(v))
    dout, dlse = None if dout is None else flattened(dout), None if dlse is None else flattened_lse(dlse)
    grads = call.backward(number, dout, dlse, flattened(q), kv, result, sinks)
    # A ring's dk and dv arrive as one message, but the results of an operator may not share memory.
    apart = grads.dk, grads.dv.clone() if _share(grads.dk, grads.dv) else grads.dv
    found = [grad.view(x.shape).contiguous() for grad, x in zip((grads.dq, *apart), (q, k, v), strict=True)]
    return found if grads.dsinks is None else [*found, grads.dsinks]


@_backward.register_fake
def _(
    dout: Tensor | None,
    dlse: Tensor | None,
    out: Tensor,
    lse: Tensor,
    drawn: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    *others: Any,
) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in (q, k, v, sinks) if x is not None]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*output, *inputs[:5])
    ctx.asked = inputs[5:]
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, dout: Tensor | None, dlse: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    dq, dk, dv, *dsinks = torch.ops.ringattn.attention_backward(dout, dlse, *ctx.saved_tensors, *ctx.asked)
    return dq, dk, dv, dsinks[0] if dsinks else None, None, *(None for _ in ctx.asked)


_forward.register_autograd(_differentiate, setup_context=_save)


def _request(number: int, causal: bool, left: int, right: int, *rest: Any) -> CallSpec:
    # PyTorch leaves out the last arguments of an operator where they are as by default.
    spec = CallSpec(CONTEXTS[number], causal, (left, right), *rest[:_OPTIONS])
    masks = rest[_OPTIONS] if len(rest) > _OPTIONS else None
    return spec if masks is None else replace(spec, masks=tuple(MASKS[mask] for mask in masks))


def _share(a: Tensor, b: Tensor) -> bool:
    """Do they share memory?"""
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
