"""Predict what schedules cost on a machine, from the same steps that the executor runs.

Every rank has three clocks: of its device, of its host, which issues each launch, and of its link, on which transfers
follow each other. Keys for the next step travel while one is computed, and so do the gradients of the step before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ringattn_core.look.machine import Link, Machine
from ringattn_core.look.shape import ACCUMULATOR, Shape, peak_bytes, total_bytes
from ringattn_core.plan.coalesced_copies import coalesced_copies
from ringattn_core.plan.columns import row_bounds
from ringattn_core.plan.route import route_table
from ringattn_core.plan.row_writes import row_writes
from ringattn_core.plan.schedule import Launch, Schedule, Step


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is predicted; seconds and bytes of the rank that has the most of them."""

    time: float  # until the last rank is done
    ideal: float  # an equal share of all the work in one endless launch
    compute: float  # in attention kernels
    merge: float  # in adding up results and gradients
    waiting: float  # in which the device waits for keys, for gradients or for its host
    bytes_sent: int
    bytes_received: int
    peak_bytes: int  # of memory without q, k, v and their gradients' final place
    total_bytes: int  # of memory with them, and in a backward pass with the gradient of the result

    @property
    def efficiency(self) -> float:
        """The share of the time that the work itself needs."""
        return self.ideal / self.time if self.time else 1.0


def predict(
    schedules: Sequence[Schedule],
    shape: Shape,
    machine: Machine,
    *,
    backward: Sequence[Schedule] = (),
    one_sided: bool = False,
    times: float = 1.0,
) -> Forecast:
    """Predict the schedules of all ranks, in their order: a forward pass, and a backward pass by those in `backward`.

    Of some ranks alone, each sends what it receives and never waits for a slower one. A sequence may stand for
    `times` of about its length: one launch takes them all, but of a single tile, whose window depends on the length.
    Keys are handed on from neighbour to neighbour where the schedules shift, else whole shards come from their owners;
    `one_sided` copies only the rows that a step needs, or `coalesced_copies` of them, straight out of the owners'
    memory.
    """
    machine = machine.slower(times)
    ranks, ideal, peaks, totals = [_Rank() for _ in schedules], 0.0, [], []
    passes = ((schedules, machine.forward, False), *([(backward, machine.backward, True)] if backward else []))
    for planned, kernels, is_backward in passes:
        _Pass(ranks, planned, shape, machine, one_sided, is_backward, times).walk()
        ideal += shape.flop(sum(schedule.area for schedule in planned), backward=is_backward) / kernels.flops
        for schedule in planned:
            peaks.append(peak_bytes(schedule, shape, backward=is_backward, one_sided=one_sided))
            totals.append(total_bytes(schedule, shape, backward=is_backward, one_sided=one_sided))
    return Forecast(
        time=max(rank.device for rank in ranks),
        ideal=ideal / len(ranks),
        compute=max(rank.compute for rank in ranks),
        merge=max(rank.merge for rank in ranks),
        waiting=max(rank.waiting for rank in ranks),
        bytes_sent=max(rank.sent for rank in ranks),
        bytes_received=max(rank.received for rank in ranks),
        peak_bytes=max(peaks),
        total_bytes=max(totals),
    )


def fastest(forecasts: Mapping[str, Forecast], *, alike: float = 0.0) -> str:
    """The name of the first whose time is at most `1 + alike` times the least."""
    least = min(each.time for each in forecasts.values())
    return next(name for name, each in forecasts.items() if each.time <= (1 + alike) * least)


@dataclass(slots=True)
class _Rank:
    """The clocks of one rank and what they were spent on, in seconds; and its traffic, in bytes."""

    device: float = 0.0
    host: float = 0.0
    link: float = 0.0
    compute: float = 0.0
    merge: float = 0.0
    waiting: float = 0.0
    sent: int = 0
    received: int = 0

    def wait(self, until: float) -> None:
        self.waiting += max(0.0, until - self.device)
        self.device = max(self.device, until)

    def fold(self, seconds: float) -> None:
        self.merge += seconds
        self.device += seconds


class _Message(NamedTuple):
    """Keys, or their gradients, on their way from one rank to another."""

    source: int
    destination: int
    tokens: int


class _Pass:
    """All ranks going through their schedules once."""

    def __init__(
        self,
        ranks: list[_Rank],
        schedules: Sequence[Schedule],
        shape: Shape,
        machine: Machine,
        one_sided: bool,
        backward: bool,
        times: float = 1.0,
    ) -> None:
        self.ranks, self.schedules, self.shape, self.machine = ranks, schedules, shape, machine
        self.one_sided, self.backward, self.times = one_sided, backward, times
        self.hops = [step.hop for step in schedules[0].steps]
        self.shifts = schedules[0].shifts and not one_sided
        self.size, self.place = schedules[0].cp_size, {each.cp_rank: index for index, each in enumerate(schedules)}
        self.mirrored = len(schedules) < self.size

    def walk(self) -> None:
        """In the order of the executor and of the transports."""
        arriving = self._send(0, self._keys(0), self.shape.itemsize)
        gradients, returning = list[_Message](), [0.0 for _ in self.ranks]
        for index in range(len(self.hops)):
            for rank, time in zip(self.ranks, arriving, strict=True):
                rank.wait(time)
            if index + 1 < len(self.hops):
                arriving = self._send(index + 1, self._keys(index + 1), self.shape.itemsize)
            for rank, schedule in zip(self.ranks, self.schedules, strict=True):
                self._compute(rank, schedule, schedule.steps[index])
            if self.backward:
                self._collect(gradients, returning)
                gradients = self._gradients(index)
                returning = self._send(index, gradients, self.shape.grad_itemsize)
        self._collect(gradients, returning)
        for rank in self.ranks:  # The host runs ahead, unless it needs longer than the device.
            rank.wait(rank.host)

    def _compute(self, rank: _Rank, schedule: Schedule, step: Step) -> None:
        kernels = self.machine.backward if self.backward else self.machine.forward
        # Rows are copied into order, and their gradients back.
        if self.one_sided and (packed := coalesced_copies(step, schedule.cp_rank)):
            size = packed[-1].columns.stop * self.shape.token(self.shape.itemsize)
            rank.fold((2 + 2 * self.backward) * size / self.machine.memory)
        for launch in step.launches:
            count = self.times if len(launch.tiles) == 1 else 1
            rank.host += count * kernels.call
            cells = launch.area + kernels.row * sum(len(tile.q) for tile in launch.tiles)
            seconds = count * kernels.time(self.shape.flop(cells, backward=self.backward) / count)
            rank.compute += seconds
            rank.device += seconds
            rank.fold(self._folded(schedule, step, launch) / self.machine.memory)

    def _folded(self, schedule: Schedule, step: Step, launch: Launch) -> float:
        """Bytes moved to add a launch's result to the running one: none for rows that no launch has written before."""
        (dim, dim_v), width = self.shape.dims, self.shape.itemsize + 2 * ACCUMULATOR
        rows = sum(len(write.rows) for write in row_writes(schedule).of[launch] if write.write_index > 0)
        moved = rows * self.shape.num_heads * (dim if self.backward else dim_v) * width
        if self.backward and launch is not step.launches[0]:
            columns = sum(len(tile.k) for tile in launch.tiles)
            moved += columns * self.shape.num_kv_heads * (dim + dim_v) * width
        return moved

    def _keys(self, index: int) -> list[_Message]:
        """The messages that bring the keys of a step: from neighbours, or from the owners."""
        if self.shifts:
            return self._shift(self.hops[index] - self.hops[index - 1] if self.hops[index] else 0)
        steps = [(rank, schedule.steps[index]) for rank, schedule in zip(self.place, self.schedules, strict=True)]
        if self.one_sided:
            parts = (
                (rank, key_slice.source, len(key_slice.rows))
                for rank, step in steps
                for key_slice in coalesced_copies(step, rank) or step.key_slices
            )
        else:
            parts = ((rank, source, self.schedules[0].shard_size) for rank, step in steps for source in step.sources)
        return [_Message(source, rank, tokens) for rank, source, tokens in parts if source != rank]

    def _gradients(self, index: int) -> list[_Message]:
        """The messages that bring the gradients of a step's keys to their owners, by neighbours or directly.

        Those of local keys need none; where local keys came again, they are added to those of hop 0.
        """
        if self.shifts:
            return self._shift((*self.hops, 0)[index + 1] - self.hops[index])
        again = [
            _Message(rank, rank, stop - start)
            for rank, schedule in zip(self.place, self.schedules, strict=True)
            if self.hops[index] and rank in schedule.steps[index].sources
            for source, start, stop in row_bounds(schedule.steps[index].key_slices)
            if source == rank
        ]
        keys = self._keys(index)
        return (keys if self.mirrored else [_Message(there, here, tokens) for here, there, tokens in keys]) + again

    def _shift(self, by: int) -> list[_Message]:
        shard = self.schedules[0].shard_size
        return [_Message((rank - by) % self.size, rank, shard) for rank in self.place] if by % self.size else []

    def _send(self, index: int, messages: Sequence[_Message], itemsize: int) -> list[float]:
        """When each rank has received everything; a message waits for the ranks at both ends and for their links."""
        token = self.shape.token(itemsize)
        received, sent = [0 for _ in self.ranks], [0 for _ in self.ranks]
        parts = [0 for _ in self.ranks]
        start = [max(rank.link, rank.device) for rank in self.ranks]
        for source, destination, tokens in (message for message in messages if message.source != message.destination):
            here = self.place[destination]
            there = here if self.mirrored else self.place[source]
            sent[there] += tokens * token
            received[here] += tokens * token
            parts[here] += 2  # keys and values
            if not self.one_sided:
                start[here] = max(start[here], self.ranks[there].device)
        for rank, begin, coming, going, count in zip(self.ranks, start, received, sent, parts, strict=True):
            if coming or going:
                rank.link = begin + self._link(index).time(max(coming, going), max(count, 1))
            rank.received += coming
            rank.sent += going
        return [rank.link if coming else 0.0 for rank, coming in zip(self.ranks, received, strict=True)]

    def _link(self, index: int) -> Link:
        if self.one_sided:
            return self.machine.one_sided
        everyone = route_table(self.schedules[0].route, self.size).meets[self.hops[index]]
        return self.machine.collective if everyone else self.machine.two_sided

    def _collect(self, gradients: Sequence[_Message], returning: Sequence[float]) -> None:
        """Wait for the gradients sent after a step and add them to what is there."""
        token = self.shape.token(self.shape.grad_itemsize)
        for rank, time in zip(self.ranks, returning, strict=True):
            rank.wait(time)
        for _, destination, tokens in gradients:
            self.ranks[self.place[destination]].fold(3 * tokens * token / self.machine.memory)
