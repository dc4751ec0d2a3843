"""What hosts tell each other of the passes of a group: a gloo connection of their own, which no tensors travel on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, ProcessGroupGloo, Store

from ringattn_comms.agreement import SIZE, Said


class HostChannel:
    """A rank's connection to the other ranks that meet over a store. All ranks make theirs together.

    names: how an error names each rank. together: send a header by one collective call, which costs the host less than
    a message to each rank; then an error cannot name the rank that is missing.

    Raises RuntimeError, after the store's timeout, with the ranks that have not come.
    """

    def __init__(self, store: Store, rank: int, names: Sequence[str], *, together: bool) -> None:
        self._rank, self._names, self._together = rank, names, together
        met: Any = PrefixStore("ringattn agreement", store)
        met.set(str(rank), "here")
        for other, name in enumerate(names):
            try:
                met.wait([str(other)], met.timeout)
            except RuntimeError as error:
                raise RuntimeError(f"{name} has not begun its first call on this group: {error}") from error
        self._gloo: Any = ProcessGroupGloo(met, rank, len(names), met.timeout)

    def say(self, header: bytes) -> Said:
        own = torch.frombuffer(bytearray(header), dtype=torch.uint8)
        # Read as bytes later: not through NumPy, which PyTorch does not require.
        memory = bytearray(len(self._names) * SIZE)
        arriving = torch.frombuffer(memory, dtype=torch.uint8)
        if self._together:
            return _Collective(self._gloo._allgather_base(arriving, own), own, memory)
        others = [rank for rank in range(len(self._names)) if rank != self._rank]
        rows = arriving.view(-1, SIZE)
        rows[self._rank] = own
        receives = {self._names[rank]: self._gloo.recv([rows[rank]], rank, 0) for rank in others}
        return _Messages(receives, [self._gloo.send([own], rank, 0) for rank in others], own, memory)


class _Collective:
    def __init__(self, work: dist.Work, own: Tensor, memory: bytearray) -> None:
        self._work, self._own, self._memory = work, own, memory

    def ready(self) -> bool:
        return self._work.is_completed()

    def wait(self) -> Sequence[bytes]:
        try:
            self._work.wait()
        except RuntimeError as error:
            raise RuntimeError(f"A rank of this group did not begin the same pass as the others: {error}") from error
        return _rows(self._memory)


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
    return [bytes(memory[start : start + SIZE]) for start in range(0, len(memory), SIZE)]
