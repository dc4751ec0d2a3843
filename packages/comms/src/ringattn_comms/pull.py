"""One-sided: every rank reads the keys it needs from their owner's memory, and writes their gradients back there.

Only rows that are needed move, by the copy engines where the memory is a GPU's: no multiprocessor is taken from the
attention, nothing is forwarded through neighbours. Two barriers a pass, on a stream of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from itertools import groupby

import torch

from ringattn_comms.side import Side, side_stream
from ringattn_comms.window import Region, Window, Windows
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
        self._schedule, self._home = schedule, list[KV]()
        for _, group in groupby(schedule.steps, key=lambda step: step.head_group):
            steps = list(group)
            self._own = kv.heads(kv_heads(schedule, steps[0], kv))
            self._found: list[tuple[range, KV]] = []  # gradients of this rank's own keys, by itself
            self._given = False
            self._shelf = _Shelf(schedule, self._own, self._windows)
            self._side = Side(_stream(self._own.k.device))
            self._lay_out()
            arrive = self._fetch(steps[0])
            for step, following in zip(steps, (*steps[1:], None), strict=True):
                keys = arrive()
                if following:
                    arrive = self._fetch(following)
                yield step, keys
            self._end()
            if self._given:
                self._home.append(self._gather_in(steps))

    def give(self, step: Step, grads: KV) -> None:
        self._given = True
        with self._side.after_main():
            for piece in step.pieces:
                rows, columns = (slice(part.start, part.stop) for part in (piece.rows, piece.columns))
                if piece.source == self._rank:
                    self._found.append((piece.rows, KV(*(grad[columns] for grad in grads))))
                    continue
                for place, grad in zip(self._shelf.inbox, grads, strict=True):
                    slots = place.on(self._shelf.window, piece.source)
                    slots[_slot(self._rank, piece.source), rows].copy_(grad[columns], non_blocking=True)
        self._side.keep(*grads)

    def collect(self) -> KV:
        return joined(self._home)

    def _lay_out(self) -> None:
        """Put this rank's keys where others can read them."""
        for place, x in zip(self._shelf.keys, self._own, strict=True):
            place.on(self._shelf.window, self._rank)[: len(x)].copy_(x)
        with self._side.after_main():
            self._shelf.window.barrier()

    def _end(self) -> None:
        """Go on when every rank has read all that it needs, and has written all the gradients that it had to.

        So the window is free after a pass, and the next one, of whatever shapes, may write to it without asking what
        came before. What a rank remembered of earlier passes, such as which of two places comes next, would not be true
        in a CUDA graph, which is replayed after passes that its capture did not see. The wait costs nothing: a forward
        pass waits for copies that were asked for before its last step was computed, and a backward pass has to wait
        for the others' gradients anyway.
        """
        with self._side.at_once():
            self._shelf.window.barrier()
            passed = self._side.event()
        passed()

    def _fetch(self, step: Step) -> Callable[[], KV]:
        """Begin to read a step's keys; the answer waits for them."""
        if step.sources == (self._rank,):
            return lambda: self._own
        length = self._schedule.buffer_length(step)
        buffer = KV(*(x.new_empty((length, *x.shape[1:])) for x in self._own))
        with self._side.after_main():
            for piece in step.pieces:
                for place, x in zip(self._shelf.keys, buffer, strict=True):
                    rows = place.on(self._shelf.window, piece.source)[piece.rows.start : piece.rows.stop]
                    x[piece.columns.start : piece.columns.stop].copy_(rows, non_blocking=True)
            arrived = self._side.event()

        def wait() -> KV:
            arrived()
            return buffer

        return wait

    def _gather_in(self, steps: list[Step]) -> KV:
        """The sum of all ranks' gradients, which have arrived: this one's own first, then the others' by rank."""
        own = _whole(self._own, self._found)
        inbox = [place.on(self._shelf.window, self._rank) for place in self._shelf.inbox]
        lots = tuple((_slot(p.source, self._rank), p.rows) for step in steps for p in lent(self._schedule, step.hop))
        return KV(*(add_slots(x, slots, lots) for x, slots in zip(own, inbox, strict=True)))


# One for all passes on a device: in its order, whatever layer asks for it, barriers meet their like on other ranks.
_stream = cache(side_stream)


def _slot(sender: int, owner: int) -> int:
    """Which of the owner's slots is the sender's: every other rank has one."""
    return sender if sender < owner else sender - 1


def _whole(like: KV, found: list[tuple[range, KV]]) -> KV:
    """What a rank found itself for its own keys, as one tensor for k and one for v."""
    if len(found) == 1 and len(found[0][0]) == len(like.k):
        return found[0][1]
    total = KV(*(torch.zeros_like(x, dtype=accumulator_dtype(x.dtype)) for x in like))
    for rows, part in found:
        for whole, x in zip(total, part, strict=True):
            whole[rows.start : rows.stop] += x
    return total


class _Shelf:
    """How a pass uses the window: this rank's keys, and a slot for each other rank's gradients of them."""

    def __init__(self, schedule: Schedule, own: KV, windows: Windows) -> None:
        region, shapes, dtype = Region(), [(schedule.shard_size, *x.shape[1:]) for x in own], own.k.dtype
        self.keys = [region.place(shape, dtype) for shape in shapes]
        # Gradients travel in the inputs' dtype, each once, and are added in the accumulator's.
        self.inbox = [region.place((schedule.cp_size - 1, *shape), dtype) for shape in shapes]
        self.window: Window = windows.at_least(region.end)
