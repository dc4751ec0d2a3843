"""Keys straight from their owners, a wave of sources at a time, and gradients straight back.

Whole shards travel, point to point or, when a wave holds everyone, by one all-gather and one reduce-scatter (llama 3,
arXiv:2407.21783). The next wave's keys are on their way while one is computed, and so are the last one's gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from ringattn_comms.communicator import Communicator, Work
from ringattn_comms.parcel import arrange, disarrange, pack, unpack
from ringattn_core.schedule import Schedule, Step
from ringattn_core.transport import KV, kv_heads


class Waves:
    """Works for every route. Keys and gradients travel on communicators of their own, where two are given."""

    def __init__(self, keys: Communicator, gradients: Communicator | None = None) -> None:
        self.keys, self.gradients = keys, gradients or keys
        self._returning: _Return | None = None

    def stream(self, schedule: Schedule, kv: KV) -> Iterator[tuple[Step, KV]]:
        self._schedule, self._own, self._returning = schedule, kv, None
        fetched = _Fetch(self.keys, schedule, schedule.steps[0], kv)
        for step, following in pairwise((*schedule.steps, None)):
            assert step is not None
            buffer = fetched.wait()
            if following:
                fetched = _Fetch(self.keys, schedule, following, kv)
            yield step, unpack(buffer, kv.k.shape[2])

    def give(self, step: Step, grads: KV) -> None:
        if self._returning is None:
            self._total = KV(*(torch.zeros_like(x, dtype=grads.k.dtype) for x in self._own))
        else:
            self._returning.add_to(self._total)
        self._returning = _Return(self.gradients, self._schedule, step, pack(grads, len(grads.k)))

    def collect(self) -> KV:
        assert self._returning is not None, "a backward pass gives the gradients of every step"
        self._returning.add_to(self._total)
        return self._total


def _everyone(comm: Communicator, step: Step) -> bool:
    return comm.size > 1 and len(step.sources) == comm.size


class _Fetch:
    """A step's keys on their way."""

    def __init__(self, comm: Communicator, schedule: Schedule, step: Step, kv: KV) -> None:
        self.comm, self.schedule, self.step = comm, schedule, step
        self._parcel = pack(kv.heads(kv_heads(schedule, step, kv)), schedule.shard_size)
        if _everyone(comm, step):
            self._work: Work = comm.all_gather(self._parcel)
        else:
            sends = [(rank, self._parcel) for rank in step.destinations if rank != comm.rank]
            self._work = comm.send_recv(sends, [rank for rank in step.sources if rank != comm.rank], self._parcel)

    def wait(self) -> Tensor:
        """The step's key buffer."""
        arrived, sources = self._work.wait(), self.step.sources
        if _everyone(self.comm, self.step):
            arrived = arrived[list(sources)]
        elif self.comm.rank in sources:
            place = sources.index(self.comm.rank)
            arrived = torch.cat([arrived[:place], self._parcel.unsqueeze(0), arrived[place:]])
        return arrange(self.schedule, self.step, arrived)


class _Return:
    """The gradients of a step's keys on their way to the owners, and those of one's own keys on their way home."""

    def __init__(self, comm: Communicator, schedule: Schedule, step: Step, grads: Tensor) -> None:
        self.comm, self.schedule, self.step = comm, schedule, step
        parts = disarrange(schedule, step, grads)
        if _everyone(comm, step):
            order = [step.sources.index(rank) for rank in range(comm.size)]
            self._own, self._work = None, comm.reduce_scatter(parts[order])
        else:
            own = comm.rank in step.sources
            self._own = parts[step.sources.index(comm.rank)] if own else None
            sends = [(rank, parts[place]) for place, rank in enumerate(step.sources) if rank != comm.rank]
            self._work = comm.send_recv(sends, [rank for rank in step.destinations if rank != comm.rank], parts[0])

    def add_to(self, total: KV) -> None:
        """Wait for what others found for this rank's keys and add it, in the order of the ranks."""
        heads, arrived = kv_heads(self.schedule, self.step, total), self._work.wait()
        found = [arrived] if _everyone(self.comm, self.step) else list(arrived)
        for part in found if self._own is None else [self._own, *found]:
            grads = unpack(part[: self.schedule.key_length], total.k.shape[2])
            total.k[:, heads] += grads.k
            total.v[:, heads] += grads.v
