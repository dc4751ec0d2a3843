"""What a transport is: something that brings each step's keys to a rank and carries their gradients home.

How bytes move, and what overlaps with what, is its own affair: the executor only sees steps with their keys at hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ringattn_core.plan.schedule import Schedule, Step
from ringattn_core.plan.tile import chunk


class KV(NamedTuple):
    """Keys and values, or their gradients, as they lie in a step's buffer: `Schedule.buffer_length` rows or more."""

    k: Tensor  # (columns, kv heads of the step's group, head_dim)
    v: Tensor  # (columns, kv heads of the step's group, head_dim_v)

    def heads(self, heads: slice) -> KV:
        """A slice of the kv heads."""
        return KV(self.k[:, heads], self.v[:, heads])


class Transport(Protocol):
    """Moves keys, values and their gradients between the ranks of one group.

    Every rank of the group walks the same hops in the same order. `kv` is what this rank holds: k (tokens,
    num_kv_heads, head_dim) and v (tokens, num_kv_heads, head_dim_v); others may hold another number of tokens, up to
    `schedule.shard_size`. A pass takes `stream` to its end; a backward pass also gives for every step, and collects.
    Then the next pass may begin, on this object or on another one. On a GPU all is in the order of the current stream.
    """

    def stream(self, schedule: Schedule, kv: KV) -> Iterator[tuple[Step, KV]]:
        """Every step in order, those without a launch too, with its keys at hand.

        Of one source they are its shard, of several the rows in `step.key_slices`, each at its offset; of the kv heads
        they are those of the step's head group (`kv_heads`). They stay as they are until the next step but one is asked
        for.
        """
        ...

    def send_grads(self, step: Step, grads: KV) -> None:
        """In a backward pass, for every step in order: the gradients of its keys, row for row as they were yielded.

        They come in the accumulator's dtype or the keys' own, 0 where nothing was found, and are the transport's from
        then on. On a CPU a step's come before the next step is asked for; on a GPU they may come after that, when the
        next step has begun, and those of the last step after the stream has ended.
        """
        ...

    def finish(self) -> KV:
        """At the end of a backward pass: the gradients of this rank's own keys, added up over all ranks.

        Shaped like `kv`, in the accumulator's dtype, or rounded to kv's own once they are complete.
        """
        ...


class LocalTransport:
    """The transport of a group of one rank: nothing moves."""

    def stream(self, schedule: Schedule, kv: KV) -> Iterator[tuple[Step, KV]]:
        self._grads: list[KV] = []
        for step in schedule.steps:
            yield step, kv.heads(kv_heads(schedule, step, kv))

    def send_grads(self, step: Step, grads: KV) -> None:
        self._grads.append(grads)

    def finish(self) -> KV:
        return joined(self._grads)


def joined(groups: list[KV]) -> KV:
    """The kv heads of several groups side by side."""
    return groups[0] if len(groups) == 1 else KV(*(torch.cat(part, dim=1) for part in zip(*groups, strict=True)))


def kv_heads(schedule: Schedule, step: Step, kv: KV) -> slice:
    """The kv heads of a step's head group. Raises ValueError where there are more groups than heads."""
    num_kv_heads = kv.k.shape[1]
    if schedule.head_groups > num_kv_heads:
        raise ValueError(
            f"head_groups is {schedule.head_groups} and there are {num_kv_heads} kv heads: a group needs one at least."
        )
    heads = chunk(range(num_kv_heads), step.head_group, schedule.head_groups)
    return slice(heads.start, heads.stop)
