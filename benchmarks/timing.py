"""Timing several things against each other on a GPU: interleaved, so that a drifting clock meets all of them alike.

Each time in another order: a GPU's clock is lower for a while after heavy work, and what always came next had the worse
of it by 3 %. The GPU begins when its host has asked for all of a case, so that a slow host is none of its time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from random import Random
from statistics import median
from time import perf_counter
from typing import NamedTuple

import torch
import torch.distributed as dist


class Times(NamedTuple):
    """Milliseconds of one call."""

    gpu: float  # of the slowest rank, from the first of its work to the last
    host: float  # until a call has asked for all its work


def interleaved(cases: Mapping[str, Callable[[], object]], repeats: int, warm_up: int = 2) -> dict[str, Times]:
    """The medians of each case, one run of each in turn, `repeats` times."""
    runs: dict[str, list[_Run]] = {name: [] for name in cases}
    for turn in range(warm_up + repeats):
        for name in _mixed(cases, turn):
            torch.cuda.synchronize()
            sleep(_head_start(runs[name]))
            runs[name].append(_Run(cases[name]))
    torch.cuda.synchronize()
    times = {name: [run.times for run in of[warm_up:]] for name, of in runs.items()}
    return {name: Times(*(median(each) for each in zip(*of, strict=True))) for name, of in times.items()}


def interleaved_ranks(
    cases: Mapping[str, Callable[[], object]], repeats: int, span: float = 8.0, most: int = 4
) -> dict[str, Times]:
    """The same on every rank of the default group: of each run the slowest rank's time, and of those the median.

    All ranks begin a case together and call it for some `span` milliseconds, at most `most` times; the mean call
    counts. What the host needs is told apart: where that is more than what the GPU needs, a program that does nothing
    else waits for its host, and a CUDA graph is the cure.
    """
    alone = torch.tensor([each.gpu for each in interleaved(cases, repeats=1, warm_up=1).values()], device="cuda")
    dist.all_reduce(alone, dist.ReduceOp.MAX)  # All ranks make the same number of calls.
    calls = {name: max(1, min(most, round(span / time))) for name, time in zip(cases, alone.tolist(), strict=True)}
    runs: dict[str, list[_Run]] = {name: [] for name in cases}
    flag = torch.zeros(1, device="cuda")
    for turn in range(1 + repeats):
        for name in _mixed(cases, turn):
            wake_together(flag, _head_start(runs[name]))
            runs[name].append(_Run(cases[name], calls[name]))
    torch.cuda.synchronize()
    times = torch.tensor([[run.times for run in of[1:]] for of in runs.values()], device="cuda")
    dist.all_reduce(times, dist.ReduceOp.MAX)
    return {name: Times(*of) for name, of in zip(cases, times.median(dim=1).values.tolist(), strict=True)}


def wake_together(flag: torch.Tensor, milliseconds: float) -> None:
    """Hold the GPUs of all ranks back for as long as each says, and let them go on at once; `flag` is any tensor there.

    Not for longer than needed: links seem to sleep meanwhile, and behind 20 ms a call of 0.44 ms on two H200s took 0.48
    (dev/LOG.md, 2026-11-26).
    """
    torch.cuda.synchronize()
    sleep(milliseconds)
    dist.all_reduce(flag)  # Clocks differ, so that the ranks wake up at different times.


def sleep(milliseconds: float) -> None:
    """Let the GPU do nothing for so long, or, where its clock is slower than 2 GHz, somewhat longer."""
    torch.cuda._sleep(round(2e6 * milliseconds))


class _Run:
    """Some calls of a case, asked for at once."""

    def __init__(self, case: Callable[[], object], calls: int = 1) -> None:
        self._begin, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._begin.record()
        asked = perf_counter()
        for _ in range(calls):
            case()
        self.host, self._calls = (perf_counter() - asked) * 1e3, calls
        self._end.record()

    @property
    def times(self) -> Times:
        """Of one call, once the GPU is done."""
        return Times(self._begin.elapsed_time(self._end) / self._calls, self.host / self._calls)


def _head_start(runs: Iterable[_Run]) -> float:
    """Milliseconds that the host needs for another run like these, and half as many to be sure."""
    return min([1.5 * run.host + 0.5 for run in runs] + [_MOST])


_MOST = 40.0  # of a run that is not known yet; but for what is compiled then, hosts need less


def _mixed(names: Iterable[str], turn: int) -> list[str]:
    """In an order of this turn, the same on all ranks."""
    ordered = list(names)
    return Random(turn).sample(ordered, len(ordered))
