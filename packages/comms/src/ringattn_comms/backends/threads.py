"""Ranks as threads of one process: the group to learn on, to test with, and to try schedules on without a launcher.

results = run(4, lambda comm: comm.all_gather(torch.tensor([comm.rank])).wait())
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from threading import Condition, Event, Lock
from time import monotonic
from typing import Any, TypeVar

import torch
from torch import Tensor

from ringattn_comms.agreement import Said
from ringattn_comms.communicator import Communicator, Then, Work
from ringattn_comms.header import RefusedError
from ringattn_comms.shared_buffer import SharedBuffer, SharedBuffers
from ringattn_core.run.streams import set_rank

T = TypeVar("T")


def run(size: int, main: Callable[[Communicator], T], *, timeout: float = 60.0) -> list[T]:
    """Call `main` on `size` ranks at once and return what each returned, in rank order.

    The first exception of any rank stops the others and is raised here. A rank that waits for a message longer than
    `timeout` seconds raises TimeoutError. On a GPU call `attend_backward` yourself: autograd runs the backward passes
    of all threads on a single thread, where each would wait for the next.
    """
    world = _World(size, timeout)
    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(_as_rank, main, Threads(world, rank)) for rank in range(size)]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            world.stopped.set()
    errors = [error for future in futures if (error := future.exception()) is not None]
    if errors:  # That a rank stopped because of another one is not what went wrong.
        raise min(errors, key=lambda error: isinstance(error, (RefusedError, _StoppedError)))
    return [future.result() for future in futures]


def _as_rank(main: Callable[[Communicator], T], comm: Communicator) -> T:
    set_rank(comm.rank)
    return main(comm)


class _StoppedError(RuntimeError):
    """Another rank has failed; this one has nothing left to wait for."""


class _Mailbox:
    """The messages from one rank to another: the n-th that was sent is the n-th that was asked for."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._sent, self._asked = deque[Future[Any]](), deque[Future[Any]]()

    def put(self, x: object) -> None:
        self._first(self._asked, self._sent).set_result(x)

    def get(self) -> Future[Any]:
        return self._first(self._sent, self._asked)

    def _first(self, there: deque[Future[Any]], otherwise: deque[Future[Any]]) -> Future[Any]:
        """The first message that the other side waits for; if there is none, a new one for it to find."""
        with self._lock:
            if there:
                return there.popleft()
            message = Future[Any]()
            otherwise.append(message)
            return message


class _World:
    """The mailboxes between any two ranks."""

    def __init__(self, size: int, timeout: float) -> None:
        self.size, self.timeout, self.stopped = size, timeout, Event()
        self.boxes = [[_Mailbox() for _ in range(size)] for _ in range(size)]
        self.headers, self.arrived = dict[int, list[bytes]](), Condition()

    def say(self, number: int, rank: int, header: bytes) -> _Headers:
        """The `number`-th header of a rank, for all ranks."""
        with self.arrived:
            rows = self.headers.setdefault(number, [b""] * self.size)
            rows[rank] = header
            if all(rows):
                del self.headers[number]
                self.arrived.notify_all()
        return _Headers(self, rows, rank)

    def late(self, source: int, destination: int, since: float) -> None:
        """Raise where a rank waits in vain, or has waited too long."""
        if self.stopped.is_set():
            raise _StoppedError(f"rank {destination} stopped waiting for rank {source}")
        if monotonic() > since + self.timeout:
            raise TimeoutError(
                f"rank {destination} waited {self.timeout:g} s for a message from rank {source}: "
                "every rank has to make the same calls in the same order."
            )

    def wait(self, message: Future[T], source: int, destination: int) -> T:
        since = monotonic()
        while True:
            try:
                return message.result(timeout=0.05)
            except TimeoutError:
                self.late(source, destination, since)


@dataclass(frozen=True, slots=True)
class _Headers:
    """What all ranks say of one pass."""

    world: _World
    rows: list[bytes]
    rank: int

    def ready(self) -> bool:
        return all(self.rows)

    def wait(self) -> Sequence[bytes]:
        since = monotonic()
        with self.world.arrived:
            while not self.world.arrived.wait_for(lambda: all(self.rows), timeout=0.05):
                self.world.late(self.rows.index(b""), self.rank, since)
        return self.rows


@dataclass(frozen=True, slots=True)
class _Receipt:
    """Messages on their way to a rank."""

    world: _World
    messages: Sequence[tuple[int, Future[Tensor]]]
    rank: int
    like: Tensor

    def wait(self) -> Tensor:
        arrived = []
        for source, message in self.messages:
            x = self.world.wait(message, source, self.rank)
            if x.shape != self.like.shape or x.dtype != self.like.dtype:
                raise ValueError(
                    f"rank {self.rank} expected {self.like.dtype} {tuple(self.like.shape)} from rank {source} "
                    f"and got {x.dtype} {tuple(x.shape)}: all ranks need the same shapes and dtypes."
                )
            arrived.append(x)
        return torch.stack(arrived) if arrived else self.like.new_empty((0, *self.like.shape))


class Threads(Communicator):
    """One thread's end of a `run`."""

    def __init__(self, world: _World, rank: int) -> None:
        self.rank, self.size, self._world = rank, world.size, world
        self._headers = 0

    def say(self, header: bytes) -> Said:
        self._headers += 1
        return self._world.say(self._headers, self.rank, header)

    def send_recv(self, sends: Sequence[tuple[int, Tensor]], sources: Sequence[int], like: Tensor) -> Work:
        boxes = self._world.boxes
        for destination, x in sends:
            boxes[self.rank][destination].put(x.clone())
        messages = [(source, boxes[source][self.rank].get()) for source in sources]
        return _Receipt(self._world, messages, self.rank, like)

    def share(self, x: T) -> list[T]:
        """Every rank's own x, not a copy."""
        boxes, everyone = self._world.boxes, range(self.size)
        for rank in everyone:
            boxes[self.rank][rank].put(x)
        return [self._world.wait(boxes[rank][self.rank].get(), rank, self.rank) for rank in everyone]

    def all_gather(self, x: Tensor) -> Work:
        everyone = range(self.size)
        return self.send_recv([(rank, x) for rank in everyone], everyone, x)

    def reduce_scatter(self, x: Tensor) -> Work:
        return Then(self.all_to_all(x), lambda parts: parts.sum(dim=0))

    def all_to_all(self, x: Tensor) -> Work:
        everyone = range(self.size)
        return self.send_recv(list(zip(everyone, x, strict=True)), everyone, x[0])


class ThreadSharedBuffers(SharedBuffers):
    """Shared buffers of ranks that are threads of one process: each rank passes its tensor to all others."""

    def __init__(self, comm: Threads, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self._comm, self._device = comm, device

    def allocate(self, size: int) -> SharedBuffer:
        return _ThreadSharedBuffer(self._comm, torch.empty(size, dtype=torch.uint8, device=self._device))


class _ThreadSharedBuffer(SharedBuffer):
    def __init__(self, comm: Threads, own: Tensor) -> None:
        super().__init__()
        self._comm = comm
        self._memories = comm.share(own)

    def memory(self, rank: int) -> Tensor:
        return self._memories[rank]

    def barrier(self) -> None:
        self._comm.share(torch.empty(0))
