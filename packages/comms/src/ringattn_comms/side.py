"""A second stream beside the one that computes; on a CPU, where there are no streams, nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor


class Side:
    """Work that goes on beside the main stream of a device."""

    def __init__(self, device: torch.device) -> None:
        self.stream = _stream(device) if device.type == "cuda" else None

    @contextmanager
    def after_main(self) -> Iterator[None]:
        """What is called inside runs on the side, after all that was asked of the main stream so far."""
        if self.stream is None:
            yield
            return
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            yield

    def event(self) -> Callable[[], None]:
        """Inside `after_main`: what lets the main stream wait for all that was asked of the side so far."""
        if self.stream is None:
            return lambda: None
        event = self.stream.record_event()
        return lambda: torch.cuda.current_stream().wait_event(event)

    def keep(self, *tensors: Tensor) -> None:
        """The memory of these is not given to others before the side is done with it."""
        if self.stream is not None:
            for x in tensors:
                x.record_stream(self.stream)


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]
