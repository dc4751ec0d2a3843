"""A second stream for copies, concurrent with the one that computes; on a CPU, which has no streams, nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from ringattn_core.run.streams import On, capturing, current


class CopyStream:
    """Runs work concurrently with the main stream of a device: the stream that is current when this is made."""

    def __init__(self, device: torch.device, stream: torch.cuda.Stream | None) -> None:
        self.stream = stream
        self._main = None if stream is None else current(device)

    def after_main(self) -> AbstractContextManager[None]:
        """Work that is submitted inside runs on the copy stream, after all work that the main stream has so far."""
        if self.stream is None or self._main is None:
            return nullcontext()
        self.stream.wait_stream(self._main)
        return On(self.stream, self._main)

    def event(self) -> Callable[[], None]:
        """Inside `after_main`: returns what makes the main stream wait for all work that the copy stream has so far."""
        if self.stream is None or self._main is None:
            return _nothing
        event, main = self.stream.record_event(), self._main
        return lambda: main.wait_event(event)

    def goes_first(self) -> None:
        """Work that the copy stream has so far starts before later work of the main stream.

        A CUDA graph starts all nodes that are ready at once, and an attention kernel that starts first occupies every
        SM. So the main stream sleeps for a cycle here.
        """
        if self.stream is not None and capturing():
            torch.cuda._sleep(1)  # type: ignore[no-untyped-call]

    def keep(self, *tensors: Tensor) -> None:
        """The memory of these tensors is not reused before the copy stream has finished with it."""
        if self.stream is not None:
            for x in tensors:
                x.record_stream(self.stream)


def _nothing() -> None:
    """There is nothing to wait for."""


def new_copy_stream(device: torch.device) -> torch.cuda.Stream | None:
    """A new stream of a device, with a higher priority than the main one; None for a CPU."""
    return torch.cuda.Stream(device, priority=-1) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
