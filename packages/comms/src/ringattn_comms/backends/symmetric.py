"""Symmetric memory of torch.distributed: GPUs of one NVLink domain address each other's memory.

NVLink multicast is not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Thread
from time import sleep
from typing import Any
from weakref import ref

import torch
import torch.distributed as dist
from torch import Tensor

from ringattn_comms.backends.objects import gather_objects
from ringattn_comms.shared_buffer import Move, SharedBuffer, SharedBuffers, copy
from ringattn_core.run.accumulate import has_triton
from ringattn_core.run.streams import capturing

_RELEASES = 4000  # times in some milliseconds each: hosts may be many barriers ahead of their GPU


class SymmetricSharedBuffers(SharedBuffers):
    """Shared buffers of a process group whose GPUs can address each other's memory."""

    def __init__(self, group: dist.ProcessGroup | None, device: torch.device) -> None:
        super().__init__()
        # Weakly: what is made once for a group, such as this, is kept as long as the group lives.
        self._group, self._device = None if group is None else ref(group), device
        self._captured = set[SharedBuffer]()  # A CUDA graph writes to its buffer long after a larger one was made.
        self._released = False

    def at_least(self, size: int) -> SharedBuffer:
        if self._released:
            raise RuntimeError(
                "The ranks of this group have fallen out of step, and a pass went on without the others' signals: its "
                "shared buffers cannot be used again. Make a new process group."
            )
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
        group = dist.group.WORLD if self._group is None else self._group()
        assert group is not None, "a buffer was asked for, so there is a group"
        # Behind what was asked for a bell for each rank, which has not been rung when the ranks meet.
        size = -(-size // 8) * 8 + 8 * dist.get_world_size(group)
        own = symmetric.empty(size, dtype=torch.uint8, device=self._device).zero_()
        # The buffer that this one replaces is freed when all ranks meet in `rendezvous`: none may still be reading it.
        torch.cuda.synchronize(self._device)
        return _SymmetricSharedBuffer(own, symmetric.rendezvous(own, group=group))

    def release(self) -> None:
        """Let this rank's GPU go on, for some seconds, without the signals of ranks that do not send them.

        What it computes meanwhile is wrong: call this only where an error is about to be raised.
        """
        self._released = True
        for shared_buffer in {self._shared_buffer, *self._captured}:
            if isinstance(shared_buffer, _SymmetricSharedBuffer):
                Thread(target=shared_buffer.release, daemon=True).start()


class _SymmetricSharedBuffer(SharedBuffer):
    def __init__(self, own: Tensor, handle: Any) -> None:
        super().__init__()
        self._handle = handle
        self._memories: list[Tensor] = [
            handle.get_buffer(rank, own.shape, own.dtype) for rank in range(handle.world_size)
        ]
        self._own = own  # The memory lives as long as this tensor does.
        self._signals = tuple(memory[-8 * handle.world_size :].view(torch.int64) for memory in self._memories)
        # Made now: while a kernel waits, a GPU may not get to what it does for the first time.
        self._forged, self._stream = self._forged_signals(), torch.cuda.Stream(own.device)  # type: ignore[no-untyped-call]

    def memory(self, rank: int) -> Tensor:
        return self._memories[rank]

    def barrier(self) -> None:
        self._handle.barrier(channel=0)

    def release(self) -> None:
        """Send this rank the signals that it may wait for, as if they came from the others, again and again."""
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            for _ in range(_RELEASES):
                copy(self._forged)
                self._stream.synchronize()
                sleep(0.001)

    def _forged_signals(self) -> list[Move]:
        """Copies from the host, for which a copy engine is enough: kernels may have to wait for the one that waits."""
        rank, size = self._handle.rank, self._handle.world_size
        pads = [self._handle.get_signal_pad(other, (size,), torch.int32) for other in range(size)]
        many, arrived, gone = (
            torch.tensor([value], dtype=dtype).pin_memory()
            for value, dtype in ((2**62, torch.int64), (1, torch.int32), (0, torch.int32))
        )
        forged = list[Move]()
        for other in range(size):
            if other != rank:
                forged.append((self._signals[rank][other : other + 1], many))  # of `exchange`
                # PyTorch's barrier: a rank waits for a 1 of each other in its pad, and before for a 0 in theirs.
                forged.append((pads[rank][other : other + 1], arrived))
                forged.append((pads[other][rank : rank + 1], gone))
        return forged

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
