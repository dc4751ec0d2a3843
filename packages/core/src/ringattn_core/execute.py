"""Run a schedule: one loop forward and one backward, whatever the layout, route, mask, transport or kernel."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ringattn_core.errors import UnsupportedError
from ringattn_core.kernel import Kernel, Options, Positions, Queries, accumulator_dtype
from ringattn_core.layout import Division
from ringattn_core.merge import sink_gradient
from ringattn_core.schedule import Schedule, Step
from ringattn_core.totals import column_total, out_total, row_total
from ringattn_core.transport import KV, Transport, kv_heads


class Result(NamedTuple):
    """What a forward pass leaves: all that a backward pass needs beside its inputs."""

    out: Tensor  # (tokens, num_heads, head_dim_v), in q's dtype
    lse: Tensor  # (num_heads, tokens), over all keys of all ranks and the sinks
    rng_states: list[Tensor | None]  # of every launch, in order


class Gradients(NamedTuple):
    """Gradients of q, k, v in the accumulator's dtype; of the sinks, this rank's share: sum it over the group."""

    dq: Tensor
    dk: Tensor
    dv: Tensor
    dsinks: Tensor | None


def attend(
    schedule: Schedule,
    transport: Transport,
    kernel: Kernel,
    q: Tensor,
    kv: KV,
    options: Options,
    sinks: Tensor | None = None,
) -> Result:
    """This rank's part of the attention: q (tokens, num_heads, head_dim) against the keys of all ranks."""
    partial, rng_states = out_total(schedule, kernel, q, kv.v.shape[2]), []
    for step, (k, v) in transport.stream(schedule, kv):
        heads = q_heads(schedule, step, q, kv)
        at_step = options.at(heads, _positions(schedule, step, q.device) if options.positional else None)
        for launch in step.launches:
            block, rng_state = kernel.forward(q[:, heads], k, v, launch, at_step)
            partial.add(launch, heads, block)
            rng_states.append(rng_state)
    return Result(*partial.finish(q.dtype, sinks), rng_states)


def attend_backward(
    schedule: Schedule,
    transport: Transport,
    kernel: Kernel,
    dout: Tensor,
    q: Tensor,
    kv: KV,
    result: Result,
    options: Options,
    sinks: Tensor | None = None,
    dlse: Tensor | None = None,
) -> Gradients:
    """The gradients of `attend`, given those of its out and, if not None, of its lse.

    Raises UnsupportedError for a gradient of lse and a kernel that derives delta itself, which leaves it no place.
    """
    if dlse is not None and not kernel.takes_delta:
        raise UnsupportedError(
            f"A gradient of lse came in, and the kernel {kernel.name!r} has no place for it: choose one with "
            "takes_delta, such as 'reference'."
        )
    wanted = kernel.takes_delta or sinks is not None
    delta = _delta(dout, result.out, dlse) if wanted else None
    queries, dq = Queries(q, result.out, dout, result.lse, delta), row_total(schedule, kernel, q)
    rng_states = iter(result.rng_states)
    for step, (k, v) in transport.stream(schedule, kv):
        heads = q_heads(schedule, step, q, kv)
        dk, dv = (column_total(schedule, step, kernel, x) for x in (k, v))
        at_step = options.at(heads, _positions(schedule, step, q.device) if options.positional else None)
        for launch in step.launches:
            grads = kernel.backward(queries.heads(heads), k, v, launch, at_step, next(rng_states))
            dq.add(launch, heads, grads.dq)
            dk.add(launch, grads.dk)
            dv.add(launch, grads.dv)
        transport.give(step, KV(dk.total, dv.total))
    dsinks = None if sinks is None or delta is None else sink_gradient(sinks, result.lse, delta)
    return Gradients(dq.total, *transport.collect(), dsinks)


def _delta(dout: Tensor, out: Tensor, dlse: Tensor | None) -> Tensor:
    """What each row's probabilities pull back: (num_heads, tokens), in the accumulator's dtype."""
    dtype = accumulator_dtype(out.dtype)
    delta = (dout.to(dtype) * out.to(dtype)).sum(-1).T
    return delta if dlse is None else delta - dlse


def q_heads(schedule: Schedule, step: Step, q: Tensor, kv: KV) -> slice:
    """The query heads that belong to a step's group of kv heads."""
    group, heads = q.shape[1] // kv.k.shape[1], kv_heads(schedule, step, kv)
    return slice(heads.start * group, heads.stop * group)


@lru_cache(256)
def _positions(schedule: Schedule, step: Step, device: torch.device) -> Positions:
    ends_q, ends_k = (torch.tensor(division.cu_seqlens[1:]) for division in (schedule.queries, schedule.keys))
    q = _stored(schedule.queries, schedule.cp_rank)
    sequence = torch.searchsorted(ends_q, q, right=True)
    k = torch.full((schedule.buffer_length(step),), -1)
    for piece in step.pieces:
        rows = slice(piece.rows.start, piece.rows.stop)
        k[piece.offset : piece.offset + len(piece.rows)] = _stored(schedule.keys, piece.source)[rows]
    return Positions((q + (ends_k - ends_q)[sequence]).to(device), k.to(device))


@lru_cache(64)
def _stored(division: Division, rank: int) -> Tensor:
    """The stream positions of what a rank holds, in storage order."""
    runs = [torch.arange(run.start, run.stop, run.step) for _, run in division.runs(rank)]
    return torch.cat(runs) if runs else torch.empty(0, dtype=torch.int64)
