"""Timing several things against each other on a GPU: interleaved, so that a drifting clock meets all of them alike.

Each time in another order: a GPU's clock is lower for a while after heavy work, and what always came next had the worse
of it by 3 %.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from random import Random
from statistics import median
from time import perf_counter
from typing import NamedTuple

import torch
import torch.distributed as dist

# Cycles for a call, some 8 ms: what most hosts need to ask for one. Not more: links seem to sleep meanwhile, and with
# 20 ms a call of 0.44 ms on two H200s took 0.48 (dev/LOG.md, 2026-11-26).
HEAD_START = 16_000_000


def interleaved(cases: Mapping[str, Callable[[], object]], repeats: int, warm_up: int = 2) -> dict[str, float]:
    """The median time of each case in milliseconds, one run of each in turn, `repeats` times.

    The GPU begins when its host has asked for all of a case, so that a slow host is none of its time.
    """
    spans: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in cases}
    for turn in range(warm_up + repeats):
        for name in _mixed(cases, turn):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            torch.cuda._sleep(HEAD_START)
            begin.record()
            cases[name]()
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
    head_start: int = HEAD_START,
) -> dict[str, Times]:
    """The same on every rank of the default group: of each run the slowest rank's time, and of those the median.

    All ranks begin a case together and call it for some `span` milliseconds, at most `most` times; the mean call
    counts. The GPU begins when the host has asked for all of it, and what the host needs is told apart: where that is
    more than what the GPU needs, a program that does nothing else waits for its host, and a CUDA graph is the cure.
    `head_start`: the cycles that its host gets for each call.
    """
    alone = torch.tensor(list(interleaved(cases, repeats=1, warm_up=1).values()), device="cuda")
    dist.all_reduce(alone, dist.ReduceOp.MAX)  # All ranks make the same number of calls.
    calls = {name: max(1, min(most, round(span / time))) for name, time in zip(cases, alone.tolist(), strict=True)}
    flag, found = torch.zeros(1, device="cuda"), {}
    for turn in range(repeats):
        for name in _mixed(cases, turn):
            wake_together(flag, calls[name] * head_start)
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            asked = perf_counter()
            for _ in range(calls[name]):
                cases[name]()
            end.record()
            found[turn, name] = begin, end, (perf_counter() - asked) * 1e3
    torch.cuda.synchronize()

    def per_call(turn: int, name: str) -> tuple[float, float]:
        begin, end, host = found[turn, name]
        return begin.elapsed_time(end) / calls[name], host / calls[name]

    times = torch.tensor([[per_call(turn, name) for name in cases] for turn in range(repeats)], device="cuda")
    dist.all_reduce(times, dist.ReduceOp.MAX)
    return {name: Times(*median) for name, median in zip(cases, times.median(dim=0).values.tolist(), strict=True)}


def wake_together(flag: torch.Tensor, head_start: int = HEAD_START) -> None:
    """Hold the GPUs of all ranks back for so many cycles, and let them go on at once; `flag` is any tensor there."""
    torch.cuda.synchronize()
    torch.cuda._sleep(head_start)
    dist.all_reduce(flag)  # Clocks differ, so that the ranks wake up at different times.


def _mixed(names: Iterable[str], turn: int) -> list[str]:
    """In an order of this turn, the same on all ranks."""
    ordered = list(names)
    return Random(turn).sample(ordered, len(ordered))
