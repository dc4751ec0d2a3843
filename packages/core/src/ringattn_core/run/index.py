"""What schedules say in ranges, as index tensors, made once for every device."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from typing import TypeVar, TypeVarTuple

import torch
from torch import Tensor

from ringattn_core.plan.layout import Sharding
from ringattn_core.plan.memo import by_owner, recent
from ringattn_core.plan.schedule import Launch
from ringattn_core.run.streams import capturing

T = TypeVar("T")
Owner = TypeVar("Owner")
Key = TypeVarTuple("Key")

_MOST_CAPTURED = 1 << 16
_captured = dict[int, object]()  # by id


def for_graphs(made: Callable[[*Key], T]) -> Callable[[*Key], T]:
    """What a CUDA graph reads while it is captured stays for good: nothing tells when the last graph is gone.

    Raises RuntimeError where graphs of ever new plans are captured, before that fills the memory.
    """

    @wraps(made)
    def get(*key: *Key) -> T:
        found = made(*key)
        if capturing():
            _captured[id(found)] = found
            if len(_captured) > _MOST_CAPTURED:
                raise RuntimeError(
                    f"CUDA graphs have been captured that read {_MOST_CAPTURED} index tensors of different plans, and "
                    "each graph keeps its tensors: capture one graph for each of a few packings, and use them again."
                )
        return found

    return get


def kept(make: Callable[[Owner, *Key], T]) -> Callable[[Owner, *Key], T]:
    """As `by_owner`, for what lies on a device and CUDA graphs may read."""
    return for_graphs(by_owner(make))


@kept
def row_index(launch: Launch, device: torch.device) -> slice | Tensor:
    """The launch's rows: a slice if they have no gap."""
    return _index([tile.q for tile in launch.tiles], launch.rows if launch.dense_rows else None, device)


@kept
def column_index(launch: Launch, device: torch.device) -> slice | Tensor:
    """The launch's columns: a slice if they have no gap."""
    return _index([tile.k for tile in launch.tiles], launch.columns if launch.dense_columns else None, device)


@for_graphs
@recent(64 << 20, lambda index: 8 * len(index))
def stream_index(sharding: Sharding, cp_rank: int, device: torch.device) -> Tensor:
    """The stream positions of a rank's tokens, in storage order: (tokens,) int64."""
    with torch.inference_mode(False):  # What is kept here may be part of a backward pass later.
        runs = [torch.arange(run.start, run.stop, run.step) for _, run in sharding.runs(cp_rank)]
        return torch.cat(runs).to(device) if runs else torch.empty(0, dtype=torch.int64, device=device)


@for_graphs
@recent(64 << 20, lambda index: 8 * len(index))
def sequence_index(sharding: Sharding, cp_rank: int, device: torch.device) -> Tensor:
    """The sequence of each of a rank's tokens, in storage order: (tokens,) int64."""
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
