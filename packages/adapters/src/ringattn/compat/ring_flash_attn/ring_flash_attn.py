"""The module `ring_flash_attn.ring_flash_attn`: a batch, in contiguous shares."""

from ringattn.compat.raw import exports

globals().update(exports("ring_flash_attn"))
