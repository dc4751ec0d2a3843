"""Keys straight from their owners, a wave of sources at a time, and gradients straight back.

Whole shards travel, point to point or, when a wave holds everyone, by one all-gather (llama 3, arXiv:2407.21783). The
next wave's keys are on their way while one is computed, and so are the last one's gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from ringattn_comms.communicator import Communicator
from ringattn_comms.packed_kv import arrange, disarrange, pack, unpack
from ringattn_core.plan.route import route_table
from ringattn_core.plan.schedule import Schedule, Step
from ringattn_core.run.device_plan import DevicePlan, device_plan
from ringattn_core.run.kernel import accumulator_dtype
from ringattn_core.run.transport import KV


class Waves:
    """Works for every route. Keys and gradients travel on separate communicators, where two are given."""

    def __init__(self, schedule: Schedule, kv: KV, keys: Communicator, gradients: Communicator | None = None) -> None:
        self.schedule, self.kv = schedule, kv
        self._keys, self._gradients = keys, gradients or keys
        self._plan = device_plan(schedule, kv.k.device)
        self._total: KV | None = None  # of the gradients of this rank's keys, in a backward pass
        self._come_home: Callable[[KV], None] | None = None
        self._arrive = self._fetch(schedule.steps[0])

    def __iter__(self) -> Iterator[tuple[Step, KV]]:
        steps = self.schedule.steps
        for step, following in zip(steps, (*steps[1:], None), strict=True):
            keys = self._arrive()
            if following:
                self._arrive = self._fetch(following)
            yield step, keys

    def send_grads(self, step: Step, grads: KV) -> None:
        self._add_what_comes_home()
        self._come_home = _give(self._gradients, self._plan, step, grads)

    def finish(self) -> KV:
        return self._add_what_comes_home()

    def _fetch(self, step: Step) -> Callable[[], KV]:
        return _fetch(self._keys, self._plan, step, self.kv)

    def _add_what_comes_home(self) -> KV:
        if self._total is None:
            self._total = KV(*(torch.zeros_like(x, dtype=accumulator_dtype(x.dtype)) for x in self.kv))
        if self._come_home is not None:
            self._come_home(self._total)
        return self._total


def _stays(comm: Communicator, step: Step) -> bool:
    """Does nothing move in this step, as in the first of a wave?"""
    return step.sources == step.destinations == (comm.rank,)


def _all_meet(comm: Communicator, schedule: Schedule, step: Step) -> bool:
    """Does every rank, not only this one, need the keys of all ranks? Then one collective call moves them."""
    return route_table(schedule.route, comm.size).meets[step.hop]


def _fetch(comm: Communicator, plan: DevicePlan, step: Step, own: KV) -> Callable[[], KV]:
    """Send a step's keys on their way; the answer waits for them."""
    if _stays(comm, step):
        return lambda: own
    packed_kv = pack(own, plan.schedule.shard_size)
    if _all_meet(comm, plan.schedule, step):
        work, ranks, kept = comm.all_gather(packed_kv), list(range(comm.size)), None
    else:
        ranks = [rank for rank in step.sources if rank != comm.rank]
        work = comm.send_recv([(rank, packed_kv) for rank in step.destinations if rank != comm.rank], ranks, packed_kv)
        kept = packed_kv[None] if comm.rank in step.sources else None

    def wait() -> KV:
        arrived = work.wait() if kept is None else torch.cat([work.wait(), kept])
        order = [[*ranks, comm.rank].index(rank) for rank in step.sources]
        # A list as an index would be copied to the GPU, for which the host would wait.
        packed_shards = (
            arrived if order == list(range(len(arrived))) else torch.stack([arrived[place] for place in order])
        )
        return unpack(arrange(plan, step, packed_shards), own.k.shape[2])

    return wait


def _give(comm: Communicator, plan: DevicePlan, step: Step, grads: KV) -> Callable[[KV], None]:
    """Send the gradients of a step's keys to their owners; the answer adds what came home, always in one order."""
    if _stays(comm, step):
        return lambda total: _add(total, [grads])
    # In the accumulator's dtype, whatever this rank's kernel found them in: another's may round, or not.
    parts = disarrange(plan, step, pack(grads, len(grads.k)).to(accumulator_dtype(grads.k.dtype)))
    place = {rank: index for index, rank in enumerate(step.sources)}
    if _all_meet(comm, plan.schedule, step):
        # Not a reduce-scatter: it would add in the dtype of the message, and in an unspecified order.
        work, own = comm.all_to_all(torch.stack([parts[place[rank]] for rank in range(comm.size)])), []
    else:
        sends = [(rank, parts[index]) for rank, index in place.items() if rank != comm.rank]
        like = parts.new_empty(parts.shape[1:])
        work = comm.send_recv(sends, [rank for rank in step.destinations if rank != comm.rank], like)
        own = [parts[place[comm.rank]]] if comm.rank in place else []
    head_dim = grads.k.shape[2]

    def come_home(total: KV) -> None:
        packed_shards = (packed_kv[: len(total.k)] for packed_kv in (*own, *work.wait()))
        _add(total, [unpack(packed_kv, head_dim) for packed_kv in packed_shards])

    return come_home


def _add(total: KV, found: list[KV]) -> None:
    """Add gradients of this rank's keys to those found so far."""
    for grads in found:
        total.k.add_(grads.k)
        total.v.add_(grads.v)
