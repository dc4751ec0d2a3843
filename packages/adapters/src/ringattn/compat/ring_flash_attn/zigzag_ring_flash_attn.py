"""The module `ring_flash_attn.zigzag_ring_flash_attn`: a batch, in balanced shares."""

from ringattn import (
    zigzag_ring_flash_attn_func,
    zigzag_ring_flash_attn_kvpacked_func,
    zigzag_ring_flash_attn_qkvpacked_func,
)
from ringattn.compat.raw import batch
from ringattn_core.plan.layout import zigzag
from ringattn_core.plan.route import ring

zigzag_ring_flash_attn_forward, zigzag_ring_flash_attn_backward = batch("zigzag_ring_flash_attn", zigzag, ring)

__all__ = [
    "zigzag_ring_flash_attn_backward",
    "zigzag_ring_flash_attn_forward",
    "zigzag_ring_flash_attn_func",
    "zigzag_ring_flash_attn_kvpacked_func",
    "zigzag_ring_flash_attn_qkvpacked_func",
]
