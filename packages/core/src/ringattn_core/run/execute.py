"""Run a schedule: one loop forward and one backward, whatever the layout, route, mask, transport or kernel."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from itertools import repeat
from typing import NamedTuple

import torch
from torch import Tensor

from ringattn_core.errors import UnsupportedError
from ringattn_core.plan.schedule import Launch, Step
from ringattn_core.run.accumulate import GradTotal, column_total, out_total, row_total
from ringattn_core.run.concurrent_launches import walk
from ringattn_core.run.device_plan import DevicePlan, device_plan, planned
from ringattn_core.run.index import stream_index
from ringattn_core.run.kernel import Block, Grads, Kernel, Options, OutGrads, Positions, Queries, row_products
from ringattn_core.run.merge import finite_or_nan, sink_gradient
from ringattn_core.run.transport import KV, Transport


class Result(NamedTuple):
    """What a forward pass returns: all that a backward pass needs in addition to its inputs."""

    out: Tensor  # (tokens, num_heads, head_dim_v), in q's dtype
    lse: Tensor  # (num_heads, tokens), over all keys of all ranks and the sinks
    rng_states: list[Tensor | None]  # of every launch, in order; or none, where no launch draws one


class Gradients(NamedTuple):
    """What a backward pass returns, added up in the accumulator's dtype.

    dq, dk and dv are in that dtype too, except where fused sums on a GPU have rounded them once, at their end, to the
    inputs' 16 bits.
    """

    dq: Tensor  # (tokens, num_heads, head_dim)
    dk: Tensor  # (tokens, num_kv_heads, head_dim)
    dv: Tensor  # (tokens, num_kv_heads, head_dim_v)
    dsinks: Tensor | None  # (num_heads,), in the dtype of the sinks; this rank's share: sum it over the group


def attend(transport: Transport, kernel: Kernel, q: Tensor, options: Options, sinks: Tensor | None = None) -> Result:
    """This rank's part of the attention: q (tokens, num_heads, head_dim) against the keys of all ranks.

    The transport was made for this rank's schedule and for its keys and values, in q's dtype; `sinks` (num_heads,) are
    one more key of value 0 for each head. The kernel must support every launch of the schedule, as one that `choose`
    returns does.
    """
    plan = device_plan(transport.schedule, q.device)
    q, options = _signed(q, options.softmax_scale), _of_pass(options, plan)
    total, rng_states = out_total(plan, kernel, q, transport.kv.v.shape[2]), list[Tensor | None]()

    def work(step: Step, keys: KV) -> Iterator[Callable[[], tuple[Block, Tensor | None]]]:
        at_step = _at(plan, step, options)
        for launch in step.launches:
            yield partial(kernel.forward, q, keys, launch, at_step, total.out_for(launch))

    def fold(step: Step, launch: Launch, found: tuple[Block, Tensor | None]) -> None:
        total.add(launch, found[0])
        rng_states.append(found[1])

    walk(transport, work, fold)
    return Result(*total.finish(q.dtype, sinks), rng_states)


def attend_backward(
    transport: Transport,
    kernel: Kernel,
    dout: Tensor,
    q: Tensor,
    result: Result,
    options: Options,
    sinks: Tensor | None = None,
    dlse: Tensor | None = None,
) -> Gradients:
    """The gradients of `attend`, given those of its out and, if not None, of its lse.

    `dout` is shaped as out, in q's dtype, and `dlse` (num_heads, tokens) in the accumulator's. The transport is another
    than that of `attend`; its schedule may be another one too, over the same sharding, where no launch had a random
    state.

    Raises UnsupportedError for a gradient of lse and a kernel that derives delta itself, which leaves it no place.
    """
    if dlse is not None and not kernel.accepts_delta:
        raise UnsupportedError(
            f"A gradient of lse came in, and the kernel {kernel.name!r} has no place for it: choose one with "
            "accepts_delta, such as 'reference'."
        )
    plan = device_plan(transport.schedule, q.device)
    delta = _delta(dout, result.out, dlse) if kernel.accepts_delta or sinks is not None else None
    scale, q, options = options.softmax_scale, _signed(q, options.softmax_scale), _of_pass(options, plan)
    queries, dq = Queries(q, result.out, dout, finite_or_nan(result.lse), delta), row_total(plan, kernel, q)
    rng_states = iter(result.rng_states) if any(x is not None for x in result.rng_states) else repeat(None)
    columns, rows = dict[Step, tuple[GradTotal, GradTotal]](), defaultdict[Step, list[Tensor]](list)

    def work(step: Step, keys: KV) -> Iterator[Callable[[], Grads]]:
        at_step = _at(plan, step, options)
        dk, dv = columns[step] = column_total(plan, step, kernel, keys.k), column_total(plan, step, kernel, keys.v)
        for launch in step.launches:
            out_grads = OutGrads(dq.out_for(launch), dk.out_for(launch), dv.out_for(launch))
            yield partial(kernel.backward, queries, keys, launch, at_step, next(rng_states), out_grads)

    def fold(step: Step, launch: Launch, grads: Grads) -> None:
        dk, dv = columns[step]
        dk.add(launch, grads.dk)
        dv.add(launch, grads.dv)
        rows[step].append(grads.dq)

    def close(step: Step) -> None:
        dk, dv = columns.pop(step)
        transport.send_grads(step, KV(dk.total, dv.total))  # Before dq is added up, for it takes time to travel.
        for launch, part in zip(step.launches, rows.pop(step, []), strict=True):
            dq.add(launch, part)

    walk(transport, work, fold, close)
    dsinks = None if sinks is None or delta is None else sink_gradient(sinks, result.lse, delta)
    return Gradients(_signed(dq.total, scale), *transport.finish(), dsinks)


def _signed(x: Tensor, scale: float) -> Tensor:
    """x times the sign of the scale, which is exact: see `Options` for why the sign goes into q."""
    return x * ((scale > 0) - (scale < 0)) if scale <= 0 else x


def _of_pass(options: Options, plan: DevicePlan) -> Options:
    """The options of a pass whose q has the sign of their scale; for a q of zeros any scale gives the same result."""
    return options._replace(softmax_scale=abs(options.softmax_scale) or 1.0, plan=plan)


def _delta(dout: Tensor, out: Tensor, dlse: Tensor | None) -> Tensor:
    """What each row's probabilities pull back: (num_heads, tokens), in the accumulator's dtype."""
    delta = row_products(dout, out)
    return delta if dlse is None else delta - dlse


def _at(plan: DevicePlan, step: Step, options: Options) -> Options:
    """The options with a step's positions, if they ask for them."""
    return options._replace(positions=_positions(plan, step)) if options.positional else options


@planned
def _positions(plan: DevicePlan, step: Step) -> Positions:
    schedule, device = plan.schedule, plan.device
    ends_q, ends_k = (torch.tensor(sharding.cu_seqlens[1:]) for sharding in (schedule.queries, schedule.keys))
    cpu = torch.device("cpu")
    q = stream_index(schedule.queries, schedule.cp_rank, cpu)
    sequence = torch.searchsorted(ends_q, q, right=True)
    k = torch.full((schedule.buffer_length(step),), -1)
    for key_slice in step.key_slices:
        rows = slice(key_slice.rows.start, key_slice.rows.stop)
        k[key_slice.offset : key_slice.offset + len(key_slice.rows)] = stream_index(
            schedule.keys, key_slice.source, cpu
        )[rows]
    return Positions((q + (ends_k - ends_q)[sequence]).to(device), k.to(device))
