"""`attention`: the native call, and the `torch.autograd.Function` that runs schedules forward and backward."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from ringattn import compiled
from ringattn.agree import telling
from ringattn.call import CallSpec
from ringattn.checks import parallel
from ringattn.context_parallel import ContextParallel
from ringattn.lengths import Lengths
from ringattn.mask_rows import Masks, read_masks
from ringattn.no_compile import no_compile
from ringattn.planned import Run
from ringattn.tensors import autocasts, batched, check_tensors, flattened, lowered
from ringattn_comms.communicator import SingleRank
from ringattn_core.errors import UnsupportedError
from ringattn_core.run.execute import Result
from ringattn_core.run.transport import KV

_ALONE = ContextParallel(SingleRank())
_NO_VMAP = "ringattn.attention cannot be mapped by torch.func.vmap: q, k and v take a batch dimension instead."


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    cp: ContextParallel | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    mask: Masks | None = None,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    softmax_scale: float | None = None,
    dropout_p: float = 0.0,
    deterministic: bool = False,
    return_lse: bool = False,
    cu_seqlens: Lengths | None = None,
    cu_seqlens_k: Lengths | None = None,
) -> Any:
    """Exact attention of this rank's queries over the keys of all ranks of `cp` (None: this process alone).

    q: (batch, tokens, num_heads, head_dim), this rank's tokens in the order of cp's layout (`cp.shard`); also without
        the batch dimension. float16, bfloat16, float32 or float64; under autocast q, k and v are cast to its dtype.
    k, v: (batch, tokens of k, num_kv_heads, head_dim) and (..., head_dim_v); num_kv_heads divides num_heads.
    causal, window_size: query i sees key j if -left <= j - i <= right, -1 being an open side, `causal` being right = 0;
        the last query of a sequence stands at its last key.
    mask: any union of bands, of the tokens of all ranks, instead of causal and window_size (`ringattn.masks`); one for
        all rows of a batch, or a list of one for each; None is cp's. Then cu_seqlens only say how tokens are shared.
    softcap: scores become softcap * tanh(score / softcap); 0 is none.
    sinks: (num_heads,) logits of one more key per head whose value is 0; their gradient is this rank's share, as that
        of any replicated weight is.
    alibi_slopes: (num_heads,), (batch, num_heads) or, packed, (sequences, num_heads) of all rows, float32; subtracts
        slope * distance from the scores.
    softmax_scale: what scores are multiplied with; None is head_dim ** -0.5.
    dropout_p: probabilities dropped, in [0, 1). The seed is drawn from torch's CPU generator: seed all ranks alike.
    deterministic: gradients are bitwise the same from run to run.
    cu_seqlens, cu_seqlens_k: global borders of packed sequences, instead of cp's; those of the keys only where they
        differ (cross attention). A list, or a tensor, which is read when it changes (`lengths.read`).

    Returns out, shaped like q with head_dim_v, in q's dtype; with `return_lse` (out, lse), lse being the natural
    logarithm of each query's sum of exponentiated scores, differentiable, (batch, num_heads, tokens) in float32
    (float64 for float64). A query that sees no key has out 0 and lse -inf. Raises ValueError or TypeError for what does
    not fit, before anything is communicated. Ring attention: Liu et al. 2023, arXiv:2310.01889.
    """
    try:
        masks = read_masks(mask)
        _check_tensors(q, k, v, sinks, alibi_slopes)
    except TypeError as error:
        _refuse(error, _ALONE if cp is None else cp)
    if autocasts(q.device):
        q, k, v = (lowered(x) for x in (q, k, v))
    scale = (q.shape[-1:].numel() or 1) ** -0.5 if softmax_scale is None else softmax_scale
    spec = CallSpec(
        *(_ALONE if cp is None else cp, causal, window_size, softcap, scale, dropout_p, deterministic, return_lse),
        *(cu_seqlens, cu_seqlens_k),
        needs_gradients=torch.is_grad_enabled() and any(getattr(x, "requires_grad", False) for x in (q, k, v)),
        masks=masks,
    )
    attend = compiled.attend if _traceable(q, cu_seqlens, cu_seqlens_k) else _attend
    out, lse = attend(spec, q, k, v, sinks, alibi_slopes)
    return (out, lse) if return_lse else out


def _check_tensors(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, alibi_slopes: Tensor | None) -> None:
    check_tensors("q, k and v must be tensors", q, k, v)
    for name, given in (("sinks", sinks), ("alibi_slopes", alibi_slopes)):
        if given is not None:
            check_tensors(f"{name} must be a tensor", given)


def _refuse(error: TypeError, cp: ContextParallel) -> NoReturn:
    """Raise the error, and tell the other ranks."""
    parallel(cp)
    with telling(lambda: cp.communicator):
        raise error


def _traceable(q: Tensor, *cu_seqlens: Lengths | None) -> bool:
    """Is this call traced, and can it be part of a graph?"""
    # A fake tensor has a shape, which is all that the operator for graphs needs.
    traced = torch.compiler.is_compiling() or isinstance(q, FakeTensor)
    # Lengths in a tensor decide what is planned, and are not known when a graph is made: it breaks there.
    return traced and not any(isinstance(borders, Tensor) for borders in cu_seqlens)


@no_compile
def _attend(
    spec: CallSpec, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, alibi_slopes: Tensor | None
) -> tuple[Tensor, Tensor]:
    """out and lse, shaped like what was given."""
    call = spec.plan(q, k, v, sinks, alibi_slopes)
    out, lse, *_ = _Attention.apply(*(flattened(x) for x in (q, k, v)), sinks, Run(call))  # type: ignore[no-untyped-call]
    return out.view(*q.shape[:-1], v.shape[-1]), batched(lse, q)


def _with_signature(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its signature stored: PyTorch asks for it in every call, and it takes tens of microseconds."""
    vars(function)["__signature__"] = inspect.signature(function)
    return function


class _Attention(torch.autograd.Function):
    """(q, k, v, sinks) -> (out, lse, random states of the kernels), without a batch dimension."""

    @staticmethod
    @_with_signature
    def forward(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, run: Run) -> tuple[Tensor, ...]:
        return tuple(run.forward(q, k, v, sinks))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.run = inputs
        ctx.mark_non_differentiable(*output[2:])
        ctx.save_for_backward(*tensors, *output)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        grads = _Backward.apply(ctx.run, dout, dlse, *ctx.saved_tensors)  # type: ignore[no-untyped-call]
        return (*grads, None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> None:
        raise UnsupportedError(
            "ringattn.attention has no forward-mode derivative: take torch.func.vjp, torch.func.grad or backward()."
        )

    @staticmethod
    def vmap(*args: Any) -> None:
        raise UnsupportedError(_NO_VMAP)


class _Backward(torch.autograd.Function):
    """The gradients of q, k, v and sinks: a separate function, so that to differentiate them again is an error."""

    @staticmethod
    @_with_signature
    def forward(
        run: Run,
        dout: Tensor | None,
        dlse: Tensor | None,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        sinks: Tensor | None,
        out: Tensor,
        lse: Tensor,
        *rng_states: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        return tuple(run.call.backward(run.number, dout, dlse, q, KV(k, v), Result(out, lse, list(rng_states)), sinks))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        """There is no second derivative to keep anything for."""

    @staticmethod
    def vmap(*args: Any) -> None:
        raise UnsupportedError(_NO_VMAP)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> None:
        raise RuntimeError(
            "The gradients of ringattn.attention cannot be differentiated: it has a first derivative only."
        )
