"""The ring: keys hop from rank to rank, each shard's gradient hops along and ends at its owner.

Liu et al. 2023, arXiv:2310.01889. One foreign shard is held at a time, and the next is on its way meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from ringattn_comms.communicator import Communicator, Work
from ringattn_comms.packed_kv import pack, unpack
from ringattn_core.plan.schedule import Schedule, Step
from ringattn_core.run.kernel import accumulator_dtype
from ringattn_core.run.transport import KV, joined, kv_heads


class Ring:
    """Keys and gradients travel on communicators of their own, where two are given: neither queues behind the other."""

    def __init__(self, keys: Communicator, gradients: Communicator | None = None) -> None:
        self.keys, self.gradients = keys, gradients or keys
        self._arriving: Work | None = None

    def stream(self, schedule: Schedule, kv: KV) -> Iterator[tuple[Step, KV]]:
        self._schedule, self._home, self._head_dim, self._arriving = schedule, list[KV](), kv.k.shape[2], None
        for _, group in groupby(schedule.steps, key=lambda step: step.head_group):
            steps = list(group)
            part = kv.heads(kv_heads(schedule, steps[0], kv))
            packed_kv = pack(part, schedule.shard_size)
            for step, following in zip(steps, (*steps[1:], None), strict=True):
                coming = self.keys.shift(packed_kv, following.hop - step.hop) if following else None
                yield step, unpack(packed_kv, self._head_dim)
                if coming:
                    packed_kv = coming.wait()

    def send_grads(self, step: Step, grads: KV) -> None:
        dtype, schedule = accumulator_dtype(grads.k.dtype), self._schedule
        packed_kv = pack(KV(grads.k.to(dtype), grads.v.to(dtype)), schedule.shard_size)
        if self._arriving:  # what the ranks before this one have found for the same keys
            packed_kv += self._arriving.wait()
        # Gradients go the way that the keys went on, and from a group's last step to their owner.
        steps = schedule.first_group
        place = [each.hop for each in steps].index(step.hop)
        last = place == len(steps) - 1
        self._arriving = self.gradients.shift(packed_kv, (0 if last else steps[place + 1].hop) - step.hop)
        if last:
            self._home.append(unpack(self._arriving.wait()[: schedule.key_length], self._head_dim))
            self._arriving = None

    def finish(self) -> KV:
        return joined(self._home)
