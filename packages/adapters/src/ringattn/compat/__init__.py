"""Other libraries' names for what is here: `from ringattn.compat import ring_flash_attn`, or `install()`."""

from ringattn.compat.alias import install

__all__ = ["install"]
