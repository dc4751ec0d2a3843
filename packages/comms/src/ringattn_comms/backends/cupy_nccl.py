"""NCCL through CuPy: a separate communicator and stream, which share no queue with those of torch.distributed.

It needs a store and no process group. It has no shared buffers: its transports send messages.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import index
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, Store

from ringattn_comms.agreement import Said
from ringattn_comms.backends.host_channel import HostChannel
from ringattn_comms.communicator import Communicator, Work
from ringattn_comms.copy_stream import CopyStream, new_copy_stream

# What nccl.h calls them; CuPy has no name for bfloat16.
_NUMBERS = {
    torch.int8: 0,
    torch.uint8: 1,
    torch.int32: 2,
    torch.int64: 4,
    torch.float16: 6,
    torch.float32: 7,
    torch.float64: 8,
    torch.bfloat16: 9,
}
_SUM = 0


@dataclass(frozen=True, slots=True)
class _Arriving:
    """What the stream of a communicator was asked for."""

    result: Tensor
    arrived: Callable[[], None]

    def wait(self) -> Tensor:
        self.arrived()
        return self.result


class CupyNccl(Communicator):
    """One of `size` ranks that meet over a store, on the GPU that is current when it is made.

    All ranks construct it together. Raises ImportError where CuPy is missing.
    """

    def __init__(self, store: Store, rank: int, size: int) -> None:
        nccl = _nccl()
        self.rank, self.size, self._store, self._nccl = rank, size, store, nccl
        # The n-th one that every rank makes over a store are one group.
        self._key = key = f"ringattn/cupy_nccl/{store.add(f'ringattn/cupy_nccl/made by {rank}', 1)}"
        if rank == 0:
            store.set(key, _written(nccl.get_unique_id()))
        self._comm = nccl.NcclCommunicator(size, _read(store.get(key)), rank)
        on_gpu = torch.cuda.is_available()
        self._device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
        self._stream = new_copy_stream(self._device)
        self._second_communicator: CupyNccl | None = None

    @classmethod
    def of(cls, group: dist.ProcessGroup | None = None) -> CupyNccl:
        """The ranks of a process group, of any backend; None is the default group. They meet over its store."""
        group = group or dist.group.WORLD
        assert group is not None, "torch.distributed was initialised"
        return cls(group.get_group_store(), group.rank(), group.size())

    @cached_property
    def _host(self) -> HostChannel:
        names = [f"rank {rank}" for rank in range(self.size)]
        return HostChannel(PrefixStore(self._key, self._store), self.rank, names, waits=False)

    def say(self, header: bytes) -> Said:
        return self._host.say(header)

    def waits(self, device: torch.device) -> bool:
        return device.type != "cuda"

    def second_communicator(self, device: torch.device) -> Communicator:
        if self._second_communicator is None:
            self._second_communicator = CupyNccl(self._store, self.rank, self.size)
        return self._second_communicator

    def send_recv(self, sends: Sequence[tuple[int, Tensor]], sources: Sequence[int], like: Tensor) -> Work:
        sent = [(rank, x.contiguous()) for rank, x in sends]
        arriving = like.new_empty((len(sources), *like.shape))
        return self._exchange(sent, list(zip(sources, arriving, strict=True)), arriving)

    def all_gather(self, x: Tensor) -> Work:
        x = x.contiguous()
        arriving = x.new_empty((self.size, *x.shape))
        return self._call(
            lambda stream: self._comm.allGather(x.data_ptr(), arriving.data_ptr(), x.numel(), _number(x), stream),
            [x],
            arriving,
        )

    def reduce_scatter(self, x: Tensor) -> Work:
        x = x.contiguous()
        arriving, number = torch.empty_like(x[0]), _number(x)
        return self._call(
            lambda stream: self._comm.reduceScatter(
                x.data_ptr(), arriving.data_ptr(), arriving.numel(), number, _SUM, stream
            ),
            [x],
            arriving,
        )

    def all_to_all(self, x: Tensor) -> Work:
        x = x.contiguous()
        arriving = torch.empty_like(x)
        return self._exchange(list(enumerate(x)), list(enumerate(arriving)), arriving)

    def _exchange(
        self, sends: Sequence[tuple[int, Tensor]], receives: Sequence[tuple[int, Tensor]], arriving: Tensor
    ) -> Work:
        """Messages in both directions at once, as one call of NCCL, in which no order of theirs can block."""

        def call(stream: int) -> None:
            self._nccl.groupStart()
            for rank, x in receives:
                self._comm.recv(x.data_ptr(), x.numel(), _number(x), rank, stream)
            for rank, x in sends:
                self._comm.send(x.data_ptr(), x.numel(), _number(x), rank, stream)
            self._nccl.groupEnd()

        return self._call(call, [x for _, x in sends], arriving)

    def _call(self, call: Callable[[int], None], sent: Sequence[Tensor], arriving: Tensor) -> Work:
        """Ask NCCL for something on the side, when the main stream has made what is sent."""
        side = CopyStream(self._device, self._stream)
        with side.after_main():
            if any(x.numel() for x in (*sent, arriving)):  # Messages of nothing are not sent: there is no address.
                call(self._stream.cuda_stream if self._stream else 0)
            arrived = side.event()
        # Their memory came from the main stream, which would give it to others sooner than NCCL is done with it.
        side.keep(*sent, arriving)
        return _Arriving(arriving, arrived)


def _written(unique_id: bytes | tuple[int, ...]) -> str:
    """What rank 0 leaves in the store: numbers, never anything that runs when it is read."""
    return json.dumps([type(unique_id).__name__, [*unique_id]])


def _read(written: bytes) -> bytes | tuple[int, ...]:
    """The inverse: bytes or signed numbers, by CuPy's version."""
    try:
        kind, numbers = json.loads(written)
        return bytes(numbers) if kind == "bytes" else tuple(map(index, numbers))
    except (TypeError, ValueError):
        raise ValueError(
            f"The store holds {written[:60]!r} where rank 0 writes NCCL's unique id: something else has written to it."
        ) from None


def _number(x: Tensor) -> int:
    if x.dtype not in _NUMBERS:
        raise TypeError(f"NCCL has no number for {x.dtype}; it knows {', '.join(map(str, _NUMBERS))}.")
    return _NUMBERS[x.dtype]


def _nccl() -> ModuleType | Any:
    try:
        from cupy.cuda import nccl
    except ImportError as error:
        raise ImportError(
            "CupyNccl needs CuPy, which is not installed: pip install 'ringattn-comms[cupy]'"
            " for CUDA 13, or cupy-cuda12x for CUDA 12."
        ) from error
    if not nccl.available:
        raise ImportError("CupyNccl needs NCCL, which CuPy did not find: pip install nvidia-nccl-cu13 (or -cu12).")
    return nccl
