"""What a communicator is: the few collective calls that transports are made of, each of them asynchronous.

All ranks of a group make the same calls in the same order. A tensor that was handed in may be changed again only after
the call's `Work.wait` has returned.
"""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import Any, Protocol

import torch
from torch import Tensor

from ringattn_comms.agreement import Agreement, Said
from ringattn_comms.header import SIZE
from ringattn_comms.shared_buffer import SharedBuffers


class Work(Protocol):
    """A call under way."""

    def wait(self) -> Tensor:
        """What arrived. On a GPU only the current stream waits, the one that the call was made on; not the host."""
        ...


class Communicator(ABC):
    """One rank's end of a group. Ranks are numbered within the group, 0 to `size` - 1."""

    rank: int
    size: int

    @abstractmethod
    def send_recv(self, sends: Sequence[tuple[int, Tensor]], sources: Sequence[int], like: Tensor) -> Work:
        """Send each tensor to its rank and receive one of the shape of `like` from every source: (sources, *shape).

        Between two ranks messages arrive in the order in which they were sent. A rank may be named once on each side,
        and is never the own one.
        """

    @abstractmethod
    def all_gather(self, x: Tensor) -> Work:
        """Every rank's x, in rank order: (size, *x.shape)."""

    @abstractmethod
    def reduce_scatter(self, x: Tensor) -> Work:
        """The sum over ranks of x[rank], for x of shape (size, ...)."""

    @abstractmethod
    def all_to_all(self, x: Tensor) -> Work:
        """x[i] goes to rank i; what arrives has x's shape, in rank order."""

    def shared_buffers(self, device: torch.device) -> SharedBuffers | None:
        """Memory that the ranks' devices can address of each other, where there is any."""
        return None

    @cached_property
    def agreement(self) -> Agreement:
        """How the ranks of this group say what they are about to do, before each pass."""
        return Agreement(self.rank, self.say)

    def say(self, header: bytes) -> Said:
        """Send a header to all ranks and receive theirs (see `Agreement`): by `all_gather` of a tensor on the CPU.

        A group without CPU tensors has another way.
        """
        return _Gathered(self.all_gather(torch.frombuffer(bytearray(header.ljust(SIZE)), dtype=torch.uint8)))

    def all_gather_object(self, x: object) -> list[Any]:
        """Every rank's x, in rank order. All ranks ask together, and trust each other: it is pickled."""
        message = torch.frombuffer(bytearray(pickle.dumps(x)), dtype=torch.uint8)
        lengths = self.all_gather(torch.tensor([len(message)])).wait().flatten().tolist()
        padded = message.new_zeros(max(lengths))
        padded[: len(message)] = message
        rows = self.all_gather(padded).wait()
        return [pickle.loads(bytes(row[:length].tolist())) for row, length in zip(rows, lengths, strict=True)]

    @property
    def alive(self) -> bool:
        """Does the group still exist? It may have been destroyed, and another one made."""
        return True

    def waits(self, device: torch.device) -> bool:
        """Does the host wait for the headers of all ranks before each pass over tensors of a device?

        Else it goes on where they have agreed before, and compares them one pass later.
        """
        return True

    def second_communicator(self, device: torch.device) -> Communicator:
        """Another end of the same group, whose calls on a device do not queue behind this one's; itself if none do.

        It is the same one each time. All ranks ask for the first time together.
        """
        return self

    def shift(self, x: Tensor, by: int) -> Work:
        """x goes `by` ranks on; what arrives has its shape, from the rank as far behind."""
        if by % self.size == 0:
            return Done(x)
        work = self.send_recv([((self.rank + by) % self.size, x)], [(self.rank - by) % self.size], x)
        return Then(work, itemgetter(0))


@dataclass(frozen=True, slots=True)
class _Gathered:
    """Headers as rows of a tensor."""

    work: Work

    def ready(self) -> bool:
        return False

    def wait(self) -> Sequence[bytes]:
        return [bytes(row.tolist()).rstrip() for row in self.work.wait()]


@dataclass(frozen=True, slots=True)
class Done:
    """A call that had nothing to wait for."""

    result: Tensor

    def wait(self) -> Tensor:
        return self.result


@dataclass(frozen=True, slots=True)
class Then:
    """A call under way, and what is made of the tensor that arrives."""

    work: Work
    make: Callable[[Tensor], Tensor]

    def wait(self) -> Tensor:
        return self.make(self.work.wait())


class SingleRank(Communicator):
    """A group of one rank, without any library below it."""

    rank, size = 0, 1

    def send_recv(self, sends: Sequence[tuple[int, Tensor]], sources: Sequence[int], like: Tensor) -> Work:
        raise ValueError(f"A group of one rank has no other to send to or receive from, got {len(sources)} sources.")

    def all_gather(self, x: Tensor) -> Work:
        return Done(x[None])

    def reduce_scatter(self, x: Tensor) -> Work:
        return Done(x[0])

    def all_to_all(self, x: Tensor) -> Work:
        return Done(x)
