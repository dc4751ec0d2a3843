"""Communicators that watch: one through which nothing may pass, and one that notes what passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ringattn_comms.communicator import Communicator, Work


class Mute(Communicator):
    """A rank of a group in which every call fails the test."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def send_recv(self, sends: Sequence[tuple[int, Tensor]], sources: Sequence[int], like: Tensor) -> Work:
        raise AssertionError(f"rank {self.rank} called send_recv")

    def all_gather(self, x: Tensor) -> Work:
        raise AssertionError(f"rank {self.rank} called all_gather")

    def reduce_scatter(self, x: Tensor) -> Work:
        raise AssertionError(f"rank {self.rank} called reduce_scatter")

    def all_to_all(self, x: Tensor) -> Work:
        raise AssertionError(f"rank {self.rank} called all_to_all")


class Recorded(Communicator):
    """Another communicator, whose calls are added to a list in a form that ranks can compare."""

    def __init__(self, comm: Communicator, calls: list[Any]) -> None:
        self.rank, self.size, self._comm, self._calls = comm.rank, comm.size, comm, calls

    def send_recv(self, sends: Sequence[tuple[int, Tensor]], sources: Sequence[int], like: Tensor) -> Work:
        there = sorted((rank - self.rank) % self.size for rank, _ in sends)
        here = sorted((self.rank - source) % self.size for source in sources)
        self._note("send_recv", like, there, here)
        return self._comm.send_recv(sends, sources, like)

    def all_gather(self, x: Tensor) -> Work:
        self._note("all_gather", x)
        return self._comm.all_gather(x)

    def reduce_scatter(self, x: Tensor) -> Work:
        self._note("reduce_scatter", x)
        return self._comm.reduce_scatter(x)

    def all_to_all(self, x: Tensor) -> Work:
        self._note("all_to_all", x)
        return self._comm.all_to_all(x)

    def _note(self, name: str, x: Tensor, *rest: Any) -> None:
        self._calls.append((name, tuple(x.shape), x.dtype, *rest))
