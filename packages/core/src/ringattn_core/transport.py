"""What a transport is: something that brings each step's keys to a rank and carries their gradients home.

How bytes move, and what overlaps with what, is its own affair: the executor only sees steps with their keys at hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ringattn_core.kernel import accumulator_dtype
from ringattn_core.layout import chunk
from ringattn_core.schedule import Schedule, Step


class KV(NamedTuple):
    """Keys and values, or their gradients, as they lie in a step's buffer."""

    k: Tensor  # (columns, kv heads of the step's group, head_dim)
    v: Tensor  # (columns, kv heads of the step's group, head_dim_v)

    def heads(self, heads: slice) -> KV:
        """A slice of the kv heads."""
        return KV(self.k[:, heads], self.v[:, heads])

    def zeros(self) -> KV:
        """Room for the gradients of these, in the accumulator's dtype."""
        return KV(*(torch.zeros_like(x, dtype=accumulator_dtype(x.dtype)) for x in self))


class Transport(Protocol):
    """Moves keys, values and their gradients between the ranks of one group.

    Every rank of the group walks the same hops in the same order, with the same shapes. `kv` is what this rank holds:
    k (tokens, num_kv_heads, head_dim) and v (tokens, num_kv_heads, head_dim_v).
    """

    def stream(self, schedule: Schedule, kv: KV) -> Iterator[tuple[Step, KV]]:
        """Every step with its keys at hand; they may be gone once the next step is asked for."""
        ...

    def stream_backward(self, schedule: Schedule, kv: KV) -> Iterator[tuple[Step, KV, KV]]:
        """Every step with its keys and with zeroed room for their gradients, which the caller adds to."""
        ...

    def collect(self) -> KV:
        """After `stream_backward` has ended: the gradients of this rank's own keys, from all ranks."""
        ...


class Alone:
    """The transport of a group of one rank: nothing moves."""

    def stream(self, schedule: Schedule, kv: KV) -> Iterator[tuple[Step, KV]]:
        for step in schedule.steps:
            yield step, kv.heads(kv_heads(schedule, step, kv))

    def stream_backward(self, schedule: Schedule, kv: KV) -> Iterator[tuple[Step, KV, KV]]:
        self._grads = kv.zeros()
        for step, part in self.stream(schedule, kv):
            yield step, part, self._grads.heads(kv_heads(schedule, step, kv))

    def collect(self) -> KV:
        return self._grads


def kv_heads(schedule: Schedule, step: Step, kv: KV) -> slice:
    """The kv heads of a step's head group."""
    heads = chunk(range(kv.k.shape[1]), step.head_group, schedule.head_groups)
    return slice(heads.start, heads.stop)
