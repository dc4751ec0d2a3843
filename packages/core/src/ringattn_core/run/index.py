"""What schedules and shardings say in ranges, as index tensors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ringattn_core.plan.layout import Sharding
from ringattn_core.plan.memo import recent
from ringattn_core.plan.schedule import Launch
from ringattn_core.run.device_plan import DevicePlan, for_graphs, planned


class LaunchIndex(NamedTuple):
    """The query rows of a launch, or its key columns, as an index."""

    whole: slice | Tensor  # among all of a rank; a slice where there is no gap between them
    box: slice | Tensor  # in the box around them, which is what a kernel's results cover
    length: int  # of the box

    def covers(self, tokens: int) -> bool:
        """Are they all tokens of a rank that has this number of them?"""
        return self.length == tokens and isinstance(self.whole, slice)


@planned
def row_index(plan: DevicePlan, launch: Launch) -> LaunchIndex:
    """The launch's rows."""
    return _index([tile.q for tile in launch.tiles], launch.rows, launch.dense_rows, plan.device)


@planned
def column_index(plan: DevicePlan, launch: Launch) -> LaunchIndex:
    """The launch's columns."""
    return _index([tile.k for tile in launch.tiles], launch.columns, launch.dense_columns, plan.device)


def _index(ranges: list[range], box: range, dense: bool, device: torch.device) -> LaunchIndex:
    if dense:
        return LaunchIndex(slice(box.start, box.stop), slice(0, len(box)), len(box))
    whole = torch.cat([torch.arange(part.start, part.stop) for part in ranges])
    return LaunchIndex(whole.to(device), (whole - box.start).to(device), len(box))


def stream_index(sharding: Sharding, cp_rank: int, device: torch.device) -> Tensor:
    """The stream positions of a rank's tokens, in storage order: (tokens,) int64."""
    return for_graphs(_stream_index(sharding, cp_rank, device))


@recent(64 << 20, lambda index: 8 * len(index))
def _stream_index(sharding: Sharding, cp_rank: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # What is kept here may be part of a backward pass later.
        runs = [torch.arange(run.start, run.stop, run.step) for _, run in sharding.runs(cp_rank)]
        return torch.cat(runs).to(device) if runs else torch.empty(0, dtype=torch.int64, device=device)


def sequence_index(sharding: Sharding, cp_rank: int, device: torch.device) -> Tensor:
    """The sequence of each of a rank's tokens, in storage order: (tokens,) int64."""
    return for_graphs(_sequence_index(sharding, cp_rank, device))


@recent(64 << 20, lambda index: 8 * len(index))
def _sequence_index(sharding: Sharding, cp_rank: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        runs = [torch.full((len(run),), sequence) for sequence, run in sharding.runs(cp_rank)]
        return torch.cat(runs).to(device) if runs else torch.empty(0, dtype=torch.int64, device=device)


def places(runs: Iterable[tuple[range, int]], rows: int, device: torch.device) -> Tensor:
    """Where each row lies elsewhere: (rows,) int32, -1 for nowhere, from runs of rows and the place of their first."""
    found = torch.full((rows,), -1, dtype=torch.int32)
    for run, start in runs:
        found[run.start : run.stop] = torch.arange(start, start + len(run), dtype=torch.int32)
    return found.to(device)
