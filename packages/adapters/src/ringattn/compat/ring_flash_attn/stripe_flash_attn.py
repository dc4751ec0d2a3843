"""The module `ring_flash_attn.stripe_flash_attn`: a batch, in stripes."""

from ringattn.compat.raw import exports

globals().update(exports("stripe_flash_attn"))
