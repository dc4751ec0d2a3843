"""CUDA streams at little cost for the host: PyTorch's own contexts look up the device on every way in and out."""

from __future__ import annotations

from threading import local
from types import TracebackType

import torch


def current(device: torch.device) -> torch.cuda.Stream:
    """The stream that is current on a device."""
    return torch.cuda.current_stream(device.index)


def capturing() -> bool:
    """Is a CUDA graph being captured? Nothing can be asked of other ranks then, or allocated for them."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()  # type: ignore[no-untyped-call]


_THREAD = local()


def set_rank(rank: int) -> None:
    """Say which rank this thread is, where several threads of a process compute at once."""
    _THREAD.rank = rank


def rank_of_thread() -> int:
    """The rank that this thread is among others, or 0."""
    return getattr(_THREAD, "rank", 0)


class On:
    """Inside, a stream is current; afterwards, the one that was before."""

    def __init__(self, stream: torch.cuda.Stream, before: torch.cuda.Stream) -> None:
        self._stream, self._before = stream, before

    def __enter__(self) -> None:
        torch.cuda.set_stream(self._stream)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        torch.cuda.set_stream(self._before)
