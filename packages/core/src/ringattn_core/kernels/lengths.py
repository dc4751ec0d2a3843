"""A launch's tiles as the length tensors that varlen kernels take."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ringattn_core.plan.schedule import Launch
from ringattn_core.run.device_plan import DevicePlan, planned


class Lengths(NamedTuple):
    """Where each tile's rows or columns begin in the launch's box, and how many there are; int32."""

    starts: Tensor  # (tiles + 1,), the last being the box's length
    used: Tensor  # (tiles,)
    compact: Tensor  # (tiles + 1,), cumulative lengths without the gaps
    longest: int


class Varlen(NamedTuple):
    """A launch of several tiles as FlashAttention 3 and 4 take it: lengths used of sequences that may have gaps."""

    cu_seqlens_q: Tensor  # (tiles + 1,), read as starts where `seqused_q` is given
    cu_seqlens_k: Tensor
    seqused_q: Tensor | None  # (tiles,), None without gaps
    seqused_k: Tensor | None
    max_seqlen_q: int
    max_seqlen_k: int


@planned
def varlen(plan: DevicePlan, launch: Launch) -> Varlen:
    """The lengths of a launch's tiles, of rows and columns in its boxes."""
    rows, columns = row_lengths(plan, launch), column_lengths(plan, launch)
    used_q = None if launch.dense_rows else rows.used
    used_k = None if launch.dense_columns else columns.used
    return Varlen(rows.starts, columns.starts, used_q, used_k, rows.longest, columns.longest)


@planned
def row_lengths(plan: DevicePlan, launch: Launch) -> Lengths:
    """The lengths of the rows of the launch's tiles."""
    return _lengths([tile.q for tile in launch.tiles], launch.rows, plan.device)


@planned
def column_lengths(plan: DevicePlan, launch: Launch) -> Lengths:
    """The lengths of the columns of the launch's tiles."""
    return _lengths([tile.k for tile in launch.tiles], launch.columns, plan.device)


def _lengths(parts: list[range], box: range, device: torch.device) -> Lengths:
    starts = [part.start - box.start for part in parts]
    used = torch.tensor([len(part) for part in parts], dtype=torch.int32)
    compact = torch.nn.functional.pad(used.cumsum(0, dtype=torch.int32), (1, 0))
    begin = torch.tensor([*starts, len(box)], dtype=torch.int32)
    return Lengths(begin.to(device), used.to(device), compact.to(device), int(used.max()))


def same_shape(launch: Launch) -> bool:
    """Whether all tiles have one shape and no gaps between them, so that they are a batch."""
    shapes = {(len(tile.q), len(tile.k)) for tile in launch.tiles}
    return launch.dense_rows and launch.dense_columns and len(shapes) == 1
