"""A launch's tiles as the length tensors that varlen kernels take, made once for every launch and device."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ringattn_core.schedule import Launch
from ringattn_core.tile import Tile


class Lengths(NamedTuple):
    """Where each tile's rows or columns begin in the launch's box, and how many there are; int32."""

    starts: Tensor  # (tiles + 1,), the last being the box's length
    used: Tensor  # (tiles,)
    compact: Tensor  # (tiles + 1,), cumulative lengths without the gaps
    longest: int


@lru_cache(1024)
def row_lengths(launch: Launch, device: torch.device) -> Lengths:
    """Of the launch's rows."""
    return _lengths([tile.q for tile in launch.tiles], launch.rows, device)


@lru_cache(1024)
def column_lengths(launch: Launch, device: torch.device) -> Lengths:
    """Of the launch's columns."""
    return _lengths([tile.k for tile in launch.tiles], launch.columns, device)


def _lengths(parts: list[range], box: range, device: torch.device) -> Lengths:
    starts = [part.start - box.start for part in parts]
    used = torch.tensor([len(part) for part in parts], dtype=torch.int32)
    compact = torch.nn.functional.pad(used.cumsum(0, dtype=torch.int32), (1, 0))
    begin = torch.tensor([*starts, len(box)], dtype=torch.int32)
    return Lengths(begin.to(device), used.to(device), compact.to(device), int(used.max()))


def same_shape(launch: Launch) -> bool:
    """Are the tiles all of one shape and without gaps, so that they are a batch?"""
    first = launch.tiles[0]
    return launch.dense_rows and launch.dense_columns and all(_shape(tile) == _shape(first) for tile in launch.tiles)


def _shape(tile: Tile) -> tuple[int, int]:
    return len(tile.q), len(tile.k)
