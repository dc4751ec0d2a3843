"""The module `ring_flash_attn.zigzag_ring_flash_attn_varlen`: packed sequences, in balanced shares."""

from ringattn.compat.raw import exports
from ringattn.compat.ring_flash_attn.utils import get_half_index

globals().update(exports("zigzag_ring_flash_attn_varlen", get_half_index))
