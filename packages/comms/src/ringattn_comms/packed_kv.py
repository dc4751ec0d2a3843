"""Keys and values as one message, and the buffers of several sources as one step wants them."""

from __future__ import annotations

import torch
from torch import Tensor

from ringattn_core.plan.schedule import Step
from ringattn_core.run.device_plan import DevicePlan, planned
from ringattn_core.run.transport import KV


def pack(kv: KV, length: int) -> Tensor:
    """k and v of every token side by side, padded to `length` tokens: (length, kv heads, head_dim + head_dim_v)."""
    tokens, heads, head_dim = kv.k.shape
    packed_kv = kv.k.new_zeros((length, heads, head_dim + kv.v.shape[2]))
    packed_kv[:tokens, :, :head_dim] = kv.k
    packed_kv[:tokens, :, head_dim:] = kv.v
    return packed_kv


def unpack(packed_kv: Tensor, head_dim: int) -> KV:
    """Views of the keys and values of one message."""
    return KV(packed_kv[..., :head_dim], packed_kv[..., head_dim:])


def arrange(plan: DevicePlan, step: Step, packed_shards: Tensor) -> Tensor:
    """The step's key buffer from its sources' whole shards, in their order: (sources, shard_size, heads, dim)."""
    flat = packed_shards.flatten(0, 1)
    return flat if len(step.sources) == 1 else flat.index_select(0, _rows(plan, step))


def disarrange(plan: DevicePlan, step: Step, buffer: Tensor) -> Tensor:
    """The way back: what lies in a step's buffer, by source, (sources, shard_size, heads, dim); the rest is 0."""
    if len(step.sources) == 1:
        return buffer.unsqueeze(0)
    shards = buffer.new_zeros((len(step.sources), plan.schedule.shard_size, *buffer.shape[1:]))
    shards.flatten(0, 1).index_copy_(0, _rows(plan, step), buffer)
    return shards


@planned
def _rows(plan: DevicePlan, step: Step) -> Tensor:
    """For every row of a step's buffer, where it stands among the sources' shards laid end to end."""
    start = {source: place * plan.schedule.shard_size for place, source in enumerate(step.sources)}
    rows = [
        torch.arange(key_slice.rows.start, key_slice.rows.stop) + start[key_slice.source]
        for key_slice in step.key_slices
    ]
    return (torch.cat(rows) if rows else torch.empty(0, dtype=torch.int64)).to(plan.device)
