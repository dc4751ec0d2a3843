"""What hosts tell each other of the passes of a group: a gloo connection of their own, which no tensors travel on."""

from __future__ import annotations

from collections.abc import Sequence
from queue import SimpleQueue
from threading import Condition, Thread, current_thread
from typing import Any
from weakref import finalize

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, ProcessGroupGloo, Store

from ringattn_comms.agreement import Said
from ringattn_comms.header import SIZE

_PATIENCE = 5.0  # seconds


class HostChannel:
    """A rank's connection to the other ranks that meet over a store. All ranks make theirs together.

    names: how an error names each rank. waits: the host waits for the headers of each pass, so each rank is sent a
    message, and an error can name the one that is missing. Else a thread exchanges them by one collective call, and
    the caller only leaves its header there.

    Raises RuntimeError, after the store's timeout, with the ranks that have not come.
    """

    def __init__(self, store: Store, rank: int, names: Sequence[str], *, waits: bool) -> None:
        self._rank, self._names, self._waits = rank, names, waits
        met: Any = PrefixStore("ringattn agreement", store)
        met.set(str(rank), "here")
        for other, name in enumerate(names):
            try:
                met.wait([str(other)], met.timeout)
            except RuntimeError as error:
                raise RuntimeError(f"{name} has not begun its first call on this group: {error}") from error
        self._gloo: Any = ProcessGroupGloo(met, rank, len(names), met.timeout)
        self._left, self._answered = SimpleQueue[_Exchanged | None](), Condition()
        if not waits:
            thread = Thread(target=_exchange, args=(self._gloo, len(names), self._left), daemon=True)
            thread.start()
            finalize(self, _end, self._left, thread)

    def say(self, header: bytes) -> Said:
        if not self._waits:
            exchanged = _Exchanged(header, self._answered)
            self._left.put(exchanged)
            return exchanged
        # Read as bytes later: not through NumPy, which PyTorch does not require.
        own = torch.frombuffer(bytearray(header.ljust(SIZE)), dtype=torch.uint8)
        memory = bytearray(len(self._names) * SIZE)
        rows = torch.frombuffer(memory, dtype=torch.uint8).view(-1, SIZE)
        rows[self._rank] = own
        others = [rank for rank in range(len(self._names)) if rank != self._rank]
        receives = {self._names[rank]: self._gloo.recv([rows[rank]], rank, 0) for rank in others}
        return _Messages(receives, [self._gloo.send([own], rank, 0) for rank in others], own, memory)


class _Exchanged:
    """A header that was left to the thread, and later those of all ranks."""

    def __init__(self, header: bytes, answered: Condition) -> None:
        self.header, self._answered = header, answered
        self._answer: Sequence[bytes] | RuntimeError | None = None

    def answer(self, answer: Sequence[bytes] | RuntimeError) -> None:
        with self._answered:
            self._answer = answer
            self._answered.notify_all()

    def ready(self) -> bool:
        return self._answer is not None

    def wait(self) -> Sequence[bytes]:
        if self._answer is None:
            with self._answered:
                self._answered.wait_for(self.ready)
        if isinstance(self._answer, RuntimeError):
            raise RuntimeError(
                f"A rank of this group did not begin the same pass as the others: {self._answer}"
            ) from self._answer
        return self._answer or ()


def _exchange(gloo: Any, size: int, left: SimpleQueue[_Exchanged | None]) -> None:
    """Exchange one header after the other, until the channel is gone."""
    own, memory = bytearray(SIZE), bytearray(size * SIZE)
    sent, arriving = (torch.frombuffer(each, dtype=torch.uint8) for each in (own, memory))
    while (exchanged := left.get()) is not None:
        own[:] = exchanged.header.ljust(SIZE)
        try:
            gloo._allgather_base(arriving, sent).wait()
        except RuntimeError as error:
            exchanged.answer(error)
            continue
        alike = memory == own * size
        exchanged.answer([exchanged.header] * size if alike else _rows(memory))


def _end(left: SimpleQueue[_Exchanged | None], thread: Thread) -> None:
    """The channel is gone. A process that ends gives the last ones a few seconds to arrive."""
    left.put(None)
    if thread is not current_thread():  # Garbage is collected by any thread.
        thread.join(_PATIENCE)


class _Messages:
    def __init__(
        self, receives: dict[str, dist.Work], sends: Sequence[dist.Work], own: Tensor, memory: bytearray
    ) -> None:
        self._receives, self._sends, self._own, self._memory = receives, sends, own, memory

    def ready(self) -> bool:
        return all(work.is_completed() for work in (*self._receives.values(), *self._sends))

    def wait(self) -> Sequence[bytes]:
        for name, work in self._receives.items():
            try:
                work.wait()
            except RuntimeError as error:
                raise RuntimeError(f"{name} did not begin the same pass as this rank: {error}") from error
        return _rows(self._memory)


def _rows(memory: bytearray) -> Sequence[bytes]:
    return [bytes(memory[start : start + SIZE]).rstrip() for start in range(0, len(memory), SIZE)]
