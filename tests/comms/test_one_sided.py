"""In which order the one-sided transport copies, meets and waits, with streams that only take notes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate

import pytest
import torch
from torch import Tensor

from ringattn_comms import one_sided
from ringattn_comms.backends.threads import Threads, ThreadSharedBuffers, run
from ringattn_comms.one_sided import OneSided
from ringattn_comms.shared_buffer import Move, SharedBuffer, copy
from ringattn_core.plan.layout import zigzag
from ringattn_core.plan.planner import plan
from ringattn_core.plan.route import Route, gather, ring, waves
from ringattn_core.plan.schedule import Schedule
from ringattn_core.run.streams import rank_of_thread
from ringattn_core.run.transport import KV

DOCUMENTS = (0, *accumulate([3, 9, 4, 1, 7, 8]))


class Notes:
    """What every rank asks of its streams and of the buffers that ranks share."""

    def __init__(self) -> None:
        self.of = defaultdict[int, list[str]](list)
        self.events = defaultdict[int, int](int)
        self.memory = dict[int, Tensor]()  # of every rank, where others read and write
        self.read = defaultdict[int, list[list[int]]](list)  # the owners from whom each reads, copy by copy
        self.kept = defaultdict[int, list[tuple[int, ...]]](list)

    def add(self, note: str) -> None:
        self.of[rank_of_thread()].append(note)

    def owner(self, x: Tensor) -> int | None:
        pointer = x.untyped_storage().data_ptr()
        return next((rank for rank, each in self.memory.items() if each.untyped_storage().data_ptr() == pointer), None)

    def note_moves(self, moves: Sequence[Move]) -> None:
        owners = [owner for _, source in moves if (owner := self.owner(source)) not in (None, rank_of_thread())]
        if owners:
            self.read[rank_of_thread()].append(owners[::2])  # keys, then values
            self.of[rank_of_thread()].append("read")
        targets = {self.owner(to) for to, _ in moves} - {None}
        if rank_of_thread() in targets:
            self.add("lay-out")
        if targets - {rank_of_thread()}:
            self.add("send-gradients")


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> Notes:
    notes = Notes()

    class CopyStream:
        def __init__(self, *_: object) -> None: ...

        @contextmanager
        def after_main(self) -> Iterator[None]:
            notes.add("[")
            yield
            notes.add("]")

        def event(self) -> Callable[[], None]:
            notes.events[rank_of_thread()] += 1
            number = notes.events[rank_of_thread()]
            notes.add(f"event-{number}")
            return lambda: notes.add(f"wait-{number}")

        def goes_first(self) -> None:
            notes.add("goes-first")

        def keep(self, *tensors: Tensor) -> None:
            notes.kept[rank_of_thread()].append(tuple(len(x) for x in tensors))

    def noted_copy(moves: Sequence[Move]) -> None:
        notes.note_moves(moves)
        copy(moves)

    monkeypatch.setattr(one_sided, "CopyStream", CopyStream)
    monkeypatch.setattr(one_sided, "copy", noted_copy)
    return notes


class Noted(ThreadSharedBuffers):
    """Shared buffers whose exchanges are noted."""

    def __init__(self, comm: Threads, notes: Notes) -> None:
        super().__init__(comm)
        self._notes, self._size_of_group = notes, comm.size

    def allocate(self, size: int) -> SharedBuffer:
        buffer, notes = super().allocate(size), self._notes
        notes.memory |= {rank: buffer.memory(rank) for rank in range(self._size_of_group)}
        exchange = buffer.exchange

        def noted(first: Sequence[Move], then: Sequence[Move], *, small: bool) -> None:
            notes.note_moves(first)
            notes.add("meet")
            notes.note_moves(then)
            exchange(first, then, small=small)

        buffer.exchange = noted  # type: ignore[method-assign]
        return buffer


def play(notes: Notes, plans: Sequence[Schedule], *, backward: bool) -> None:
    """A pass of all ranks, that notes when each of its steps begins and ends."""

    def main(comm: Threads) -> None:
        schedule = plans[comm.rank]
        own = KV(*(torch.randn(schedule.key_length, 2, 4) for _ in range(2)))
        transport = OneSided(schedule, own, Noted(comm, notes))
        for step, keys in transport:
            notes.add(f"step-{step.hop}")
            if backward:
                transport.send_grads(step, KV(*map(torch.ones_like, keys)))
        if backward:
            transport.finish()
            notes.add("sum")

    run(len(plans), main, timeout=10)


def planned(route: Route, size: int = 4, layout=zigzag, borders: tuple[int, ...] = (0, 64)) -> list[Schedule]:
    return [plan(layout, route, borders, borders, rank, size, window=(-1, 0)) for rank in range(size)]


MEETINGS = {
    # The keys of the others are read while the local ones are computed on.
    (waves(2), "large", "forward"): """
        [ lay-out meet read event-1 ] step-0 wait-1 [ meet event-2 ] step-1 wait-2""",
    (waves(2), "large", "backward"): """
        [ lay-out meet read event-1 ] step-0 [ ] wait-1 [ meet event-2 ] step-1 [ ]
        [ send-gradients meet event-3 ] wait-2 wait-3 sum""",
    # Little is computed meanwhile, so others do not wait for the multiprocessors of this rank: its keys go first.
    (gather, "large", "forward"): """
        [ lay-out event-1 ] wait-1 [ meet read event-2 ] step-0 wait-2 [ meet event-3 ] step-1 wait-3""",
    (gather, "large", "backward"): """
        [ lay-out event-1 ] wait-1 [ meet read event-2 ] step-0 [ ] wait-2 [ meet event-3 ] step-1 [ ]
        [ send-gradients meet event-4 ] wait-3 wait-4 sum""",
    # One kernel lays out, meets and reads, and it begins before the attention.
    (gather, "small", "forward"): """
        [ lay-out meet read event-1 ] goes-first step-0 wait-1 [ meet event-2 ] step-1 wait-2""",
    (waves(2), "small", "forward"): """
        [ lay-out meet read event-1 ] goes-first step-0 wait-1 [ meet event-2 ] step-1 wait-2""",
}


@pytest.mark.parametrize(("route", "size", "direction"), MEETINGS, ids=str)
def test_what_a_pass_asks_for(notes: Notes, monkeypatch, route: Route, size: str, direction: str) -> None:
    """What is read waits for a meeting; a step waits for what it reads; a pass ends when all ranks have read."""
    monkeypatch.setattr(one_sided, "_SMALL", 0 if size == "large" else 1 << 30)
    play(notes, planned(route), backward=direction == "backward")
    assert notes.of[1] == MEETINGS[route, size, direction].split()


def test_where_all_need_all_no_two_ranks_begin_with_the_same_owner(notes: Notes) -> None:
    play(notes, planned(waves(2)), backward=False)
    first = {rank: list(dict.fromkeys(owners)) for rank, (owners,) in notes.read.items()}
    assert first == {rank: [(rank - distance) % 4 for distance in (1, 2, 3)] for rank in range(4)}


@pytest.mark.parametrize("route", [waves(2), ring, gather], ids=str)
def test_gradients_are_kept_until_they_are_copied(notes: Notes, route: Route) -> None:
    """Those of every step; of many pieces, the index by which they are put together as well."""
    plans = planned(route)
    play(notes, plans, backward=True)
    for rank, schedule in enumerate(plans):
        lengths = [schedule.buffer_length(step) for step in schedule.steps]
        lengths[0] = schedule.key_length if len(schedule.steps[0].sources) == 1 else lengths[0]
        assert [kept for kept in notes.kept[rank] if len(kept) == 2] == [(length, length) for length in lengths]
