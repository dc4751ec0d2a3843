# Written by dev/write_stubs.py from the functions themselves: change those, and run it again.
# fmt: off
from torch import Tensor

from ringattn import (
    llama3_flash_attn_prepare_cu_seqlens,
    llama3_flash_attn_varlen_func,
    llama3_flash_attn_varlen_kvpacked_func,
    llama3_flash_attn_varlen_qkvpacked_func,
)
from ringattn_comms.connect import Group

__all__ = [
    "llama3_flash_attn_prepare_cu_seqlens",
    "llama3_flash_attn_varlen_backward",
    "llama3_flash_attn_varlen_forward",
    "llama3_flash_attn_varlen_func",
    "llama3_flash_attn_varlen_kvpacked_func",
    "llama3_flash_attn_varlen_qkvpacked_func",
]

def llama3_flash_attn_varlen_forward(
    process_group: Group, q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor,
    max_seqlen_q: int, max_seqlen_k: int, heads_k_stride: int, local_k_slice: slice[int, int, int | None],
    softmax_scale: float | None, dropout_p: float = 0.0, causal: bool = True, window_size: tuple[int, int] = (-1, -1),
    alibi_slopes: Tensor | None = None, deterministic: bool = False,
) -> tuple[Tensor, Tensor]:
    """(out, softmax_lse) without autograd, of the shapes and dtypes that llama3_flash_attn_varlen_func has."""

def llama3_flash_attn_varlen_backward(
    process_group: Group, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, softmax_lse: Tensor,
    cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int, max_seqlen_k: int, heads_k_stride: int,
    local_k_slice: slice[int, int, int | None], softmax_scale: float | None, dropout_p: float = 0.0,
    causal: bool = True, window_size: tuple[int, int] = (-1, -1), alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dq, dk, dv) from what llama3_flash_attn_varlen_forward was given and returned."""
