"""Timing several things against each other on a GPU: interleaved, so that a drifting clock meets all of them alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median
from time import perf_counter
from typing import NamedTuple

import torch
import torch.distributed as dist

_HEAD_START = 16_000_000  # cycles for a call, some 8 ms: what a slow host needs to ask for one


def interleaved(cases: Mapping[str, Callable[[], object]], repeats: int, warm_up: int = 2) -> dict[str, float]:
    """The median time of each case in milliseconds, one run of each in turn, `repeats` times.

    The GPU begins when its host has asked for all of a case, so that a slow host is none of its time.
    """
    spans: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in cases}
    for turn in range(warm_up + repeats):
        for name, case in cases.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            torch.cuda._sleep(_HEAD_START)
            begin.record()
            case()
            end.record()
            if turn >= warm_up:
                spans[name].append((begin, end))
    torch.cuda.synchronize()
    return {name: median(begin.elapsed_time(end) for begin, end in found) for name, found in spans.items()}


class Times(NamedTuple):
    """Milliseconds of one call."""

    gpu: float  # of the slowest rank, from the first of its work to the last
    host: float  # until a call has asked for all its work


def interleaved_ranks(
    cases: Mapping[str, Callable[[], object]],
    repeats: int,
    span: float = 8.0,
    most: int = 4,
    head_start: int = _HEAD_START,
) -> dict[str, Times]:
    """The same on every rank of the default group: of each run the slowest rank's time, and of those the median.

    All ranks begin a case together and call it for some `span` milliseconds, at most `most` times; the mean call
    counts. The GPU begins when the host has asked for all of it, and what the host needs is told apart: where that is
    more than what the GPU needs, a program that does nothing else waits for its host, and a CUDA graph is the cure.
    `head_start`: the cycles that its host gets for each call.
    """
    alone = torch.tensor(list(interleaved(cases, repeats=2).values()), device="cuda")
    dist.all_reduce(alone, dist.ReduceOp.MAX)  # All ranks make the same number of calls.
    calls = {name: max(1, min(most, round(span / time))) for name, time in zip(cases, alone.tolist(), strict=True)}
    flag, found = torch.zeros(1, device="cuda"), []
    for _ in range(repeats):
        for name, case in cases.items():
            torch.cuda.synchronize()
            torch.cuda._sleep(calls[name] * head_start)
            dist.all_reduce(flag)  # Clocks differ, so that the ranks wake up at different times.
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            asked = perf_counter()
            for _ in range(calls[name]):
                case()
            end.record()
            found.append((begin, end, (perf_counter() - asked) * 1e3, calls[name]))
    torch.cuda.synchronize()
    times = torch.tensor([(begin.elapsed_time(end) / n, host / n) for begin, end, host, n in found], device="cuda")
    dist.all_reduce(times, dist.ReduceOp.MAX)
    medians = times.view(repeats, len(cases), 2).median(dim=0).values.tolist()
    return {name: Times(*median) for name, median in zip(cases, medians, strict=True)}
