"""What schedules and shardings say in ranges, as index tensors."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ringattn_core.plan.layout import Sharding
from ringattn_core.plan.memo import recent
from ringattn_core.plan.schedule import Launch
from ringattn_core.run.device_plan import DevicePlan, for_graphs, planned


@planned
def row_index(plan: DevicePlan, launch: Launch) -> slice | Tensor:
    """The launch's rows: a slice if they have no gap."""
    return _index([tile.q for tile in launch.tiles], launch.rows if launch.dense_rows else None, plan.device)


@planned
def column_index(plan: DevicePlan, launch: Launch) -> slice | Tensor:
    """The launch's columns: a slice if they have no gap."""
    return _index([tile.k for tile in launch.tiles], launch.columns if launch.dense_columns else None, plan.device)


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


def _index(ranges: list[range], box: range | None, device: torch.device) -> slice | Tensor:
    if box is not None:
        return slice(box.start, box.stop)
    return torch.cat([torch.arange(part.start, part.stop) for part in ranges]).to(device)
