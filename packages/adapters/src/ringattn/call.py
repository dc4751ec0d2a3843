"""One attention call: what was asked for, checked and planned, and its two passes with the other ranks."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor

from ringattn import agree, checks
from ringattn.agree import UNKNOWN, Peers, telling, turn
from ringattn.choice import Kernels
from ringattn.context_parallel import ContextParallel, alive
from ringattn.lengths import Lengths, read_both, repeated
from ringattn.mask_rows import live, tokens
from ringattn.prepared import question_of
from ringattn.schedules import schedules
from ringattn.sharding import sound
from ringattn.tensors import autocasts, flattened
from ringattn.terms import agreed_terms
from ringattn_comms.communicator import Communicator
from ringattn_comms.connect import connect
from ringattn_comms.header import encoded
from ringattn_core.kernels.reference import Reference
from ringattn_core.plan.layout import Sharding
from ringattn_core.plan.mask import Mask
from ringattn_core.plan.schedule import Schedule
from ringattn_core.run.execute import Gradients, Result
from ringattn_core.run.head_groups import attend_backward_in_groups, attend_in_groups
from ringattn_core.run.index import sequence_index
from ringattn_core.run.kernel import Kernel, Options
from ringattn_core.run.transport import KV


@dataclass(frozen=True, slots=True)
class CallSpec:
    """What was asked of `attention`, without its tensors."""

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
    masks: tuple[Mask, ...] | None = None

    def plan(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        sinks: Tensor | None,
        alibi_slopes: Tensor | None,
        seed: int | None = None,
    ) -> Call:
        """Prepare the call with what the ranks know of each other; the first call of a group on GPUs asks for that.

        seed: of the dropout masks; None draws one.
        The other ranks are told of every error, because they would wait for this rank. Raises what `attention` says.
        """
        checks.parallel(self.cp)
        with telling(lambda: self.cp.communicator):
            checks.numbers(self.dropout_p, self.softcap, self.softmax_scale)
            seed = drawn_seed(self.dropout_p) if seed is None else seed
            comm, question = self.cp.communicator, question_of(self, q, k, v, sinks, alibi_slopes)
            if (call := self.cp.prepared.get(question)) is not None:
                return cast("Call", call)
            peers = agree.peers(comm, q.device) if self.cp.route == "auto" else UNKNOWN
            call = self.prepare(q, k, v, sinks, alibi_slopes, seed, peers or UNKNOWN)
            if peers is None:  # Only now, so that bad input is refused before anything is communicated.
                peers = agree.introduce(comm, q.device, call.terms)
                call = self.prepare(q, k, v, sinks, alibi_slopes, seed, peers)
            self.cp.prepared.put(question, call)
            return call

    def prepare(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        sinks: Tensor | None = None,
        alibi_slopes: Tensor | None = None,
        seed: int = 0,
        peers: Peers = UNKNOWN,
    ) -> Call:
        """Check everything and plan it, for tensors with or without a batch dimension. Communicates nothing.

        Every rank prepares the same call from the same arguments: `Call.terms` is what they compare before each pass.
        """
        checks.shapes(q, k, v)
        checks.dtypes(q, k, v)
        checks.head_groups(self.cp.head_groups, k)
        comm = self.cp.communicator
        batch = q.shape[0] if q.dim() == 4 else 1
        masks = self.masks or self.cp.masks
        cu_seqlens = self.cp.cu_seqlens if self.cu_seqlens is None else self.cu_seqlens
        lengths = (tokens(masks),) * 2 if masks else (q.shape[-3] * comm.size, k.shape[-3] * comm.size)
        borders = read_both(cu_seqlens, self.cu_seqlens_k, *lengths)
        sequences = batch * (len(borders[0]) - 1)
        checks.options(q, sinks, alibi_slopes, sequences, self.dropout_p, self.softcap, self.softmax_scale)
        seen = live(masks, checks.window(self.causal, self.window_size), borders, batch)
        borders = repeated(borders[0], batch), repeated(borders[1], batch)
        sharding = sound(Sharding(self.cp.token_layout, borders[0], comm.size, self.cp.per_sequence, max(batch, 1)))
        terms = agreed_terms(self, q, k, v, sinks, alibi_slopes, seen, batch, sharding, borders)
        if alibi_slopes is not None and alibi_slopes.dim() == 2:
            alibi_slopes = _by_token(alibi_slopes, sharding, self.cp.cp_rank)
        options = Options(self.softmax_scale, self.softcap, alibi_slopes, self.dropout_p, seed, self.deterministic)
        # The backward pass may need another kernel for the gradient of lse, which could not repeat a dropout mask of
        # the first kernel: see `Call.backward`.
        lse_gradient = self.return_lse and self.dropout_p > 0
        kernels = Kernels(flattened(q), flattened(k), flattened(v), options, self.cp.kernel, lse_gradient)
        forward, backward = schedules(self, sharding, borders[1], seen, kernels, peers)
        checks.shares(backward, q, k, batch)
        second = Pass(backward, kernels.choose(backward))
        first = second if forward is backward else Pass(forward, kernels.choose(forward))
        return Call(comm, self.cp.head_groups, options, first, second, terms)


class Pass(NamedTuple):
    """What a forward or a backward pass runs."""

    schedule: Schedule
    kernel: Kernel


@dataclass(frozen=True, slots=True)
class Call:
    """A prepared call: its two passes, over tensors of shape (tokens, heads, head_dim)."""

    comm: Communicator  # and not the ContextParallel, which keeps its last calls
    head_groups: int
    options: Options
    forward_pass: Pass
    backward_pass: Pass
    terms: bytes  # encoded: what all ranks must ask for alike

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None) -> tuple[Result, int]:
        """The results, and the number by which all ranks know this pass. Raises `AgreementError`."""
        schedule, kernel = self.forward_pass
        with self._turn("forward", q.device) as number, _no_autocast(q.device):
            asked = self.head_groups, partial(connect, alive(self.comm), schedule), kernel
            return attend_in_groups(*asked, q, KV(k, v), self.options, sinks), number

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
        """The gradients, in the dtypes of q, k, v and sinks. `number` is that of the forward pass, if it is known."""
        schedule, kernel = self.backward_pass
        # A kernel that computes delta from out and dout cannot take a gradient of lse.
        kernel = kernel if dlse is None or kernel.accepts_delta else Reference()
        dout = torch.zeros_like(result.out) if dout is None else dout
        dlse = None if dlse is None else torch.where(result.lse.isfinite(), dlse, 0.0)
        with self._turn("backward" if number is None else f"backward of {number}", q.device), _no_autocast(q.device):
            asked = self.head_groups, partial(connect, alive(self.comm), schedule), kernel
            grads = attend_backward_in_groups(*asked, dout, q, kv, result, self.options, sinks, dlse)
        return Gradients(grads.dq.to(q.dtype), grads.dk.to(kv.k.dtype), grads.dv.to(kv.v.dtype), grads.dsinks)

    def _turn(self, action: str, device: torch.device) -> AbstractContextManager[int]:
        seed = encoded((("seed", self.options.seed),)) if self.options.dropout_p > 0 else b""
        return turn(alive(self.comm), action, self.terms, device, seed)


def drawn_seed(dropout_p: float) -> int:
    """The seed of a call's dropout masks, from torch's generator on the CPU; 0 without dropout."""
    return int(torch.randint(2**62, ())) if dropout_p > 0 else 0


def _no_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Kernels choose the precision of their products; autocast would lower it."""
    return torch.autocast(device.type, enabled=False) if autocasts(device) else nullcontext()


def _by_token(slopes: Tensor, sharding: Sharding, cp_rank: int) -> Tensor:
    """ALiBi's slopes of a rank's tokens, (tokens, num_heads), from those of rows or of sequences."""
    in_each = (len(sharding.cu_seqlens) - 1) // max(len(slopes), 1)
    return slopes.repeat_interleave(in_each, dim=0)[sequence_index(sharding, cp_rank, slopes.device)]
