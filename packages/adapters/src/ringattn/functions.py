"""The functions of ring-flash-attention by their own names, and the two families that are missing there."""

from __future__ import annotations

from ringattn.family import balanced_gather, batch, llama3, varlen
from ringattn_core.plan.layout import contiguous, striped, zigzag
from ringattn_core.plan.route import ring

(
    ring_flash_attn_func,
    ring_flash_attn_kvpacked_func,
    ring_flash_attn_qkvpacked_func,
) = batch("ring_flash_attn", contiguous, ring)
(
    zigzag_ring_flash_attn_func,
    zigzag_ring_flash_attn_kvpacked_func,
    zigzag_ring_flash_attn_qkvpacked_func,
) = batch("zigzag_ring_flash_attn", zigzag, ring)
(
    stripe_flash_attn_func,
    stripe_flash_attn_kvpacked_func,
    stripe_flash_attn_qkvpacked_func,
) = batch("stripe_flash_attn", striped, ring)
(
    ring_flash_attn_varlen_func,
    ring_flash_attn_varlen_kvpacked_func,
    ring_flash_attn_varlen_qkvpacked_func,
) = varlen("ring_flash_attn_varlen", contiguous, ring)
(
    zigzag_ring_flash_attn_varlen_func,
    zigzag_ring_flash_attn_varlen_kvpacked_func,
    zigzag_ring_flash_attn_varlen_qkvpacked_func,
) = varlen("zigzag_ring_flash_attn_varlen", zigzag, ring)
(
    stripe_flash_attn_varlen_func,
    stripe_flash_attn_varlen_kvpacked_func,
    stripe_flash_attn_varlen_qkvpacked_func,
) = varlen("stripe_flash_attn_varlen", striped, ring)
(
    llama3_flash_attn_varlen_func,
    llama3_flash_attn_varlen_kvpacked_func,
    llama3_flash_attn_varlen_qkvpacked_func,
) = llama3("llama3_flash_attn_varlen")
(
    zigzag_llama3_flash_attn_varlen_func,
    zigzag_llama3_flash_attn_varlen_kvpacked_func,
    zigzag_llama3_flash_attn_varlen_qkvpacked_func,
) = balanced_gather("zigzag_llama3_flash_attn_varlen", zigzag)
