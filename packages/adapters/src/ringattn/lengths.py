"""Cumulative sequence lengths as plain tuples, read from a tensor once and not once a layer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from weakref import ref

import torch
from torch import Tensor

from ringattn_core.errors import check_cu_seqlens

Lengths = Sequence[int] | Tensor

_read: dict[int, tuple[ref[Tensor], int, tuple[int, ...]]] = {}  # by id, for as long as the tensor lives unchanged


def read(cu_seqlens: Lengths, name: str = "cu_seqlens") -> tuple[int, ...]:
    """The borders as a tuple. A tensor on a GPU is waited for the first time that it is seen, and not again.

    Raises TypeError for what is no one-dimensional sequence of whole numbers, ValueError for what is not cumulative.
    """
    if not isinstance(cu_seqlens, Tensor):
        borders = tuple(int(border) for border in cu_seqlens)
        check_cu_seqlens(borders, name)
        return borders
    if cu_seqlens.dim() != 1 or cu_seqlens.is_floating_point():
        raise TypeError(
            f"{name} must be a one-dimensional tensor of whole numbers, got {cu_seqlens.dtype} of shape "
            f"{tuple(cu_seqlens.shape)}."
        )
    version = 0 if cu_seqlens.is_inference() else cu_seqlens._version
    seen = _read.get(id(cu_seqlens))
    if seen and seen[0]() is cu_seqlens and seen[1] == version:
        return seen[2]
    borders = tuple(cu_seqlens.tolist())
    check_cu_seqlens(borders, name)
    key = id(cu_seqlens)
    _read[key] = ref(cu_seqlens, lambda _: _read.pop(key, None)), version, borders
    return borders


def repeated(borders: tuple[int, ...], batch: int) -> tuple[int, ...]:
    """The borders of `batch` rows that are each divided in this way, laid end to end."""
    total = borders[-1]
    return (0, *(row * total + border for row in range(batch) for border in borders[1:]))


def sequence_positions(borders: tuple[int, ...]) -> Tensor:
    """Every token's position in its own sequence: (total,) int64."""
    parts = [torch.arange(stop - start) for start, stop in pairwise(borders)]
    return torch.cat(parts)
