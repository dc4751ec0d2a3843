"""The module `ring_flash_attn.stripe_flash_attn`: a batch, in stripes."""

from ringattn import stripe_flash_attn_func, stripe_flash_attn_kvpacked_func, stripe_flash_attn_qkvpacked_func
from ringattn.compat.raw import batch
from ringattn_core.plan.layout import striped
from ringattn_core.plan.route import ring

stripe_flash_attn_forward, stripe_flash_attn_backward = batch("stripe_flash_attn", striped, ring)

__all__ = [
    "stripe_flash_attn_backward",
    "stripe_flash_attn_forward",
    "stripe_flash_attn_func",
    "stripe_flash_attn_kvpacked_func",
    "stripe_flash_attn_qkvpacked_func",
]
