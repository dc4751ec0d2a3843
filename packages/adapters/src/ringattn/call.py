"""One attention call, checked and planned: what its forward and its backward pass share beside tensors."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ringattn import agree, checks
from ringattn.agree import Batch, Terms
from ringattn.choice import Kernels, auto
from ringattn.context_parallel import ContextParallel, sound
from ringattn.lengths import Borders, Lengths, read, repeated
from ringattn_comms.connect import connect
from ringattn_core.auto import CANDIDATES
from ringattn_core.execute import Gradients, Result, attend, attend_backward
from ringattn_core.index import sequence_index
from ringattn_core.kernel import Kernel, Options
from ringattn_core.kernels.reference import Reference
from ringattn_core.layout import Division
from ringattn_core.planner import plan
from ringattn_core.route import Route, at_once
from ringattn_core.schedule import Schedule
from ringattn_core.settled import early_rows
from ringattn_core.transport import KV


@dataclass(frozen=True, slots=True)
class Request:
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

    def plan(
        self, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, alibi_slopes: Tensor | None, seed: int
    ) -> Call:
        """Check everything and plan it, for tensors with or without a batch dimension. Raises what `attention` says."""
        checks.shapes(q, k, v)
        checks.dtypes(q, k, v)
        checks.parallel(self.cp, k)
        batch, borders = q.shape[0] if q.dim() == 4 else 1, _borders(self, q, k)
        sequences = batch * (len(borders[0]) - 1)
        checks.options(q, sinks, alibi_slopes, sequences, self.dropout_p, self.softcap, self.softmax_scale)
        window = checks.window(self.causal, self.window_size)
        terms = Terms.of(self.cp, q, k, v, window, self.dropout_p)
        agree.check(self.cp.communicator, terms)
        borders = repeated(borders[0], batch), repeated(borders[1], batch)
        assert callable(self.cp.layout), "the name was looked up when cp was made"
        division = sound(Division(self.cp.layout, borders[0], self.cp.cp_size, self.cp.per_sequence, max(batch, 1)))
        if alibi_slopes is not None and alibi_slopes.dim() == 2:
            alibi_slopes = _by_token(alibi_slopes, division, self.cp.cp_rank)
        options = Options(self.softmax_scale, self.softcap, alibi_slopes, self.dropout_p, seed, self.deterministic)
        # A dropout mask of a kernel's own could not be had again from another one: see `Call.backward`.
        lse_gradient = self.return_lse and self.dropout_p > 0
        kernels = Kernels(flattened(q), flattened(k), flattened(v), options, self.cp.kernel, lse_gradient)
        forward, backward = _plans(self, division, borders[1], window, kernels)
        mine, mine_back = forward(self.cp.cp_rank), backward(self.cp.cp_rank)
        if self.cp.route is not at_once:  # by which ranks do not know each other's sequences
            agree.check_all(self.cp.communicator, terms, Batch(batch, *borders))
        checks.shares(mine_back, q, k, batch)
        second = Pass(mine_back, kernels.choose(mine_back))
        first = second if mine is mine_back else Pass(mine, kernels.choose(mine))
        # Where both are one, they may be two on another rank.
        for schedule, planned in ((mine, forward), (mine_back, backward)):
            kernels.choose_for_all(schedule, planned)
        return Call(self.cp, options, first, second)


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

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None) -> Result:
        schedule, kernel = self.forward_pass
        transport = connect(self.cp.communicator, schedule, q.device)
        with _no_autocast(q.device):
            return attend(schedule, transport, kernel, q, KV(k, v), self.options, sinks)

    def backward(
        self,
        dout: Tensor | None,
        dlse: Tensor | None,
        q: Tensor,
        kv: KV,
        result: Result,
        sinks: Tensor | None,
    ) -> Gradients:
        """The gradients, in the dtypes of what they are gradients of."""
        schedule, kernel = self.backward_pass
        # A kernel that derives delta from out and dout has no place for a gradient of lse.
        kernel = kernel if dlse is None or kernel.takes_delta else Reference()
        dout = torch.zeros_like(result.out) if dout is None else dout
        dlse = None if dlse is None else torch.where(result.lse.isfinite(), dlse, 0.0)
        transport = connect(self.cp.communicator, schedule, q.device)
        with _no_autocast(q.device):
            grads = attend_backward(schedule, transport, kernel, dout, q, kv, result, self.options, sinks, dlse)
        return Gradients(grads.dq.to(q.dtype), grads.dk.to(kv.k.dtype), grads.dv.to(kv.v.dtype), grads.dsinks)


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


def _borders(request: Request, q: Tensor, k: Tensor) -> tuple[Borders, Borders]:
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
    return Borders((0, q.shape[-3] * cp.cp_size)), Borders((0, k.shape[-3] * cp.cp_size))


def _by_token(slopes: Tensor, division: Division, cp_rank: int) -> Tensor:
    """ALiBi's slopes of a rank's tokens, (tokens, num_heads), from those of rows or of sequences."""
    in_each = (len(division.cu_seqlens) - 1) // max(len(slopes), 1)
    return slopes.repeat_interleave(in_each, dim=0)[sequence_index(division, cp_rank, slopes.device)]


def _plans(
    request: Request, division: Division, borders_k: Borders, window: tuple[int, int], kernels: Kernels
) -> tuple[Callable[[int], Schedule], Callable[[int], Schedule]]:
    """The plan of a rank for each pass, for queries that are divided so and the keys of their sequences."""
    cp, borders_q = request.cp, division.cu_seqlens
    if callable(cp.route):
        first, second = cp.route, cp.route
    else:
        first, second = (CANDIDATES[name] for name in auto(cp.communicator, division, window, kernels))

    def planned(rank: int, *, route: Route, ahead: int) -> Schedule:
        return plan(
            *(division.layout, route, borders_q, borders_k, rank, cp.cp_size),
            window=window,
            per_sequence=cp.per_sequence,
            batch=division.batch,
            head_groups=cp.head_groups,
            ahead=ahead,
        )

    backward = partial(planned, route=second, ahead=0)
    # A backward pass has to find the dropout masks of every launch again.
    forward = partial(planned, route=first, ahead=early_rows(borders_q[-1] // cp.cp_size))
    return backward if request.dropout_p > 0 else forward, backward
