"""The module `ring_flash_attn.triton_utils`: the two functions of `utils`, which need no Triton here."""

from ringattn.compat.ring_flash_attn.utils import flatten_varlen_lse, unflatten_varlen_lse

__all__ = ["flatten_varlen_lse", "unflatten_varlen_lse"]
