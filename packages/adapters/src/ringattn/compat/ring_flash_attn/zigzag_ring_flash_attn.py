"""The module `ring_flash_attn.zigzag_ring_flash_attn`: a batch, in balanced shares."""

from ringattn.compat.raw import exports

globals().update(exports("zigzag_ring_flash_attn"))
