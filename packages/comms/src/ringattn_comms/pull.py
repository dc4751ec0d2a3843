"""One-sided: every rank reads the keys it needs from their owner's memory, and writes their gradients back there.

Only rows that are needed move, by the copy engines where the memory is a GPU's: no multiprocessor is taken from the
attention, nothing is forwarded through neighbours. All of it is on a stream of its own, with a barrier where every
rank's keys are in place, one where every rank has read what it needs, and in a backward pass one where every gradient
has arrived. So a place in the window is free again when a pass ends, also in a CUDA graph that is replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import torch

from ringattn_comms.side import Side, side_stream
from ringattn_comms.window import Place, Region, Window, Windows
from ringattn_core.kernel import accumulator_dtype
from ringattn_core.planner import lent
from ringattn_core.schedule import Schedule, Step
from ringattn_core.totals import add_slots
from ringattn_core.transport import KV, joined, kv_heads


class Pull:
    """A rank's end of a group with a window."""

    def __init__(self, rank: int, windows: Windows) -> None:
        self._rank, self._windows = rank, windows

    def stream(self, schedule: Schedule, kv: KV) -> Iterator[tuple[Step, KV]]:
        self._side = Side(kv.k.device, _stream(kv.k.device))
        self._groups = _groups(schedule, kv, self._windows)
        self._lay_out()
        arrive = self._fetch(schedule, schedule.steps[0])
        for step, following in zip(schedule.steps, schedule.steps[1:], strict=False):
            keys, arrive = arrive(), self._fetch(schedule, following)
            yield step, keys
        keys, all_have_read = arrive(), self._barrier()
        yield schedule.steps[-1], keys
        all_have_read()

    def give(self, step: Step, grads: KV) -> None:
        group = self._groups[step.head_group]
        group.steps.append(step)
        with self._side.after_main():
            for piece in step.pieces:
                rows, columns = (slice(part.start, part.stop) for part in (piece.rows, piece.columns))
                if piece.source == self._rank:
                    group.found.append((piece.rows, KV(*(grad[columns] for grad in grads))))
                    continue
                for place, grad in zip(group.inbox, grads, strict=True):
                    slots = place.on(group.window, piece.source)
                    slots[_slot(self._rank, piece.source), rows].copy_(grad[columns], non_blocking=True)
        self._side.keep(*grads)

    def collect(self) -> KV:
        """After all ranks' gradients have arrived: their sum, this one's own first, then the others' by rank."""
        self._barrier()()
        return joined([group.total(self._rank) for group in self._groups])

    def _barrier(self) -> Callable[[], None]:
        """Beside the attention, a barrier after all that was asked for so far; the answer waits for it."""
        with self._side.after_main():
            self._groups[0].window.barrier()
            return self._side.event()

    def _lay_out(self) -> None:
        """Put this rank's keys where others can read them."""
        with self._side.after_main():
            for group in self._groups:
                for place, x in zip(group.keys, group.own, strict=True):
                    place.on(group.window, self._rank)[: len(x)].copy_(x, non_blocking=True)
        self._barrier()

    def _fetch(self, schedule: Schedule, step: Step) -> Callable[[], KV]:
        """Begin to read a step's keys; the answer waits for them."""
        group = self._groups[step.head_group]
        if step.sources == (self._rank,):
            return lambda: group.own
        length = schedule.buffer_length(step)
        buffer = KV(*(x.new_empty((length, *x.shape[1:])) for x in group.own))
        with self._side.after_main():
            for piece in step.pieces:
                for place, x in zip(group.keys, buffer, strict=True):
                    rows = place.on(group.window, piece.source)[piece.rows.start : piece.rows.stop]
                    x[piece.columns.start : piece.columns.stop].copy_(rows, non_blocking=True)
            arrived = self._side.event()

        def wait() -> KV:
            arrived()
            return buffer

        return wait


@cache
def _stream(device: torch.device) -> torch.cuda.Stream | None:
    """One for all passes, so that they follow each other there as well."""
    return side_stream(device)


def _slot(sender: int, owner: int) -> int:
    """Which of the owner's slots is the sender's: every other rank has one."""
    return sender if sender < owner else sender - 1


class _Group:
    """A group of kv heads in a pass: where they lie in every rank's window, and what this rank found for its own."""

    def __init__(self, schedule: Schedule, own: KV, region: Region) -> None:
        shapes, dtype = [(schedule.shard_size, *x.shape[1:]) for x in own], own.k.dtype
        self.schedule, self.own = schedule, own
        self.keys: list[Place] = [region.place(shape, dtype) for shape in shapes]
        # A slot for each other rank's gradients: they travel in the inputs' dtype, each once, and are added in the
        # accumulator's.
        self.inbox: list[Place] = [region.place((schedule.cp_size - 1, *shape), dtype) for shape in shapes]
        self.window: Window
        self.found: list[tuple[range, KV]] = []
        self.steps: list[Step] = []

    def total(self, rank: int) -> KV:
        """The sum of the gradients of this rank's keys."""
        inbox = [place.on(self.window, rank) for place in self.inbox]
        lots = tuple((_slot(p.source, rank), p.rows) for step in self.steps for p in lent(self.schedule, step.hop))
        return KV(*(add_slots(x, slots, lots) for x, slots in zip(self._whole(), inbox, strict=True)))

    def _whole(self) -> KV:
        """What this rank found itself, as one tensor for k and one for v."""
        if len(self.found) == 1 and len(self.found[0][0]) == len(self.own.k):
            return self.found[0][1]
        total = KV(*(torch.zeros_like(x, dtype=accumulator_dtype(x.dtype)) for x in self.own))
        for rows, part in self.found:
            for whole, x in zip(total, part, strict=True):
                whole[rows.start : rows.stop] += x
        return total


def _groups(schedule: Schedule, kv: KV, windows: Windows) -> list[_Group]:
    """The head groups of a pass, with room in the window for all of them."""
    region, length = Region(), len(schedule.first_group)
    groups = [_Group(schedule, kv.heads(kv_heads(schedule, step, kv)), region) for step in schedule.steps[::length]]
    window = windows.at_least(region.end)
    for group in groups:
        group.window = window
    return groups
