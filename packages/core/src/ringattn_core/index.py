"""What schedules say in ranges, as indices into tensors, made once for every device."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from functools import lru_cache, wraps
from typing import TypeVar, TypeVarTuple

import torch
from torch import Tensor

from ringattn_core.layout import Division
from ringattn_core.schedule import Launch
from ringattn_core.streams import capturing

T = TypeVar("T")
Key = TypeVarTuple("Key")


def kept(count: int) -> Callable[[Callable[[*Key], T]], Callable[[*Key], T]]:
    """As `lru_cache(count)`, for what lies on a device: what a CUDA graph reads while it is captured stays for good."""

    def keep(make: Callable[[*Key], T]) -> Callable[[*Key], T]:
        made: Callable[..., T] = lru_cache(count)(make)
        captured = dict[Hashable, T]()

        @wraps(make)
        def get(*key: *Key) -> T:
            found = made(*key)
            if capturing():
                captured[key] = found
            return found

        return get

    return keep


@kept(1024)
def row_index(launch: Launch, device: torch.device) -> slice | Tensor:
    """The launch's rows: a slice if they have no gap."""
    return _index([tile.q for tile in launch.tiles], launch.rows if launch.dense_rows else None, device)


@kept(1024)
def column_index(launch: Launch, device: torch.device) -> slice | Tensor:
    """The launch's columns: a slice if they have no gap."""
    return _index([tile.k for tile in launch.tiles], launch.columns if launch.dense_columns else None, device)


@kept(128)
def stream_index(division: Division, cp_rank: int, device: torch.device) -> Tensor:
    """The stream positions of a rank's tokens, in storage order: (tokens,) int64."""
    with torch.inference_mode(False):  # What is kept here may be part of a backward pass later.
        runs = [torch.arange(run.start, run.stop, run.step) for _, run in division.runs(cp_rank)]
        return torch.cat(runs).to(device) if runs else torch.empty(0, dtype=torch.int64, device=device)


@kept(128)
def sequence_index(division: Division, cp_rank: int, device: torch.device) -> Tensor:
    """The sequence of each of a rank's tokens, in storage order: (tokens,) int64."""
    with torch.inference_mode(False):
        runs = [torch.full((len(run),), sequence) for sequence, run in division.runs(cp_rank)]
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
