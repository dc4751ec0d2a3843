"""The module `ring_flash_attn.ring_flash_attn_varlen`: packed sequences, in contiguous shares."""

from ringattn import (
    ring_flash_attn_varlen_func,
    ring_flash_attn_varlen_kvpacked_func,
    ring_flash_attn_varlen_qkvpacked_func,
)
from ringattn.compat.raw import varlen
from ringattn_core.plan.layout import contiguous
from ringattn_core.plan.route import ring

ring_flash_attn_varlen_forward, ring_flash_attn_varlen_backward = varlen("ring_flash_attn_varlen", contiguous, ring)

__all__ = [
    "ring_flash_attn_varlen_backward",
    "ring_flash_attn_varlen_forward",
    "ring_flash_attn_varlen_func",
    "ring_flash_attn_varlen_kvpacked_func",
    "ring_flash_attn_varlen_qkvpacked_func",
]
