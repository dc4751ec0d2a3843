"""A second stream beside the one that computes; on a CPU, where there are no streams, nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from ringattn_core.run.streams import On, capturing, current


class CopyStream:
    """Work that goes on beside the main stream of a device: the one that is current when this is made."""

    def __init__(self, device: torch.device, stream: torch.cuda.Stream | None) -> None:
        self.stream = stream
        self._main = None if stream is None else current(device)

    def after_main(self) -> AbstractContextManager[None]:
        """What is called inside runs on the side, after all that was asked of the main stream so far."""
        if self.stream is None or self._main is None:
            return nullcontext()
        self.stream.wait_stream(self._main)
        return On(self.stream, self._main)

    def event(self) -> Callable[[], None]:
        """Inside `after_main`: what lets the main stream wait for all that was asked of the side so far."""
        if self.stream is None or self._main is None:
            return _nothing
        event, main = self.stream.record_event(), self._main
        return lambda: main.wait_event(event)

    def goes_first(self) -> None:
        """What was asked of the side so far begins before what will be asked of the main stream.

        A CUDA graph begins at once all that is ready, and where attention is a moment ahead it takes every
        multiprocessor. So here the main stream does nothing for that moment.
        """
        if self.stream is not None and capturing():
            torch.cuda._sleep(1)  # type: ignore[no-untyped-call]

    def keep(self, *tensors: Tensor) -> None:
        """The memory of these is not given to others before the side is done with it."""
        if self.stream is not None:
            for x in tensors:
                x.record_stream(self.stream)


def _nothing() -> None:
    """There is nothing to wait for."""


def new_copy_stream(device: torch.device) -> torch.cuda.Stream | None:
    """A new stream beside the main one of a device, ahead of it where both have work; a CPU has none."""
    return torch.cuda.Stream(device, priority=-1) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
