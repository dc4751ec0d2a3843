"""The module `ring_flash_attn.ring_flash_attn_varlen`: packed sequences, in contiguous shares."""

from ringattn.compat.raw import exports

globals().update(exports("ring_flash_attn_varlen"))
