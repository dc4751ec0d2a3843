"""The shape of q, k and v without their lengths, and what follows for operations, traffic and memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ringattn_core.plan.schedule import Schedule, Step

ACCUMULATOR = 4  # bytes of a number in float32, in which results add up


@dataclass(frozen=True, slots=True)
class Shape:
    """Heads, head dims and dtypes of q, k and v: their shape without the lengths."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    head_dim_v: int | None = None  # None: as head_dim
    itemsize: int = 2  # bytes of a number in q, k and v
    grad_itemsize: int = ACCUMULATOR  # bytes of a number in the gradients of keys and values on their way home

    @property
    def dims(self) -> tuple[int, int]:
        """head_dim of queries and keys, and that of values."""
        return self.head_dim, self.head_dim if self.head_dim_v is None else self.head_dim_v

    def token(self, itemsize: int) -> int:
        """Bytes of the key and the value of a token, at `itemsize` bytes a number."""
        return self.num_kv_heads * sum(self.dims) * itemsize

    def flop(self, area: int, *, backward: bool) -> int:
        """Floating-point operations for `area` live cells in all heads: two products forward, five backward."""
        dim, dim_v = self.dims
        return 2 * area * self.num_heads * (3 * dim + 2 * dim_v if backward else dim + dim_v)


def input_bytes(schedule: Schedule, shape: Shape, *, backward: bool) -> int:
    """Bytes of a rank's q, k and v; in a backward pass also of their gradients and of the gradient of the result."""
    dim, dim_v = shape.dims
    rows = schedule.query_length * shape.num_heads * shape.itemsize
    inputs = rows * dim + schedule.key_length * shape.token(shape.itemsize)
    return 2 * inputs + rows * dim_v if backward else inputs


def total_bytes(schedule: Schedule, shape: Shape, *, backward: bool, one_sided: bool) -> int:
    """Bytes of everything that a pass holds on a rank."""
    peak = peak_bytes(schedule, shape, backward=backward, one_sided=one_sided)
    return peak + input_bytes(schedule, shape, backward=backward)


def peak_bytes(schedule: Schedule, shape: Shape, *, backward: bool, one_sided: bool) -> int:
    """Bytes without q, k and v: results, the block or gradients of the largest launch, and the buffers of two steps.

    One-sided there is also the shared buffer, one for all layers: room for a rank's local keys, and a slot for the
    gradients from each other rank, on every route.
    """
    (dim, dim_v), rows, heads = shape.dims, schedule.query_length, shape.num_heads
    largest = max((len(launch.rows) for step in schedule.steps for launch in step.launches), default=0)
    lse = rows * heads * ACCUMULATOR
    out = rows * heads * dim_v * shape.itemsize
    keys = _most_at_once([_buffer(schedule, step, one_sided) for step in schedule.steps])
    buffers = keys * shape.token(shape.itemsize)
    if one_sided and schedule.cp_size > 1:
        buffers += schedule.cp_size * schedule.shard_size * shape.token(shape.itemsize)
    if not backward:
        return out + lse + heads * dim_v * (rows * ACCUMULATOR + largest * shape.itemsize) + buffers
    # Gradients of keys: those of a step, and those of the step before, which are being sent.
    buffers += keys * shape.token(shape.grad_itemsize)
    return out + 2 * lse + heads * dim * (rows * ACCUMULATOR + largest * shape.itemsize) + buffers


def _buffer(schedule: Schedule, step: Step, one_sided: bool) -> int:
    """Tokens in memory for a step: its key buffer, and the whole shards from which it is filled, if any."""
    foreign = sum(source != schedule.cp_rank for source in step.sources)
    if one_sided or not foreign:
        return schedule.buffer_length(step)
    return foreign * schedule.shard_size + (schedule.buffer_length(step) if len(step.sources) > 1 else 0)


def _most_at_once(buffers: Sequence[int]) -> int:
    """The most of two successive steps: while one is computed, the keys of the next arrive."""
    return max(map(sum, pairwise([*buffers, 0])))
