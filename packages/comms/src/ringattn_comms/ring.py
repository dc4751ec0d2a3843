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

    def __init__(self, schedule: Schedule, kv: KV, keys: Communicator, gradients: Communicator | None = None) -> None:
        self.schedule, self.kv = schedule, kv
        self._keys, self._gradients = keys, gradients or keys
        self._arriving: Work | None = None
        self._home = list[KV]()

    def __iter__(self) -> Iterator[tuple[Step, KV]]:
        schedule, kv = self.schedule, self.kv
        for _, group in groupby(schedule.steps, key=lambda step: step.head_group):
            steps = list(group)
            part = kv.heads(kv_heads(schedule, steps[0], kv))
            packed_kv = pack(part, schedule.shard_size)
            for step, following in zip(steps, (*steps[1:], None), strict=True):
                coming = self._keys.shift(packed_kv, following.hop - step.hop) if following else None
                yield step, unpack(packed_kv, kv.k.shape[2])
                if coming:
                    packed_kv = coming.wait()

    def send_grads(self, step: Step, grads: KV) -> None:
        dtype, schedule = accumulator_dtype(grads.k.dtype), self.schedule
        packed_kv = pack(KV(grads.k.to(dtype), grads.v.to(dtype)), schedule.shard_size)
        if self._arriving:  # what the ranks before this one have added up for the same keys
            packed_kv += self._arriving.wait()
        # Gradients go the way that the keys went on, and from a group's last step to their owner.
        steps = schedule.first_group
        place = [each.hop for each in steps].index(step.hop)
        last = place == len(steps) - 1
        self._arriving = self._gradients.shift(packed_kv, (0 if last else steps[place + 1].hop) - step.hop)
        if last:
            self._home.append(unpack(self._arriving.wait()[: schedule.key_length], self.kv.k.shape[2]))
            self._arriving = None

    def finish(self) -> KV:
        return joined(self._home)
