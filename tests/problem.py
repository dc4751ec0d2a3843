"""One attention problem, solved densely by the oracle or in shards over a group, and how far the answers differ."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

import oracle
from ringattn_comms.communicator import Communicator
from ringattn_comms.connect import connect
from ringattn_core.kernels.reference import Reference
from ringattn_core.plan.layout import Layout, layout_named
from ringattn_core.plan.planner import plan
from ringattn_core.plan.route import Route, route_named
from ringattn_core.plan.schedule import Schedule
from ringattn_core.run.execute import attend
from ringattn_core.run.head_groups import attend_backward_in_groups, attend_in_groups
from ringattn_core.run.kernel import Kernel, Options
from ringattn_core.run.transport import KV, LocalTransport, Transport

HEADS, KV_HEADS, DIM = 4, 2, 4


class Fault(NamedTuple):
    """A number put into one of the inputs."""

    name: str  # a field of Inputs; nothing happens where the problem has no such input
    place: int  # among all its numbers, counted round
    value: float


class Answer(NamedTuple):
    """Results for all tokens, in the order of the stream."""

    out: Tensor
    lse: Tensor
    dq: Tensor
    dk: Tensor
    dv: Tensor
    dsinks: Tensor | None


class Part(NamedTuple):
    """The results of one rank, and the stream positions of its queries and keys."""

    queries: Tensor
    keys: Tensor
    answer: Answer


@dataclass(frozen=True)
class Problem:
    """The inputs are drawn from `seed`, so a process can be sent the problem instead of the tensors."""

    cu_seqlens_q: tuple[int, ...]
    cu_seqlens_k: tuple[int, ...] = ()  # those of the queries, if empty
    window: tuple[int, int] = (-1, -1)
    num_heads: int = HEADS
    num_kv_heads: int = KV_HEADS
    head_dim: int = DIM
    head_dim_v: int = DIM
    softcap: float = 0.0
    sinks: bool = False
    alibi: str = ""  # "", "head" or "token"
    dropout_p: float = 0.0
    lse_gradient: bool = True
    seed: int = 0
    dtype: torch.dtype = torch.float64
    faults: tuple[Fault, ...] = ()
    softmax_scale: float = field(init=False, default=0.6)

    @property
    def borders(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self.cu_seqlens_q, self.cu_seqlens_k or self.cu_seqlens_q

    def inputs(self) -> Inputs:
        """What an attention takes, in `dtype`."""
        generator = torch.Generator().manual_seed(self.seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(self.dtype)

        tokens_q, tokens_k = (borders[-1] for borders in self.borders)
        slopes = {"head": (self.num_heads,), "token": (tokens_q, self.num_heads)}
        accumulated = self.dtype if self.dtype == torch.float64 else torch.float32
        inputs = Inputs(
            q=draw(tokens_q, self.num_heads, self.head_dim),
            k=draw(tokens_k, self.num_kv_heads, self.head_dim),
            v=draw(tokens_k, self.num_kv_heads, self.head_dim_v),
            sinks=draw(self.num_heads) if self.sinks else None,
            alibi_slopes=draw(*slopes[self.alibi]).abs().to(accumulated) if self.alibi else None,
            dout=draw(tokens_q, self.num_heads, self.head_dim_v),
            dlse=draw(self.num_heads, tokens_q).to(accumulated) if self.lse_gradient else None,
        )
        for name, place, value in self.faults:
            x = getattr(inputs, name)
            if x is not None:
                x.view(-1)[place % x.numel()] = value
        return inputs

    def options(self, alibi_slopes: Tensor | None) -> Options:
        return Options(self.softmax_scale, self.softcap, alibi_slopes, self.dropout_p, self.seed)

    def kept(self) -> Tensor | None:
        """What dropout leaves of every cell, (num_heads, tokens_q, tokens_k), as one rank alone has it.

        Queries of 0 weigh all keys alike; values that are unit vectors show the weight of each key.
        """
        if self.dropout_p == 0:
            return None
        borders_q, borders_k = self.borders
        schedule = plan(layout_named("contiguous"), route_named("ring"), borders_q, borders_k, 0, 1)
        q = torch.zeros(borders_q[-1], self.num_heads, 1, dtype=torch.float64)
        kv = KV(q.new_zeros(borders_k[-1], 1, 1), torch.eye(borders_k[-1], dtype=q.dtype).unsqueeze(1))
        result = attend(LocalTransport(schedule, kv), Reference(), q, self.options(None))
        return (result.out * result.lse.T.exp().unsqueeze(-1)).transpose(0, 1)

    def solve(self, dtype: torch.dtype = torch.float64) -> Answer:
        """The oracle's answer to the inputs as they are in `self.dtype`, computed in another."""
        given = self.inputs()
        leaves = [x.to(dtype).requires_grad_() for x in (given.q, given.k, given.v, given.sinks) if x is not None]
        out, lse = oracle.attention(
            *leaves[:3],
            *self.borders,
            window=self.window,
            softmax_scale=self.softmax_scale,
            softcap=self.softcap,
            sinks=leaves[3] if self.sinks else None,
            alibi_slopes=given.alibi_slopes,
            kept=self.kept(),
            apart=bool(self.faults),
        )
        loss = (out * given.dout.to(dtype)).sum()
        if given.dlse is not None:
            loss = loss + (torch.where(lse.isfinite(), lse, 0.0) * given.dlse.to(dtype)).sum()
        grads = torch.autograd.grad(loss, leaves, materialize_grads=True)
        return Answer(out.detach(), lse.detach(), *grads[:3], grads[3] if self.sinks else None)

    def solve_on(
        self,
        comm: Communicator,
        layout: str | Layout = "zigzag",
        route: str | Route = "ring",
        *,
        per_sequence: bool = True,
        batch: int = 1,
        head_groups: int = 1,
        kernel: Kernel | None = None,
        link: Callable[[Communicator, Schedule, KV], Transport] = connect,
        num_early_rows: int = 0,
        back: str | Route | None = None,
    ) -> Part:
        """What this rank of a group finds, forward and backward; `link` makes the transport of each.

        `num_early_rows` is for the forward pass alone, and `back` is the backward pass's route, where that is another.
        """
        schedule, backward = (
            plan(
                layout_named(layout),
                route_named(each),
                *self.borders,
                comm.rank,
                comm.size,
                window=self.window,
                per_sequence=per_sequence,
                batch=batch,
                num_early_rows=early,
            )
            for each, early in ((route, num_early_rows), (back or route, 0))
        )
        kernel, given = kernel or Reference(), self.inputs()
        queries, keys = (
            torch.tensor(sharding.positions(comm.rank), dtype=torch.int64)
            for sharding in (schedule.queries, schedule.keys)
        )
        slopes = given.alibi_slopes
        options = self.options(slopes[queries] if self.alibi == "token" and slopes is not None else slopes)
        q, kv, sinks = given.q[queries], KV(given.k[keys], given.v[keys]), given.sinks
        result = attend_in_groups(head_groups, partial(link, comm, schedule), kernel, q, kv, options, sinks)
        dlse = None if given.dlse is None else torch.where(result.lse.isfinite(), given.dlse[:, queries], 0.0)
        asked = kernel, given.dout[queries], q, kv, result, options, sinks, dlse
        grads = attend_backward_in_groups(head_groups, partial(link, comm, backward), *asked)
        return Part(queries, keys, Answer(result.out, result.lse, *grads))


class Inputs(NamedTuple):
    q: Tensor
    k: Tensor
    v: Tensor
    sinks: Tensor | None
    alibi_slopes: Tensor | None
    dout: Tensor
    dlse: Tensor | None


def assemble(parts: Sequence[Part]) -> Answer:
    """The answer of all ranks; together they have to hold every token once."""
    queries, keys = (torch.cat([part[side] for part in parts]) for side in (0, 1))
    for positions in (queries, keys):
        assert sorted(positions.tolist()) == list(range(len(positions))), "the shards do not make up the stream"
    order_q, order_k = queries.argsort(), keys.argsort()
    answers = [part.answer for part in parts]
    shares = [answer.dsinks for answer in answers if answer.dsinks is not None]
    return Answer(
        torch.cat([answer.out for answer in answers])[order_q],
        torch.cat([answer.lse for answer in answers], dim=1)[:, order_q],
        torch.cat([answer.dq for answer in answers])[order_q],
        torch.cat([answer.dk for answer in answers])[order_k],
        torch.cat([answer.dv for answer in answers])[order_k],
        torch.stack(shares).sum(dim=0) if shares else None,
    )


def errors(found: Answer, truth: Answer) -> dict[str, float]:
    """The largest absolute error of each result; what is NaN or inf in one has to be so in the other."""
    return {
        name: distance(getattr(found, name), getattr(truth, name))
        for name in Answer._fields
        if getattr(truth, name) is not None
    }


def distance(found: Tensor, truth: Tensor) -> float:
    """The largest absolute error; inf where one is NaN and the other is not."""
    assert found.shape == truth.shape, f"{tuple(found.shape)} is not {tuple(truth.shape)}"
    found = found.to(torch.float64)
    same = (found == truth) | (found.isnan() & truth.isnan())
    # -inf less -inf is NaN.
    apart = torch.where(same, 0.0, (found - truth).abs().nan_to_num(nan=torch.inf, posinf=torch.inf))
    return apart.max().item() if apart.numel() else 0.0


def assert_exact(parts: Iterable[Part], truth: Answer, tolerance: float = 1e-10) -> None:
    """Every result is the oracle's, NaN where that is NaN and nowhere else."""
    for name, error in errors(assemble(list(parts)), truth).items():
        assert error <= tolerance, f"{name} is off by {error}"


def assert_fair(problem: Problem, parts: Iterable[Part]) -> None:
    """Every error against float64 is at most twice that of plain PyTorch in the problem's dtype."""
    truth = problem.solve()
    plain = errors(problem.solve(problem.dtype), truth)
    for name, error in errors(assemble(list(parts)), truth).items():
        assert error <= 2 * plain[name], f"{name} is off by {error}, plain PyTorch in {problem.dtype} by {plain[name]}"
