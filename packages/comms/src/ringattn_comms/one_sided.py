"""One-sided: every rank reads the keys it needs from their owner's memory, and writes their gradients back there.

Only rows that are needed move (and rows between them, where they are in many slices), by the copy engines of a GPU
unless the messages are small: nothing is forwarded through neighbours. The copies run on a separate stream; a gather
writes its keys to the shared buffer before it reads. Ranks synchronize when their keys are in place, when all have read
what they need, and in a backward pass when every gradient has arrived. So the shared buffer is free again when a pass
ends, also in a CUDA graph that is replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise

import torch

from ringattn_comms.coalesced_rows import coalesced_rows
from ringattn_comms.copies import Shapes, buffer_layout, copies, gradient_places, outgoing
from ringattn_comms.copy_stream import CopyStream, new_copy_stream
from ringattn_comms.shared_buffer import Move, SharedBuffers, copy
from ringattn_core.plan.schedule import Schedule, Step
from ringattn_core.run.accumulate import add_parts
from ringattn_core.run.device_plan import device_plan
from ringattn_core.run.gradient import Part
from ringattn_core.run.transport import KV

_SMALL = 4 << 20  # bytes of a shard's keys and values: up to here a copy takes a copy engine longer to begin than to do


class OneSided:
    """A pass over shared buffers."""

    def __init__(self, schedule: Schedule, kv: KV, shared_buffers: SharedBuffers) -> None:
        self.schedule, self.kv = schedule, kv
        self._rank, device = schedule.cp_rank, kv.k.device
        self._plan, self._copy_stream = device_plan(schedule, device), CopyStream(device, _stream(device))
        self._shapes = Shapes.of(kv)
        self._layout = buffer_layout(self._plan, self._shapes)
        self._small = self._layout.shard_size <= _SMALL
        self._found = list[tuple[Step, KV]]()  # the gradients that this rank's own steps give its keys
        self._shared_buffer = shared_buffers.at_least(self._layout.size)
        # Until the first synchronization of the ranks no keys are in place.
        self._to_lay_out: list[Move] | None = self._own_keys()
        self._all_have_given: Callable[[], None] | None = None

    def __iter__(self) -> Iterator[tuple[Step, KV]]:
        steps = self.schedule.steps
        arrive = self._fetch(steps[0])
        for step, following in pairwise(steps):
            keys, arrive = arrive(), self._fetch(following)
            yield step, keys
        keys = arrive()
        if self._to_lay_out is not None:  # Other ranks may read the keys of a rank that reads none.
            self._meet(self._to_lay_out)
        all_have_read = self._meet([])
        yield steps[-1], keys
        all_have_read()

    def send_grads(self, step: Step, grads: KV) -> None:
        if any(key_slice.source == self._rank for key_slice in step.key_slices):
            self._found.append((step, grads))
        with self._copy_stream.after_main():
            moves = self._homeward(step, grads)
            if step is not self.schedule.steps[-1]:
                copy(moves)
        if step is self.schedule.steps[-1]:
            self._all_have_given = self._meet(moves)
        self._copy_stream.keep(*grads)

    def finish(self) -> KV:
        """After all ranks' gradients have arrived: their sum, this one's own first, then the others' by rank."""
        assert self._all_have_given is not None, "a backward pass sends the gradients of every step"
        self._all_have_given()
        return self._total()

    def _meet(self, first: list[Move]) -> Callable[[], None]:
        """Moves and a barrier of all ranks, concurrent with the attention; the returned function waits for them."""
        with self._copy_stream.after_main():
            self._shared_buffer.exchange(first, [], small=self._small)
            return self._copy_stream.event()

    def _own_keys(self) -> list[Move]:
        """What puts this rank's keys, as far as others need them, where they can read them."""
        rows, slots = outgoing(self._plan, self._shapes)
        return [(slot.on(self._shared_buffer, self._rank), x[rows]) for slot, x in zip(slots, self.kv, strict=True)]

    def _homeward(self, step: Step, grads: KV) -> list[Move]:
        """What takes the gradients that a step found to the owners of its keys."""
        packed = coalesced_rows(self._plan, step)
        if packed is not None:  # Rows between the slices travel with them, and are ignored.
            self._copy_stream.keep(packed.outward)
            grads = KV(*(x.index_select(0, packed.outward) for x in grads))
        return [
            (slot.on(self._shared_buffer, each.source), grad[each.columns])
            for each in copies(self._plan, step, self._shapes).remote
            for slot, grad in zip(each.grads or (), grads, strict=True)
        ]

    def _fetch(self, step: Step) -> Callable[[], KV]:
        """Begin to read a step's keys from their owners; the answer adds this rank's own and waits for them."""
        if step.sources == (self._rank,):
            return lambda: self.kv
        packed, (local, remote, length) = coalesced_rows(self._plan, step), copies(self._plan, step, self._shapes)
        k, v = (x.new_empty((length, *x.shape[1:])) for x in self.kv)
        near, far = list[Move](), list[Move]()
        for each in local:
            near += (k[each.columns], self.kv.k[each.rows]), (v[each.columns], self.kv.v[each.rows])
        for each in remote:
            far.append((k[each.columns], each.keys.k.on(self._shared_buffer, each.source)))
            far.append((v[each.columns], each.keys.v.on(self._shared_buffer, each.source)))
        arrived = self._read(far, urgent=self._rank in step.sources)

        def wait() -> KV:
            copy(near)
            arrived()
            return KV(k, v) if packed is None else KV(*(x.index_select(0, packed.inward) for x in (k, v)))

        return wait

    def _read(self, moves: list[Move], *, urgent: bool) -> Callable[[], None]:
        """Begin to read others' keys, the first time after all ranks have laid out theirs; the answer waits for them.

        `urgent`: there is little to compute meanwhile, so keys that others wait for are copied before attention starts.
        """
        lay_out, self._to_lay_out = self._to_lay_out, None
        if lay_out and urgent and not self._small:
            with self._copy_stream.after_main():
                copy(lay_out)
                laid_out = self._copy_stream.event()
            laid_out()
            lay_out = []
        with self._copy_stream.after_main():
            if lay_out is None:
                copy(moves)
            else:
                self._shared_buffer.exchange(lay_out, moves, small=self._small)
            arrived = self._copy_stream.event()
        if lay_out is not None and self._small:
            self._copy_stream.goes_first()
        return arrived

    def _total(self) -> KV:
        """The sum of the gradients of this rank's keys."""
        local, remote = gradient_places(self._plan)
        inboxes = {sender: self._layout.inbox(sender, self._rank) for sender in remote}
        totals = []
        for index, own in enumerate(self.kv):
            parts = [Part(grads[index], local[step.hop]) for step, grads in self._found]
            for sender, rows in remote.items():
                parts.append(Part(inboxes[sender][index].on(self._shared_buffer, self._rank), rows))
            totals.append(add_parts(own, parts))
        return KV(*totals)


@cache
def _stream(device: torch.device) -> torch.cuda.Stream | None:
    """One for all passes, so that they follow each other there as well."""
    return new_copy_stream(device)
