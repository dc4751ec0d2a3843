"""One-sided: every rank reads the keys it needs from their owner's memory, and writes their gradients back there.

Only rows that are needed move (and rows between them, where they are in many slices), by the copy engines of a GPU
unless the messages are small: nothing is forwarded through neighbours. The copies run on a separate stream; a gather
writes its keys to the shared buffer before it reads. Ranks synchronize when their keys are in place, when all have read
what they need, and in a backward pass when every gradient has arrived. So the shared buffer is free again when a pass
ends, also in a CUDA graph that is replayed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from ringattn_comms.coalesced_rows import coalesced_rows
from ringattn_comms.copy_stream import CopyStream, new_copy_stream
from ringattn_comms.shared_buffer import BufferSlot, Move, Region, SharedBuffers, copy
from ringattn_core.plan.memo import by_owner
from ringattn_core.plan.planner import outgoing_rows
from ringattn_core.plan.schedule import KeySlice, Schedule, Step
from ringattn_core.run.accumulate import add_parts
from ringattn_core.run.gradient import Part
from ringattn_core.run.index import kept, places
from ringattn_core.run.transport import KV

_SMALL = 4 << 20  # bytes of a shard's keys and values: up to here a copy takes a copy engine longer to begin than to do


class OneSided:
    """A pass over shared buffers."""

    def __init__(self, schedule: Schedule, kv: KV, shared_buffers: SharedBuffers) -> None:
        self.schedule, self.kv = schedule, kv
        self._rank, device = schedule.cp_rank, kv.k.device
        self._copy_stream = CopyStream(device, _stream(device))
        region, shapes = Region(), [(schedule.shard_size, *x.shape[1:]) for x in kv]
        self._slots: list[BufferSlot] = [region.place(shape, kv.k.dtype) for shape in shapes]
        # A slot for each other rank's gradients: they travel in the inputs' dtype, each once, and are added in the
        # accumulator's.
        inboxes = [(schedule.cp_size - 1, *shape) for shape in shapes]
        self._inbox: list[BufferSlot] = [region.place(shape, kv.k.dtype) for shape in inboxes]
        self._found = list[tuple[Step, KV]]()  # the gradients that this rank's own steps give its keys
        self._shared_buffer = shared_buffers.at_least(region.end)
        self._small = sum(schedule.shard_size * x.shape[1:].numel() * x.element_size() for x in kv) <= _SMALL
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
        rows = _slice(_outgoing_rows(self.schedule))
        return [
            (place.on(self._shared_buffer, self._rank)[rows], x[rows])
            for place, x in zip(self._slots, self.kv, strict=True)
        ]

    def _homeward(self, step: Step, grads: KV) -> list[Move]:
        """What takes the gradients that a step found to the owners of its keys."""
        packed, key_slices = coalesced_rows(self.schedule, step, grads.k.device), step.key_slices
        if packed is not None:  # Rows between the slices travel with them, and are ignored.
            self._copy_stream.keep(packed.outward)
            grads, key_slices = KV(*(x.index_select(0, packed.outward) for x in grads)), packed.coalesced_copies
        return [
            (place.on(self._shared_buffer, key_slice.source)[_slot(self._rank, key_slice.source), rows], grad[columns])
            for key_slice in self._in_turn(key_slices)
            if key_slice.source != self._rank
            for rows, columns in [(_slice(key_slice.rows), _slice(key_slice.columns))]
            for place, grad in zip(self._inbox, grads, strict=True)
        ]

    def _in_turn(self, key_slices: Iterable[KeySlice]) -> list[KeySlice]:
        """From the rank before this one on, so that where all need all, no two begin with the same."""
        return sorted(key_slices, key=lambda key_slice: (self._rank - key_slice.source) % self.schedule.cp_size)

    def _fetch(self, step: Step) -> Callable[[], KV]:
        """Begin to read a step's keys from their owners; the answer adds this rank's own and waits for them."""
        if step.sources == (self._rank,):
            return lambda: self.kv
        packed = coalesced_rows(self.schedule, step, self.kv.k.device)
        key_slices, length = step.key_slices, self.schedule.buffer_length(step)
        if packed is not None:
            key_slices, length = packed.coalesced_copies, packed.length
        buffer = KV(*(x.new_empty((length, *x.shape[1:])) for x in self.kv))
        near, far = list[Move](), list[Move]()
        for key_slice in self._in_turn(key_slices):
            for place, own, x in zip(self._slots, self.kv, buffer, strict=True):
                here = key_slice.source == self._rank
                source = own if here else place.on(self._shared_buffer, key_slice.source)
                (near if here else far).append((x[_slice(key_slice.columns)], source[_slice(key_slice.rows)]))
        arrived = self._read(far, urgent=self._rank in step.sources)

        def wait() -> KV:
            copy(near)
            arrived()
            return buffer if packed is None else KV(*(x.index_select(0, packed.inward) for x in buffer))

        return wait

    def _read(self, moves: list[Move], *, urgent: bool) -> Callable[[], None]:
        """Begin to read others' keys, the first time after all ranks have laid out theirs; the answer waits for them.

        `urgent`: there is little to compute meanwhile, so what others wait for is not to wait for multiprocessors.
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
        near, far = _homes(self.schedule, self.kv.k.device)
        totals = []
        for index, (own, place) in enumerate(zip(self.kv, self._inbox, strict=True)):
            slots = place.on(self._shared_buffer, self._rank)
            parts = [Part(grads[index], near[step.hop]) for step, grads in self._found]
            totals.append(add_parts(own, parts + [Part(slots[slot], rows) for slot, rows in far.items()]))
        return KV(*totals)


@cache
def _stream(device: torch.device) -> torch.cuda.Stream | None:
    """One for all passes, so that they follow each other there as well."""
    return new_copy_stream(device)


def _slot(sender: int, owner: int) -> int:
    """Which of the owner's slots is the sender's: every other rank has one."""
    return sender if sender < owner else sender - 1


def _slice(part: range) -> slice:
    return slice(part.start, part.stop)


# From here on others fetch rows all over a shard: to find out which takes longer than it saves.
_MANY_SEQUENCES = 64


@by_owner
def _outgoing_rows(schedule: Schedule) -> range:
    """A box around all rows of a rank's shard that others fetch."""
    if len(schedule.keys.cu_seqlens) > _MANY_SEQUENCES:
        return range(schedule.key_length)
    rows = [key_slice.rows for step in schedule.steps for key_slice in outgoing_rows(schedule, step.hop)]
    return range(min(run.start for run in rows), max(run.stop for run in rows)) if rows else range(0)


@kept
def _homes(schedule: Schedule, device: torch.device) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Where the gradients of each row of a rank's keys lie: by hop in this rank's steps, by slot in its inbox."""
    near, far = defaultdict[int, list[tuple[range, int]]](list), defaultdict[int, list[tuple[range, int]]](list)
    for step in schedule.steps:
        for key_slice in step.key_slices:
            if key_slice.source == schedule.cp_rank:
                near[step.hop].append((key_slice.rows, key_slice.offset))
        for key_slice in outgoing_rows(schedule, step.hop):
            far[_slot(key_slice.source, schedule.cp_rank)].append((key_slice.rows, key_slice.rows.start))

    def rows(of: dict[int, list[tuple[range, int]]]) -> dict[int, Tensor]:
        return {key: places(of[key], schedule.key_length, device) for key in sorted(of)}

    return rows(near), rows(far)
