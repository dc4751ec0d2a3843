"""What a transport is: something that brings each step's keys to a rank and carries their gradients home.

The transport alone decides how bytes move and what overlaps with what: the executor sees steps and their keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from torch import Tensor

from ringattn_core.plan.schedule import Schedule, Step


class KV(NamedTuple):
    """Keys and values, or their gradients, as they lie in a step's buffer: `Schedule.buffer_length` rows or more."""

    k: Tensor  # (columns, num_kv_heads, head_dim)
    v: Tensor  # (columns, num_kv_heads, head_dim_v)

    def heads(self, heads: slice) -> KV:
        """A slice of the kv heads."""
        return KV(self.k[:, heads], self.v[:, heads])


class Transport(Protocol):
    """One pass of a rank: it brings the keys of every step, and in a backward pass takes their gradients home.

    It is made for a schedule and for what this rank holds, and used once; making it may already send the keys of the
    first step. Every rank of the group makes the same passes in the same order, and walks the same hops; others may
    hold another number of tokens, up to `schedule.shard_size`. A forward pass iterates to the end; a backward pass also
    calls `send_grads` for every step, and then `finish`. On a GPU everything is in the order of the current stream.
    """

    @property
    def schedule(self) -> Schedule:
        """What this rank computes."""
        ...

    @property
    def kv(self) -> KV:
        """What this rank holds: k (tokens, num_kv_heads, head_dim) and v (tokens, num_kv_heads, head_dim_v)."""
        ...

    def __iter__(self) -> Iterator[tuple[Step, KV]]:
        """Every step in order, those without a launch too, with its keys.

        Of one source they are its shard, of several the rows in `step.key_slices`, each at its offset. They stay
        as they are until the next step but one is asked for.
        """
        ...

    def send_grads(self, step: Step, grads: KV) -> None:
        """In a backward pass, for every step in order: the gradients of its keys, row for row as they were yielded.

        They come in the accumulator's dtype or that of the keys, 0 where nothing was computed, and belong to the
        transport from then on. On a CPU the gradients of a step come before the next step is asked for; on a GPU they
        may come when the next step has begun, and those of the last step after the iteration has ended.
        """
        ...

    def finish(self) -> KV:
        """At the end of a backward pass: the gradients of this rank's keys, added up over all ranks.

        Shaped like `kv`, in the accumulator's dtype, or rounded to that of kv once they are complete.
        """
        ...


class LocalTransport:
    """The transport of a group of one rank: nothing moves."""

    def __init__(self, schedule: Schedule, kv: KV) -> None:
        self.schedule, self.kv = schedule, kv
        self._grads: KV | None = None

    def __iter__(self) -> Iterator[tuple[Step, KV]]:
        for step in self.schedule.steps:
            yield step, self.kv

    def send_grads(self, step: Step, grads: KV) -> None:
        self._grads = grads

    def finish(self) -> KV:
        assert self._grads is not None, "a backward pass sends the gradients of every step"
        return self._grads
