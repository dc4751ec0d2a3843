# Written by dev/write_stubs.py from the functions themselves: change those, and run it again.
# fmt: off
from torch import Tensor

from ringattn import (
    ring_flash_attn_func,
    ring_flash_attn_kvpacked_func,
    ring_flash_attn_qkvpacked_func,
)
from ringattn_comms.connect import Group

__all__ = [
    "ring_flash_attn_backward",
    "ring_flash_attn_forward",
    "ring_flash_attn_func",
    "ring_flash_attn_kvpacked_func",
    "ring_flash_attn_qkvpacked_func",
]

def ring_flash_attn_forward(
    process_group: Group, q: Tensor, k: Tensor, v: Tensor, softmax_scale: float | None, dropout_p: float = 0.0,
    causal: bool = True, window_size: tuple[int, int] = (-1, -1), alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
) -> tuple[Tensor, Tensor]:
    """(out, softmax_lse) without autograd, of the shapes and dtypes that ring_flash_attn_func has."""

def ring_flash_attn_backward(
    process_group: Group, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, softmax_lse: Tensor,
    softmax_scale: float | None, dropout_p: float = 0.0, causal: bool = True, window_size: tuple[int, int] = (-1, -1),
    alibi_slopes: Tensor | None = None, deterministic: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dq, dk, dv) from what ring_flash_attn_forward was given and returned."""
