"""A second stream beside the one that computes; on a CPU, where there are no streams, nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


class Side:
    """Work that goes on beside the main stream of a device."""

    def __init__(self, stream: torch.cuda.Stream | None) -> None:
        self.stream = stream

    def at_once(self) -> AbstractContextManager[object]:
        """What is called inside runs on the side, after all that was asked of the side so far."""
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def after_main(self) -> AbstractContextManager[object]:
        """What is called inside runs on the side, after all that was asked of the main stream so far as well."""
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream())
        return self.at_once()

    def event(self) -> Callable[[], None]:
        """Inside either of these: what lets the main stream wait for all that was asked of the side so far."""
        if self.stream is None:
            return lambda: None
        event = self.stream.record_event()
        return lambda: torch.cuda.current_stream().wait_event(event)

    def keep(self, *tensors: Tensor) -> None:
        """The memory of these is not given to others before the side is done with it."""
        if self.stream is not None:
            for x in tensors:
                x.record_stream(self.stream)


def side_stream(device: torch.device) -> torch.cuda.Stream | None:
    """A new stream beside the main one of a device, ahead of it where both have work; a CPU has none."""
    return torch.cuda.Stream(device, priority=-1) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
