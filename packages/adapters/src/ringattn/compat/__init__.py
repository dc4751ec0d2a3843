"""The names of ring-flash-attention: `from ringattn.compat import ring_flash_attn`, or `install()`."""

from ringattn.compat.alias import install

__all__ = ["install"]
