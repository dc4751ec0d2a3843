"""`attention`: the native call, and the `torch.autograd.Function` that runs schedules forward and backward."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ringattn import checks
from ringattn.context_parallel import ContextParallel
from ringattn.lengths import Borders, Lengths, read, repeated
from ringattn.untraced import untraced
from ringattn_comms.communicator import Solo
from ringattn_comms.connect import connect
from ringattn_core.execute import Result, attend, attend_backward
from ringattn_core.kernel import Kernel, Options
from ringattn_core.kernels.choose import choose
from ringattn_core.kernels.reference import Reference
from ringattn_core.planner import plan
from ringattn_core.schedule import Schedule
from ringattn_core.transport import KV, Transport

_SOLO = ContextParallel(Solo())


@untraced
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    cp: ContextParallel | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
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
    softcap: scores become softcap * tanh(score / softcap); 0 is none.
    sinks: (num_heads,) logits of one more key per head whose value is 0; their gradient is this rank's share, as that
        of any replicated weight is.
    alibi_slopes: (num_heads,) or (batch, num_heads) float32; subtracts slope * distance from the scores.
    softmax_scale: what scores are multiplied with; None is head_dim ** -0.5.
    dropout_p: probabilities dropped, in [0, 1). The seed is drawn from torch's CPU generator: seed all ranks alike.
    deterministic: gradients are bitwise the same from run to run.
    cu_seqlens, cu_seqlens_k: global borders of packed sequences, instead of cp's; those of the keys only where they
        differ (cross attention). A list, or a tensor that is read once.

    Returns out, shaped like q with head_dim_v, in q's dtype; with `return_lse` (out, lse), lse being the natural
    logarithm of each query's sum of exponentiated scores, differentiable, (batch, num_heads, tokens) in float32
    (float64 for float64). A query that sees no key has out 0 and lse -inf. Raises ValueError or TypeError for what does
    not fit, before anything is communicated. Ring attention: Liu et al. 2023, arXiv:2310.01889.
    """
    cp = _SOLO if cp is None else cp
    checks.shapes(q, k, v)
    if _autocasts(q.device):
        q, k, v = (_lowered(x) for x in (q, k, v))
    checks.dtypes(q, k, v)
    checks.options(q, sinks, alibi_slopes, dropout_p, softcap)
    checks.parallel(cp, k)
    window = checks.window(causal, window_size)
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    if scale <= 0:
        # Fast kernels scale after they have masked and taken the maximum, which needs a positive scale.
        q, scale = q * scale, 1.0
    batch, tokens = q.shape[:2] if q.dim() == 4 else (1, q.shape[0])
    schedule = _schedule(cp, tokens, k.shape[-3], batch, window, cu_seqlens, cu_seqlens_k)
    checks.shares(schedule, q, k, batch)
    if alibi_slopes is not None and alibi_slopes.dim() == 2:
        alibi_slopes = alibi_slopes.repeat_interleave(tokens, dim=0)
    seed = int(torch.randint(2**62, ())) if dropout_p > 0 else 0
    options = Options(scale, softcap, alibi_slopes, dropout_p, seed, deterministic)
    flat_q, flat_k, flat_v = (x.flatten(0, 1) if x.dim() == 4 else x for x in (q, k, v))
    # A dropout mask of a kernel's own could not be had again from another one: see `_Backward`.
    kernel = choose(flat_q, flat_k, flat_v, schedule, options, cp.kernel, lse_gradient=return_lse and dropout_p > 0)
    call = _Call(schedule, cp, kernel, options)
    out, lse = _Attention.apply(flat_q, flat_k, flat_v, sinks, call)  # type: ignore[no-untyped-call]
    out = out.view(*q.shape[:-1], v.shape[-1])
    if not return_lse:
        return out
    return out, lse.unflatten(1, (batch, tokens)).transpose(0, 1) if q.dim() == 4 else lse


def _autocasts(device: torch.device) -> bool:
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def _lowered(x: Tensor) -> Tensor:
    """x as autocast passes it to what it runs in low precision."""
    castable = x.is_floating_point() and x.dtype != torch.float64
    return x.to(torch.get_autocast_dtype(x.device.type)) if castable else x


def _no_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Kernels choose the precision of their own products; autocast would lower it."""
    return torch.autocast(device.type, enabled=False) if _autocasts(device) else nullcontext()


def _schedule(
    cp: ContextParallel,
    tokens_q: int,
    tokens_k: int,
    batch: int,
    window: tuple[int, int],
    cu_seqlens: Lengths | None,
    cu_seqlens_k: Lengths | None,
) -> Schedule:
    """The plan for rows of so many local tokens, `batch` of them laid end to end."""
    stated = cp.cu_seqlens if cu_seqlens is None else cu_seqlens
    if stated is not None:
        borders_q = read(stated)
        borders_k = borders_q if cu_seqlens_k is None else read(cu_seqlens_k, "cu_seqlens_k")
        checks.sequences(borders_q, borders_k)
    elif cu_seqlens_k is None:
        borders_q, borders_k = Borders((0, tokens_q * cp.cp_size)), Borders((0, tokens_k * cp.cp_size))
    else:
        raise ValueError("cu_seqlens_k was given without cu_seqlens: say the borders of the queries' sequences too.")
    assert callable(cp.layout) and callable(cp.route), "the names were looked up when cp was made"
    return plan(
        cp.layout,
        cp.route,
        repeated(borders_q, batch),
        repeated(borders_k, batch),
        cp.cp_rank,
        cp.cp_size,
        window=window,
        per_sequence=cp.per_sequence,
        batch=max(batch, 1),
        head_groups=cp.head_groups,
    )


@dataclass(frozen=True, slots=True)
class _Call:
    """What a forward and a backward pass share beside tensors."""

    schedule: Schedule
    cp: ContextParallel
    kernel: Kernel
    options: Options

    def transport(self, device: torch.device) -> Transport:
        return connect(self.cp.communicator, self.schedule, device)


class _Attention(torch.autograd.Function):
    """(q, k, v, sinks) -> (out, lse), without a batch dimension."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, call: _Call) -> tuple[Tensor, Tensor]:
        with _no_autocast(q.device):
            result = attend(call.schedule, call.transport(q.device), call.kernel, q, KV(k, v), call.options, sinks)
        ctx.save_for_backward(q, k, v, sinks, result.out, result.lse, *result.rng_states)
        ctx.set_materialize_grads(False)
        ctx.call = call
        return result.out, result.lse

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
        grads = _Backward.apply(ctx.call, dout, dlse, *ctx.saved_tensors)  # type: ignore[no-untyped-call]
        return (*grads, None)


class _Backward(torch.autograd.Function):
    """The gradients of q, k, v and sinks: a function of its own, so that it is an error to differentiate them again."""

    @staticmethod
    def forward(
        ctx: Any,
        call: _Call,
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
        # A kernel that derives delta from out and dout has no place for a gradient of lse.
        kernel = call.kernel if dlse is None or call.kernel.takes_delta else Reference()
        dout = torch.zeros_like(out) if dout is None else dout
        dlse = None if dlse is None else torch.where(lse.isfinite(), dlse, 0.0)
        result = Result(out, lse, list(rng_states))
        with _no_autocast(q.device):
            grads = attend_backward(
                call.schedule, call.transport(q.device), kernel, dout, q, KV(k, v), result, call.options, sinks, dlse
            )
        return grads.dq.to(q.dtype), grads.dk.to(k.dtype), grads.dv.to(v.dtype), grads.dsinks

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> None:
        raise RuntimeError(
            "The gradients of ringattn.attention cannot be differentiated: it has a first derivative only."
        )
