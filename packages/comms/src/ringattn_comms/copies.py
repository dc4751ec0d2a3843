"""What a one-sided pass copies, planned once for a schedule on a device: from where, to where, in which order.

The shared buffer of every rank holds its keys and values and, for every other rank, an inbox for the gradients of these
keys that the other rank computes. For two ranks:

    | k of the shard | v of the shard | dk from the other rank | dv from the other rank |
"""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import torch
from torch import Tensor

from ringattn_comms.coalesced_rows import coalesced_rows
from ringattn_comms.shared_buffer import BufferSlot, Region
from ringattn_core.plan.planner import outgoing_rows
from ringattn_core.plan.schedule import Step
from ringattn_core.run.device_plan import DevicePlan, planned
from ringattn_core.run.index import places
from ringattn_core.run.transport import KV

# With more sequences others fetch rows all over a shard, and all of it is laid out: to look for them takes longer.
_MANY_SEQUENCES = 64


class Shapes(NamedTuple):
    """The keys and values of a token: (kv heads, head_dim) and (kv heads, head_dim_v)."""

    k: tuple[int, ...]
    v: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, kv: KV) -> Shapes:
        """Those of a shard."""
        return cls(kv.k.shape[1:], kv.v.shape[1:], kv.k.dtype)


class Slots(NamedTuple):
    """Where keys and values lie, or their gradients, in the memory of a rank."""

    k: BufferSlot
    v: BufferSlot

    def rows(self, rows: range) -> Slots:
        """Where these rows of them lie."""
        return Slots(self.k.rows(rows), self.v.rows(rows))


class BufferLayout(NamedTuple):
    """What lies where in the shared buffer, on every rank alike."""

    keys: Slots
    inboxes: list[Slots]
    shard_size: int  # bytes of keys and values
    size: int  # bytes of all

    def inbox(self, sender: int, owner: int) -> Slots:
        """Where the owner of keys receives the gradients that a sender computes; it sends none to itself.

        They travel in the inputs' dtype, each once, and are added in the accumulator's.
        """
        return self.inboxes[sender if sender < owner else sender - 1]


@planned
def buffer_layout(plan: DevicePlan, shapes: Shapes) -> BufferLayout:
    """The layout for shards of these shapes."""
    length, region = plan.schedule.shard_size, Region()

    def slots() -> Slots:
        return Slots(*(region.place((length, *shape), shapes.dtype) for shape in (shapes.k, shapes.v)))

    keys, inboxes = slots(), [slots() for _ in range(plan.schedule.cp_size - 1)]
    return BufferLayout(keys, inboxes, sum(slot.size for slot in keys), region.end)


class Copy(NamedTuple):
    """Rows of a source's shard that a step needs."""

    source: int
    rows: slice  # of the shard
    columns: slice  # of the key buffer
    keys: Slots  # where the source has them
    grads: Slots | None  # where the source receives their gradients; of local rows nothing travels


class Copies(NamedTuple):
    """All copies of a step."""

    local: list[Copy]
    remote: list[Copy]  # from the rank before this one on: where all need all, no two ranks begin with the same one
    length: int  # rows of the key buffer


@planned
def copies(plan: DevicePlan, step: Step, shapes: Shapes) -> Copies:
    """What is copied for a step, in what `coalesced_rows` makes of its key slices."""
    schedule, layout, packed = plan.schedule, buffer_layout(plan, shapes), coalesced_rows(plan, step)
    rank, size = schedule.cp_rank, schedule.cp_size
    parts = step.key_slices if packed is None else packed.coalesced_copies
    local, remote = list[Copy](), list[Copy]()
    for part in sorted(parts, key=lambda part: (rank - part.source) % size):
        grads = None if part.source == rank else layout.inbox(rank, part.source).rows(part.rows)
        rows, columns = (slice(run.start, run.stop) for run in (part.rows, part.columns))
        copy = Copy(part.source, rows, columns, layout.keys.rows(part.rows), grads)
        (local if grads is None else remote).append(copy)
    return Copies(local, remote, schedule.buffer_length(step) if packed is None else packed.length)


@planned
def outgoing(plan: DevicePlan, shapes: Shapes) -> tuple[slice, Slots]:
    """The rows of a rank's shard that it lays out for others, one range around all that they fetch; and where."""
    schedule = plan.schedule
    rows = range(schedule.key_length)
    if len(schedule.keys.cu_seqlens) <= _MANY_SEQUENCES:
        runs = [key_slice.rows for step in schedule.steps for key_slice in outgoing_rows(schedule, step.hop)]
        rows = range(min(run.start for run in runs), max(run.stop for run in runs)) if runs else range(0)
    return slice(rows.start, rows.stop), buffer_layout(plan, shapes).keys.rows(rows)


@planned
def gradient_places(plan: DevicePlan) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Where the gradients of each row of a rank's keys lie: by hop in its steps' gradients, by sender in its inboxes.

    Each as `index.places` says it: (rows of the shard,) int32.
    """
    schedule = plan.schedule
    local, remote = defaultdict[int, list[tuple[range, int]]](list), defaultdict[int, list[tuple[range, int]]](list)
    for step in schedule.steps:
        for key_slice in step.key_slices:
            if key_slice.source == schedule.cp_rank:
                local[step.hop].append((key_slice.rows, key_slice.offset))
        for key_slice in outgoing_rows(schedule, step.hop):
            remote[key_slice.source].append((key_slice.rows, key_slice.rows.start))

    def rows(of: dict[int, list[tuple[range, int]]]) -> dict[int, Tensor]:
        return {key: places(of[key], schedule.key_length, plan.device) for key in sorted(of)}

    return rows(local), rows(remote)
