"""Communicators that watch: one through which nothing may pass, and one that notes what passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ringattn_comms.agreement import Said
from ringattn_comms.communicator import Communicator, Work
from ringattn_comms.header import Header


class Echo:
    """What a rank hears that agrees with all others."""

    def __init__(self, header: bytes, size: int) -> None:
        self.rows = [header] * size

    def ready(self) -> bool:
        return True

    def wait(self) -> Sequence[bytes]:
        return self.rows


class Mute(Communicator):
    """A rank of a group in which every call fails the test, once the ranks have agreed on it; they always agree."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size, self.said = rank, size, list[Header]()

    def say(self, header: bytes) -> Echo:
        self.said.append(Header.decode(header))
        return Echo(header, self.size)

    def send_recv(self, sends: Sequence[tuple[int, Tensor]], sources: Sequence[int], like: Tensor) -> Work:
        raise AssertionError(f"rank {self.rank} called send_recv")

    def all_gather(self, x: Tensor) -> Work:
        raise AssertionError(f"rank {self.rank} called all_gather")

    def reduce_scatter(self, x: Tensor) -> Work:
        raise AssertionError(f"rank {self.rank} called reduce_scatter")

    def all_to_all(self, x: Tensor) -> Work:
        raise AssertionError(f"rank {self.rank} called all_to_all")


class Recorded(Communicator):
    """Another communicator, whose calls are added to a list in a form that ranks can compare; headers are not."""

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

    def say(self, header: bytes) -> Said:
        return self._comm.say(header)

    def _note(self, name: str, x: Tensor, *rest: Any) -> None:
        self._calls.append((name, tuple(x.shape), x.dtype, *rest))
