"""Attention in groups of kv heads, one pass for each: a rank holds the keys of fewer heads at a time.

The transport of a group is made before the pass of the group before it runs, so that its first keys travel meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ringattn_core.plan.tile import chunk
from ringattn_core.run.execute import Gradients, Result, attend, attend_backward
from ringattn_core.run.kernel import Kernel, Options
from ringattn_core.run.transport import KV, Transport

Connect = Callable[[KV], Transport]
"""Makes the transport of a pass from this rank's keys and values."""


class _Group(NamedTuple):
    q: slice  # query heads
    kv: slice  # the kv heads that they belong to


def attend_in_groups(
    count: int, connect: Connect, kernel: Kernel, q: Tensor, kv: KV, options: Options, sinks: Tensor | None = None
) -> Result:
    """`attend`, in `count` groups of kv heads. Raises ValueError for more groups than kv heads."""
    if count == 1:  # Views of all heads would cost the host more than they say.
        return attend(connect(kv), kernel, q, options, sinks)
    results = [
        attend(transport, kernel, q[:, group.q], options.heads(group.q), _part(sinks, group))
        for group, transport in _passes(count, connect, q, kv)
    ]
    out, lse = _joined([each.out for each in results], dim=1), _joined([each.lse for each in results], dim=0)
    return Result(out, lse, [state for each in results for state in each.rng_states])


def attend_backward_in_groups(
    count: int,
    connect: Connect,
    kernel: Kernel,
    dout: Tensor,
    q: Tensor,
    kv: KV,
    result: Result,
    options: Options,
    sinks: Tensor | None = None,
    dlse: Tensor | None = None,
) -> Gradients:
    """`attend_backward`, in `count` groups of kv heads. Raises ValueError for more groups than kv heads."""
    if count == 1:
        return attend_backward(connect(kv), kernel, dout, q, result, options, sinks, dlse)
    launches, found = len(result.rng_states) // count, list[Gradients]()
    for number, (group, transport) in enumerate(_passes(count, connect, q, kv)):
        states = result.rng_states[number * launches : (number + 1) * launches]
        part = Result(result.out[:, group.q], result.lse[group.q], states)
        heads = dout[:, group.q], q[:, group.q], part, options.heads(group.q), _part(sinks, group), _part(dlse, group)
        found.append(attend_backward(transport, kernel, *heads))
    dq, dk, dv = (_joined(parts, dim=1) for parts in zip(*(grads[:3] for grads in found), strict=True))
    dsinks = [grads.dsinks for grads in found if grads.dsinks is not None]
    return Gradients(dq, dk, dv, _joined(dsinks, dim=0) if dsinks else None)


def _passes(count: int, connect: Connect, q: Tensor, kv: KV) -> Iterator[tuple[_Group, Transport]]:
    groups = _groups(count, q.shape[1], kv.k.shape[1])
    transport = connect(kv.heads(groups[0].kv))
    for group, following in zip(groups, (*groups[1:], None), strict=True):
        current = transport
        if following is not None:
            transport = connect(kv.heads(following.kv))
        yield group, current


def _groups(count: int, num_heads: int, num_kv_heads: int) -> list[_Group]:
    if not 1 <= count <= num_kv_heads:
        raise ValueError(
            f"head_groups is {count} and there are {num_kv_heads} kv heads: a group needs one at least, and there is "
            "at least one group."
        )
    per_kv, parts = num_heads // num_kv_heads, [chunk(range(num_kv_heads), index, count) for index in range(count)]
    return [_Group(slice(part.start * per_kv, part.stop * per_kv), slice(part.start, part.stop)) for part in parts]


def _part(x: Tensor | None, group: _Group) -> Tensor | None:
    return None if x is None else x[group.q]


def _joined(parts: Sequence[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=dim)
