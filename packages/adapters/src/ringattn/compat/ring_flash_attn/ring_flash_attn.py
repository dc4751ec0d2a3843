"""The module `ring_flash_attn.ring_flash_attn`: a batch, in contiguous shares."""

from ringattn import ring_flash_attn_func, ring_flash_attn_kvpacked_func, ring_flash_attn_qkvpacked_func
from ringattn.compat.raw import batch
from ringattn_core.plan.layout import contiguous
from ringattn_core.plan.route import ring

ring_flash_attn_forward, ring_flash_attn_backward = batch("ring_flash_attn", contiguous, ring)

__all__ = [
    "ring_flash_attn_backward",
    "ring_flash_attn_forward",
    "ring_flash_attn_func",
    "ring_flash_attn_kvpacked_func",
    "ring_flash_attn_qkvpacked_func",
]
