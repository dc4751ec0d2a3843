"""A stand-in for `cupy.cuda.nccl` between processes without GPUs: the same calls on addresses, over gloo.

Ranks are those of the default group. A call is done when it returns; what is inside of a group, when that ends.
"""

from __future__ import annotations

import ctypes
import sys
from itertools import count
from types import ModuleType

import torch
import torch.distributed as dist
from torch import Tensor

# The order of ncclDataType_t in nccl.h; unsigned ones of 4 and 8 bytes are left out.
_DTYPES = {
    0: torch.int8,
    1: torch.uint8,
    2: torch.int32,
    4: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    9: torch.bfloat16,
}
_sends: list[tuple[int, Tensor]] = []
_receives: list[tuple[int, Tensor]] = []
_numbers = count()
available = True


def install() -> None:
    """Let this process find it where CuPy would be."""
    cupy, cuda = ModuleType("cupy"), ModuleType("cupy.cuda")
    cupy.cuda, cuda.nccl = cuda, sys.modules[__name__]  # type: ignore[attr-defined]
    sys.modules |= {"cupy": cupy, "cupy.cuda": cuda, "cupy.cuda.nccl": cuda.nccl}


def get_unique_id() -> tuple[int, ...]:
    """Signed bytes, as CuPy has them, and others each time."""
    first = next(_numbers)
    return tuple((first + place) % 256 - 128 for place in range(128))


def groupStart() -> None:  # noqa: N802 - CuPy's names, here and below
    assert not _sends and not _receives


def groupEnd() -> None:  # noqa: N802
    rank = dist.get_rank()
    to_self, from_self = ([x for peer, x in calls if peer == rank] for calls in (_sends, _receives))
    for there, here in zip(from_self, to_self, strict=True):
        there.copy_(here)
    calls = [dist.P2POp(dist.irecv, x, peer) for peer, x in _receives if peer != rank]
    calls += [dist.P2POp(dist.isend, x, peer) for peer, x in _sends if peer != rank]
    for work in dist.batch_isend_irecv(calls) if calls else []:
        work.wait()
    _sends.clear()
    _receives.clear()


class NcclCommunicator:
    def __init__(self, ndev: int, commId: tuple[int, ...], rank: int) -> None:  # noqa: N803
        assert (ndev, rank) == (dist.get_world_size(), dist.get_rank())
        assert len(commId) == 128
        everyone: list[object] = [None] * ndev
        dist.all_gather_object(everyone, commId)
        assert len(set(everyone)) == 1, "the ranks met under different names"
        self.id = commId

    def send(self, sendbuf: int, count: int, datatype: int, peer: int, stream: int) -> None:
        _sends.append((peer, _memory(sendbuf, count, datatype)))

    def recv(self, recvbuf: int, count: int, datatype: int, peer: int, stream: int) -> None:
        _receives.append((peer, _memory(recvbuf, count, datatype)))

    def allGather(self, sendbuf: int, recvbuf: int, count: int, datatype: int, stream: int) -> None:  # noqa: N802
        size = dist.get_world_size()
        parts = list(_memory(recvbuf, count * size, datatype).view(size, count))
        dist.all_gather(parts, _memory(sendbuf, count, datatype))

    def reduceScatter(  # noqa: N802
        self, sendbuf: int, recvbuf: int, recvcount: int, datatype: int, op: int, stream: int
    ) -> None:
        assert op == 0, "0 is ncclSum"
        size = dist.get_world_size()
        total = _memory(sendbuf, recvcount * size, datatype).clone()
        dist.all_reduce(total)
        _memory(recvbuf, recvcount, datatype).copy_(total.view(size, recvcount)[dist.get_rank()])


def _memory(address: int, count: int, datatype: int) -> Tensor:
    assert address and count, "NCCL is not asked to move nothing"
    dtype = _DTYPES[datatype]
    return torch.frombuffer((ctypes.c_char * (count * dtype.itemsize)).from_address(address), dtype=dtype)
