"""The ring: keys hop from rank to rank, each shard's gradient hops along and ends at its owner.

Liu et al. 2023, arXiv:2310.01889. One foreign shard is held at a time, and the next is on its way meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby, pairwise

import torch

from ringattn_comms.communicator import Communicator, Work
from ringattn_comms.parcel import pack, unpack
from ringattn_core.kernel import accumulator_dtype
from ringattn_core.schedule import Schedule, Step
from ringattn_core.transport import KV, kv_heads


class Ring:
    """Keys and gradients travel on communicators of their own, where two are given: neither queues behind the other."""

    def __init__(self, keys: Communicator, gradients: Communicator | None = None) -> None:
        self.keys, self.gradients = keys, gradients or keys

    def stream(self, schedule: Schedule, kv: KV) -> Iterator[tuple[Step, KV]]:
        for steps, part in _groups(schedule, kv):
            head_dim, parcel = part.k.shape[2], pack(part, schedule.shard_size)
            for step, by in _moves(steps):
                coming = None if by is None else self.keys.shift(parcel, by)
                yield step, unpack(parcel, head_dim)
                if coming:
                    parcel = coming.wait()

    def stream_backward(self, schedule: Schedule, kv: KV) -> Iterator[tuple[Step, KV, KV]]:
        self._home: list[KV] = []
        for steps, part in _groups(schedule, kv):
            head_dim, parcel = part.k.shape[2], pack(part, schedule.shard_size)
            arriving: Work | None = None
            for step, by in _moves(steps):
                coming = None if by is None else self.keys.shift(parcel, by)
                grads = torch.zeros_like(parcel, dtype=accumulator_dtype(parcel.dtype))
                yield step, unpack(parcel, head_dim), unpack(grads, head_dim)
                if arriving:  # what the ranks before this one have found for the same keys
                    grads += arriving.wait()
                arriving = self.gradients.shift(grads, -step.hop if by is None else by)
                if coming:
                    parcel = coming.wait()
            assert arriving is not None, "a schedule has at least one step"
            self._home.append(unpack(arriving.wait()[: schedule.key_length], head_dim))

    def collect(self) -> KV:
        dk, dv = zip(*self._home, strict=True)
        return KV(torch.cat(dk, dim=1), torch.cat(dv, dim=1))


def _groups(schedule: Schedule, kv: KV) -> Iterator[tuple[list[Step], KV]]:
    """The steps of every head group, with this rank's keys for it."""
    for _, group in groupby(schedule.steps, key=lambda step: step.head_group):
        steps = list(group)
        yield steps, kv.heads(kv_heads(schedule, steps[0], kv))


def _moves(steps: list[Step]) -> Iterator[tuple[Step, int | None]]:
    """Every step with the distance that its keys travel afterwards; None after the last."""
    for step, following in pairwise((*steps, None)):
        assert step is not None
        yield step, None if following is None else following.hop - step.hop
