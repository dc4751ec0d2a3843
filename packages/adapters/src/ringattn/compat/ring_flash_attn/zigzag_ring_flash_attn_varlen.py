"""The module `ring_flash_attn.zigzag_ring_flash_attn_varlen`: packed sequences, in balanced shares."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from ringattn import (
    zigzag_ring_flash_attn_varlen_func,
    zigzag_ring_flash_attn_varlen_kvpacked_func,
    zigzag_ring_flash_attn_varlen_qkvpacked_func,
)
from ringattn.compat.raw import zigzag_varlen
from ringattn.lengths import read
from ringattn.no_compile import no_compile
from ringattn_core.plan.layout import zigzag
from ringattn_core.plan.route import ring

zigzag_ring_flash_attn_varlen_forward, zigzag_ring_flash_attn_varlen_backward = zigzag_varlen(
    "zigzag_ring_flash_attn_varlen", zigzag, ring
)


@no_compile
def get_half_index(cu_seqlens: Tensor, *, front: bool) -> slice | Tensor:
    """Where in the packed tokens the first or second halves of all sequences lie: a slice for one, else a mask.

    cu_seqlens: (sequences + 1,) borders on this rank.
    """
    borders = read(cu_seqlens)
    middles = [(start + stop) // 2 for start, stop in pairwise(borders)]
    halves = zip(borders, middles, strict=False) if front else zip(middles, borders[1:], strict=True)
    parts = [slice(start, stop) for start, stop in halves]
    if len(parts) == 1:
        return parts[0]
    mask = torch.zeros(borders[-1], dtype=torch.bool)
    for part in parts:
        mask[part] = True
    return mask


__all__ = [
    "get_half_index",
    "zigzag_ring_flash_attn_varlen_backward",
    "zigzag_ring_flash_attn_varlen_forward",
    "zigzag_ring_flash_attn_varlen_func",
    "zigzag_ring_flash_attn_varlen_kvpacked_func",
    "zigzag_ring_flash_attn_varlen_qkvpacked_func",
]
