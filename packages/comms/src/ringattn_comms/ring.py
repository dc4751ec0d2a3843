"""The ring: keys hop from rank to rank, each shard's gradient hops along and ends at the owner.

Liu et al. 2023, arXiv:2310.01889. One remote shard is held at a time, while the next is in flight.
"""

from __future__ import annotations

from collections.abc import Iterator

from ringattn_comms.communicator import Communicator, Work
from ringattn_comms.packed_kv import pack, unpack
from ringattn_core.plan.schedule import Schedule, Step
from ringattn_core.run.kernel import accumulator_dtype
from ringattn_core.run.transport import KV


class Ring:
    """Keys and gradients travel on separate communicators, where two are given: neither queues behind the other."""

    def __init__(self, schedule: Schedule, kv: KV, keys: Communicator, gradients: Communicator | None = None) -> None:
        self.schedule, self.kv = schedule, kv
        self._keys, self._gradients = keys, gradients or keys
        self._arriving: Work | None = None

    def __iter__(self) -> Iterator[tuple[Step, KV]]:
        steps, head_dim = self.schedule.steps, self.kv.k.shape[2]
        packed_kv = pack(self.kv, self.schedule.shard_size)
        for step, following in zip(steps, (*steps[1:], None), strict=True):
            coming = self._keys.shift(packed_kv, following.hop - step.hop) if following else None
            yield step, unpack(packed_kv, head_dim)
            if coming:
                packed_kv = coming.wait()

    def send_grads(self, step: Step, grads: KV) -> None:
        dtype = accumulator_dtype(grads.k.dtype)
        packed_kv = pack(KV(grads.k.to(dtype), grads.v.to(dtype)), self.schedule.shard_size)
        if self._arriving:  # what earlier ranks have computed for the same keys
            packed_kv += self._arriving.wait()
        # Gradients take the hops of the keys, and after the last step they go to their owner.
        hops = [each.hop for each in self.schedule.steps]
        following = (*hops[1:], 0)[hops.index(step.hop)]
        self._arriving = self._gradients.shift(packed_kv, following - step.hop)

    def finish(self) -> KV:
        assert self._arriving is not None, "a backward pass sends the gradients of every step"
        return unpack(self._arriving.wait()[: self.schedule.key_length], self.kv.k.shape[2])
