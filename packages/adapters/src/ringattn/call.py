"""One attention call, checked and planned: what its forward and its backward pass share beside tensors."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ringattn import checks
from ringattn.agree import Terms, checked, functions, named, shared, telling, turn
from ringattn.choice import Kernels, auto
from ringattn.context_parallel import ContextParallel, sound
from ringattn.lengths import Borders, Lengths, read, repeated
from ringattn.version import __version__
from ringattn_comms.connect import connect
from ringattn_comms.header import encoded
from ringattn_core.kernels.reference import Reference
from ringattn_core.look.auto import CANDIDATES
from ringattn_core.plan.layout import Sharding
from ringattn_core.plan.local_rows import default_early_rows
from ringattn_core.plan.planner import plan
from ringattn_core.plan.route import Route, at_once
from ringattn_core.plan.schedule import Schedule
from ringattn_core.run.execute import Gradients, Result, attend, attend_backward
from ringattn_core.run.index import sequence_index
from ringattn_core.run.kernel import Kernel, Options
from ringattn_core.run.transport import KV


@dataclass(frozen=True, slots=True)
class CallSpec:
    """What was asked of `attention` beside its tensors."""

    cp: ContextParallel
    causal: bool
    window_size: tuple[int, int]
    softcap: float
    softmax_scale: float
    dropout_p: float
    deterministic: bool
    return_lse: bool
    cu_seqlens: Lengths | None = None
    cu_seqlens_k: Lengths | None = None
    needs_gradients: bool = False

    def plan(
        self, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, alibi_slopes: Tensor | None, seed: int
    ) -> Call:
        """Check everything and plan it, for tensors with or without a batch dimension. Raises what `attention` says.

        The other ranks are told of what it raises, for they would wait for this one.
        """
        checks.parallel(self.cp)
        with telling(lambda: self.cp.communicator):
            return self._plan(q, k, v, sinks, alibi_slopes, seed)

    def _plan(
        self, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, alibi_slopes: Tensor | None, seed: int
    ) -> Call:
        checks.shapes(q, k, v)
        checks.dtypes(q, k, v)
        checks.head_groups(self.cp.head_groups, k)
        comm = self.cp.communicator
        batch, borders = q.shape[0] if q.dim() == 4 else 1, _borders(self, q, k, comm.size)
        sequences = batch * (len(borders[0]) - 1)
        checks.options(q, sinks, alibi_slopes, sequences, self.dropout_p, self.softcap, self.softmax_scale)
        window = checks.window(self.causal, self.window_size)
        borders = repeated(borders[0], batch), repeated(borders[1], batch)
        assert callable(self.cp.layout), "the name was looked up when cp was made"
        sharding = sound(Sharding(self.cp.layout, borders[0], comm.size, self.cp.per_sequence, max(batch, 1)))
        terms = _terms(self, q, k, v, sinks, alibi_slopes, window, batch, sharding, borders)
        if alibi_slopes is not None and alibi_slopes.dim() == 2:
            alibi_slopes = _by_token(alibi_slopes, sharding, self.cp.cp_rank)
        options = Options(self.softmax_scale, self.softcap, alibi_slopes, self.dropout_p, seed, self.deterministic)
        # A dropout mask of a kernel's own could not be had again from another one: see `Call.backward`.
        lse_gradient = self.return_lse and self.dropout_p > 0
        kernels = Kernels(flattened(q), flattened(k), flattened(v), options, self.cp.kernel, lse_gradient)
        forward, backward = _schedules(self, sharding, borders[1], window, kernels, terms)
        checks.shares(backward, q, k, batch)
        second = Pass(backward, kernels.choose(backward))
        first = second if forward is backward else Pass(forward, kernels.choose(forward))
        return Call(self.cp, options, first, second, terms)


class Pass(NamedTuple):
    """What a forward or a backward pass is made of."""

    schedule: Schedule
    kernel: Kernel


@dataclass(frozen=True, slots=True)
class Call:
    """A planned call: its two passes, over (tokens, heads, head_dim)."""

    cp: ContextParallel
    options: Options
    forward_pass: Pass
    backward_pass: Pass
    terms: Terms

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None) -> tuple[Result, int]:
        """What the pass leaves, and the number that the other ranks know it by. Raises `AgreementError`."""
        schedule, kernel = self.forward_pass
        with self._turn("forward", q.device) as number, _no_autocast(q.device):
            transport = connect(self.cp.communicator, schedule, q.device)
            return attend(schedule, transport, kernel, q, KV(k, v), self.options, sinks), number

    def backward(
        self,
        number: int | None,
        dout: Tensor | None,
        dlse: Tensor | None,
        q: Tensor,
        kv: KV,
        result: Result,
        sinks: Tensor | None,
    ) -> Gradients:
        """The gradients of the forward pass of this number, if it is known, in the dtypes of q, k, v and sinks."""
        schedule, kernel = self.backward_pass
        # A kernel that derives delta from out and dout has no place for a gradient of lse.
        kernel = kernel if dlse is None or kernel.accepts_delta else Reference()
        dout = torch.zeros_like(result.out) if dout is None else dout
        dlse = None if dlse is None else torch.where(result.lse.isfinite(), dlse, 0.0)
        with self._turn("backward" if number is None else f"backward of {number}", q.device), _no_autocast(q.device):
            transport = connect(self.cp.communicator, schedule, q.device)
            grads = attend_backward(schedule, transport, kernel, dout, q, kv, result, self.options, sinks, dlse)
        return Gradients(grads.dq.to(q.dtype), grads.dk.to(kv.k.dtype), grads.dv.to(kv.v.dtype), grads.dsinks)

    def _turn(self, action: str, device: torch.device) -> AbstractContextManager[int]:
        seed = encoded((("seed", self.options.seed),)) if self.options.dropout_p > 0 else b""
        return turn(self.cp.communicator, action, self.terms.encode(), device, seed)


def drawn_seed(dropout_p: float) -> int:
    """The seed of a call's dropout masks, from torch's generator on the CPU; 0 without dropout."""
    return int(torch.randint(2**62, ())) if dropout_p > 0 else 0


def flattened(x: Tensor) -> Tensor:
    """(batch, tokens, ...) -> (batch * tokens, ...): a batch is so many sequences of one packed stream."""
    return x.flatten(0, 1) if x.dim() == 4 else x


def batched(lse: Tensor, q: Tensor) -> Tensor:
    """(num_heads, batch * tokens) -> (batch, num_heads, tokens), where q has a batch dimension."""
    return lse.view(len(lse), *q.shape[:2]).transpose(0, 1) if q.dim() == 4 else lse


# Asked once, for torch.compile could not trace the question in PyTorch 2.11.
_AUTOCASTING = {kind for kind in ("cpu", "cuda", "xpu", "mps", "hpu") if torch.amp.is_autocast_available(kind)}


def autocasts(device: torch.device) -> bool:
    """Is autocast on for tensors of a device?"""
    return device.type in _AUTOCASTING and torch.is_autocast_enabled(device.type)


def lowered(x: Tensor) -> Tensor:
    """x as autocast passes it to what it runs in low precision."""
    castable = x.is_floating_point() and x.dtype != torch.float64
    return x.to(torch.get_autocast_dtype(x.device.type)) if castable else x


def _no_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Kernels choose the precision of their own products; autocast would lower it."""
    return torch.autocast(device.type, enabled=False) if autocasts(device) else nullcontext()


def _borders(request: CallSpec, q: Tensor, k: Tensor, size: int) -> tuple[Borders, Borders]:
    """The borders of the queries' and the keys' sequences in one row."""
    cp, cu_seqlens_k = request.cp, request.cu_seqlens_k
    stated = cp.cu_seqlens if request.cu_seqlens is None else request.cu_seqlens
    if stated is not None:
        borders_q = read(stated)
        borders_k = borders_q if cu_seqlens_k is None else read(cu_seqlens_k, "cu_seqlens_k")
        checks.sequences(borders_q, borders_k)
        return borders_q, borders_k
    if cu_seqlens_k is not None:
        raise ValueError("cu_seqlens_k was given without cu_seqlens: say the borders of the queries' sequences too.")
    return Borders((0, q.shape[-3] * size)), Borders((0, k.shape[-3] * size))


def _by_token(slopes: Tensor, sharding: Sharding, cp_rank: int) -> Tensor:
    """ALiBi's slopes of a rank's tokens, (tokens, num_heads), from those of rows or of sequences."""
    in_each = (len(sharding.cu_seqlens) - 1) // max(len(slopes), 1)
    return slopes.repeat_interleave(in_each, dim=0)[sequence_index(sharding, cp_rank, slopes.device)]


def _terms(
    request: CallSpec,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    alibi_slopes: Tensor | None,
    window: tuple[int, int],
    batch: int,
    sharding: Sharding,
    borders: tuple[Borders, Borders],
) -> Terms:
    """What the other ranks have to ask for as well."""
    cp, slopes = request.cp, shared(alibi_slopes)
    if cp.route is at_once:  # by which ranks do not know each other's sequences
        borders = Borders((0, borders[0][-1])), Borders((0, borders[1][-1]))
        slopes = "none" if alibi_slopes is None else "given"
    return Terms(
        version=__version__,
        RINGATTN_CHECK=checked(),
        num_heads=q.shape[-2],
        num_kv_heads=k.shape[-2],
        head_dim=q.shape[-1],
        head_dim_v=v.shape[-1],
        dtype=str(q.dtype),
        device=q.device.type,
        mask=window,
        layout=named(cp.layout),
        route=named(cp.route),
        functions=functions(sharding, cp.route),
        per_sequence=cp.per_sequence,
        head_groups=cp.head_groups,
        rows=batch,
        cu_seqlens=borders[0],
        cu_seqlens_k=borders[1],
        softmax_scale=request.softmax_scale,
        softcap=request.softcap,
        dropout=request.dropout_p,
        sinks=shared(sinks),
        alibi_slopes=slopes,
        deterministic=request.deterministic,
        needs_gradients=request.needs_gradients,
    )


def _schedules(
    request: CallSpec,
    sharding: Sharding,
    borders_k: Borders,
    window: tuple[int, int],
    kernels: Kernels,
    terms: Terms,
) -> tuple[Schedule, Schedule]:
    """This rank's schedule for each pass, for queries that are divided so and the keys of their sequences."""
    cp, comm, borders_q = request.cp, request.cp.communicator, sharding.cu_seqlens
    if callable(cp.route):
        first, second = cp.route, cp.route
    else:
        first, second = (CANDIDATES[name] for name in auto(comm, sharding, window, kernels, terms))

    def planned(route: Route, num_early_rows: int) -> Schedule:
        return plan(
            *(sharding.layout, route, borders_q, borders_k, comm.rank, comm.size),
            window=window,
            per_sequence=cp.per_sequence,
            batch=sharding.batch,
            head_groups=cp.head_groups,
            num_early_rows=num_early_rows,
        )

    backward = planned(second, 0)
    # A backward pass has to find the dropout masks of every launch again.
    num_early_rows = default_early_rows(borders_q[-1] // comm.size)
    return backward if request.dropout_p > 0 else planned(first, num_early_rows), backward
