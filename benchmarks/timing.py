"""Timing several things against each other on a GPU: interleaved, so that a drifting clock meets all of them alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median

import torch


def interleaved(cases: Mapping[str, Callable[[], object]], repeats: int, warm_up: int = 2) -> dict[str, float]:
    """The median time of each case in milliseconds, one run of each in turn, `repeats` times."""
    spans: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in cases}
    for turn in range(warm_up + repeats):
        for name, case in cases.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            case()
            end.record()
            if turn >= warm_up:
                spans[name].append((begin, end))
    torch.cuda.synchronize()
    return {name: median(begin.elapsed_time(end) for begin, end in found) for name, found in spans.items()}
