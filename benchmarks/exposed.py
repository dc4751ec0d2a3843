"""How long a GPU does nothing but communicate: keys or gradients are on their way, and nothing hides it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from timing import Times, wake_together
from torch.profiler import ProfilerActivity, profile

# In the names of NCCL's kernels, of copies between GPUs, and of what PyTorch's symmetric memory and ours wait in.
_COMMUNICATES = ("nccl", "ptop", "barrier", "exchange")


class Span(NamedTuple):
    """A kernel or a copy, in microseconds."""

    start: float
    end: float
    name: str

    @property
    def communicates(self) -> bool:
        return any(part in self.name.lower() for part in _COMMUNICATES)


def exposed(cases: Mapping[str, Callable[[], object]], times: Mapping[str, Times], calls: int = 2) -> dict[str, float]:
    """Milliseconds of a call of each case in which this rank's GPU only communicates, the mean of so many calls.

    All ranks of the default group have to ask at once. `times` are those that the cases took without a profiler.
    """
    flag = torch.zeros(1, device="cuda")
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        for name, case in cases.items():
            for _ in range(calls):
                wake_together(flag, 2 * times[name].host + 1.0)  # A profiler keeps the host busy too.
                case()
        torch.cuda.synchronize()
    found = [only_communicating(call) for call in split(spans(trace))]
    if len(found) != len(cases) * calls:
        raise RuntimeError(f"The profiler shows {len(found)} calls of {len(cases) * calls}: one begins with a sleep.")
    return {name: sum(found[turn * calls :][:calls]) / calls / 1e3 for turn, name in enumerate(cases)}


def spans(trace: profile) -> list[Span]:
    """What ran on the GPU while a profiler looked, in order."""
    return sorted(
        Span(event.time_range.start, event.time_range.end, event.name)
        for event in trace.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    )


def split(spans: Iterable[Span]) -> Iterator[list[Span]]:
    """The spans of each call, which are those behind a sleep and the all-reduce that follows it."""
    found: list[Span] | None = None
    for span in sorted(spans):
        if "spin" in span.name or "sleep" in span.name:
            if found is not None:
                yield found[1:]
            found = []
        elif found is not None:
            found.append(span)
    if found is not None:
        yield found[1:]


def only_communicating(spans: Iterable[Span]) -> float:
    """How long some of the spans communicate and none does anything else."""
    borders = sorted(
        (time, change, span.communicates) for span in spans for time, change in ((span.start, 1), (span.end, -1))
    )
    running, total, before = {True: 0, False: 0}, 0.0, 0.0
    for time, change, communicates in borders:
        if running[True] and not running[False]:
            total += time - before
        running[communicates] += change
        before = time
    return total
