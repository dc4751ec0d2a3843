"""A launch's rows and columns as an index into tensors: a slice where they have no gap."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ringattn_core.schedule import Launch


@lru_cache(1024)
def row_index(launch: Launch, device: torch.device) -> slice | Tensor:
    """The launch's rows: a slice if they have no gap."""
    return _index([tile.q for tile in launch.tiles], launch.rows if launch.dense_rows else None, device)


@lru_cache(1024)
def column_index(launch: Launch, device: torch.device) -> slice | Tensor:
    """The launch's columns: a slice if they have no gap."""
    return _index([tile.k for tile in launch.tiles], launch.columns if launch.dense_columns else None, device)


def _index(ranges: list[range], box: range | None, device: torch.device) -> slice | Tensor:
    if box is not None:
        return slice(box.start, box.stop)
    return torch.cat([torch.arange(part.start, part.stop) for part in ranges]).to(device)
