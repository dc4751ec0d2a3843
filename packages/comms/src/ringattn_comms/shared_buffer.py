"""The memory of one-sided transports: on every rank of a group a buffer that every rank can address."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

Move = tuple[Tensor, Tensor]
"""Where something goes, and what: of one shape; the dtype is that of the place."""

_ALIGNMENT = 256  # bytes: enough for every GPU kernel and copy engine
_MOST_TENSORS = 4096  # views of a buffer that are kept, because to make one costs the host more than to look it up


class SharedBuffer(ABC):
    """A buffer of the same size on every rank."""

    def __init__(self) -> None:
        self._tensors = dict[tuple[int, BufferSlot], Tensor]()

    @abstractmethod
    def memory(self, rank: int) -> Tensor:
        """The bytes of a rank, uint8."""

    @abstractmethod
    def barrier(self) -> None:
        """What any rank does after this, on the stream that is current, comes after what all ranks did before it."""

    def tensor(self, rank: int, slot: BufferSlot) -> Tensor:
        """The tensor at some place of a rank's memory."""
        key = rank, slot
        if key not in self._tensors:
            if len(self._tensors) == _MOST_TENSORS:
                self._tensors.clear()
            with torch.inference_mode(False):  # It is used again where there is no such mode.
                self._tensors[key] = (
                    self.memory(rank)[slot.start : slot.start + slot.size].view(slot.dtype).view(slot.shape)
                )
        return self._tensors[key]

    def exchange(self, first: Sequence[Move], then: Sequence[Move], *, small: bool) -> None:
        """Moves, a barrier, and further moves. All ranks call this together, with the same `small` and any moves."""
        copy(first)
        self.barrier()
        copy(then)


def copy(moves: Sequence[Move]) -> None:
    """Do them one after the other."""
    for to, source in moves:
        to.copy_(source, non_blocking=True)


class SharedBuffers(ABC):
    """The shared buffer of a group: made once, replaced by a larger one when needed, used by one layer after another.

    Passes on two streams of a GPU would write over each other's keys, unless an event keeps them apart.
    """

    def __init__(self) -> None:
        self._shared_buffer: SharedBuffer | None = None
        self._size = 0

    @abstractmethod
    def allocate(self, size: int) -> SharedBuffer:
        """A buffer of `size` bytes on every rank; all ranks call this together, with the same size."""

    def at_least(self, size: int) -> SharedBuffer:
        """The buffer, if it has `size` bytes or more, or else a new one of `size` bytes."""
        if self._shared_buffer is None or self._size < size:
            self._shared_buffer, self._size = self.allocate(size), size
        return self._shared_buffer


class Region:
    """Tensors laid out one after another in a shared buffer, in the same way on every rank."""

    def __init__(self) -> None:
        self.end = 0

    def place(self, shape: Sequence[int], dtype: torch.dtype) -> BufferSlot:
        """Room for one more tensor."""
        start = -(-self.end // _ALIGNMENT) * _ALIGNMENT
        slot = BufferSlot(start, tuple(shape), dtype)
        self.end = start + slot.size
        return slot


class BufferSlot(NamedTuple):
    """Where a tensor lies in every rank's memory."""

    start: int  # bytes
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """Its bytes."""
        return prod(self.shape) * self.dtype.itemsize

    def rows(self, rows: range) -> BufferSlot:
        """Where these rows of it lie."""
        row = prod(self.shape[1:]) * self.dtype.itemsize
        return BufferSlot(self.start + rows.start * row, (len(rows), *self.shape[1:]), self.dtype)

    def on(self, shared_buffer: SharedBuffer, rank: int) -> Tensor:
        """The tensor on a rank."""
        return shared_buffer.tensor(rank, self)
