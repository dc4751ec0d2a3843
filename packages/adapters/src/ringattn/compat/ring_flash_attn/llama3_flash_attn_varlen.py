"""The module `ring_flash_attn.llama3_flash_attn_varlen`: a slice of a packed stream."""

from ringattn.compat.raw import exports
from ringattn.llama3 import llama3_flash_attn_prepare_cu_seqlens

globals().update(exports("llama3_flash_attn_varlen", llama3_flash_attn_prepare_cu_seqlens))
