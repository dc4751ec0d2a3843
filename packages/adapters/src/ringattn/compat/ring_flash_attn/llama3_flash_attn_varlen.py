"""The module `ring_flash_attn.llama3_flash_attn_varlen`: a slice of a packed stream."""

from ringattn import (
    llama3_flash_attn_prepare_cu_seqlens,
    llama3_flash_attn_varlen_func,
    llama3_flash_attn_varlen_kvpacked_func,
    llama3_flash_attn_varlen_qkvpacked_func,
)
from ringattn.compat.raw import llama3
from ringattn_core.plan.layout import contiguous
from ringattn_core.plan.route import at_once

llama3_flash_attn_varlen_forward, llama3_flash_attn_varlen_backward = llama3(
    "llama3_flash_attn_varlen", contiguous, at_once
)

__all__ = [
    "llama3_flash_attn_prepare_cu_seqlens",
    "llama3_flash_attn_varlen_backward",
    "llama3_flash_attn_varlen_forward",
    "llama3_flash_attn_varlen_func",
    "llama3_flash_attn_varlen_kvpacked_func",
    "llama3_flash_attn_varlen_qkvpacked_func",
]
