"""Symmetric memory of torch.distributed: GPUs of one NVLink domain address each other's memory.

NVLink multicast is not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ringattn_comms.backends.objects import gather_objects
from ringattn_comms.shared_buffer import Move, SharedBuffer, SharedBuffers
from ringattn_core.run.accumulate import has_triton
from ringattn_core.run.streams import capturing


class SymmetricSharedBuffers(SharedBuffers):
    """Windows of a process group whose GPUs reach each other."""

    def __init__(self, group: dist.ProcessGroup | None, device: torch.device) -> None:
        super().__init__()
        self._group, self._device = group, device
        self._captured = set[SharedBuffer]()  # A CUDA graph writes to its buffer long after a larger one was made.

    def at_least(self, size: int) -> SharedBuffer:
        shared_buffer = super().at_least(size)
        if capturing():
            self._captured.add(shared_buffer)
        return shared_buffer

    def allocate(self, size: int) -> SharedBuffer:
        import torch.distributed._symmetric_memory as symmetric

        if capturing():
            raise RuntimeError(
                f"A CUDA graph is being captured, and this call needs {size} bytes that all ranks can address, which "
                "cannot be had meanwhile: run the model once with these shapes before you capture it."
            )
        # Behind what was asked for a bell for each rank, which has not been rung when the ranks meet.
        size = -(-size // 8) * 8 + 8 * dist.get_world_size(self._group)
        own = symmetric.empty(size, dtype=torch.uint8, device=self._device).zero_()
        # The buffer that this one replaces is freed when all ranks meet in `rendezvous`: none may still be reading it.
        torch.cuda.synchronize(self._device)
        group = self._group or dist.group.WORLD
        assert group is not None, "a buffer was asked for, so there is a group"
        return _SymmetricSharedBuffer(own, symmetric.rendezvous(own, group=group))


class _SymmetricSharedBuffer(SharedBuffer):
    def __init__(self, own: Tensor, handle: Any) -> None:
        super().__init__()
        self._handle = handle
        self._memories: list[Tensor] = [
            handle.get_buffer(rank, own.shape, own.dtype) for rank in range(handle.world_size)
        ]
        self._own = own  # The memory lives as long as this tensor does.
        self._signals = tuple(memory[-8 * handle.world_size :].view(torch.int64) for memory in self._memories)

    def memory(self, rank: int) -> Tensor:
        return self._memories[rank]

    def barrier(self) -> None:
        self._handle.barrier(channel=0)

    def exchange(self, first: Sequence[Move], then: Sequence[Move], *, small: bool) -> None:
        if small and has_triton():
            from ringattn_comms.backends.exchange import exchange

            exchange(first, then, self._signals, self._handle.rank)
        else:
            super().exchange(first, then, small=small)


def unreachable(group: dist.ProcessGroup | None, device: torch.device) -> str | None:
    """Why the ranks of a group cannot address each other's memory; None if they can. All ranks ask, and all agree."""
    if device.type != "cuda":
        return f"symmetric memory is for GPUs, and the tensors are on {device.type}"
    places = gather_objects(group, (_host(), device.index))
    if len({host for host, _ in places}) > 1:
        return "the ranks are on several hosts"
    far = [index for _, index in places if index != device.index and not _reaches(device.index, index)]
    for (_, index), others in zip(places, gather_objects(group, far), strict=True):
        if others:
            return f"GPU {index} has no peer access to GPUs {others}"
    return None


def _host() -> str:
    from pathlib import Path
    from socket import gethostname

    boot = Path("/proc/sys/kernel/random/boot_id")  # Containers of one host may differ in their name.
    return boot.read_text().strip() if boot.exists() else gethostname()


def _reaches(device: int, peer: int) -> bool:
    return peer < torch.cuda.device_count() and torch.cuda.can_device_access_peer(device, peer)
