# Written by dev/write_stubs.py from the functions themselves: change those, and run it again.
# fmt: off
from typing import Literal, overload

from torch import Tensor

from ringattn.context_parallel import ContextParallel
from ringattn.lengths import Lengths
from ringattn.llama3 import llama3_flash_attn_prepare_cu_seqlens
from ringattn.mask_rows import Masks
from ringattn_comms.backends.threads import run
from ringattn_comms.connect import Group
from ringattn_core.errors import UnsupportedError

__version__: str

__all__ = [
    "ContextParallel",
    "UnsupportedError",
    "attention",
    "llama3_flash_attn_prepare_cu_seqlens",
    "llama3_flash_attn_varlen_func",
    "llama3_flash_attn_varlen_kvpacked_func",
    "llama3_flash_attn_varlen_qkvpacked_func",
    "ring_flash_attn_func",
    "ring_flash_attn_kvpacked_func",
    "ring_flash_attn_qkvpacked_func",
    "ring_flash_attn_varlen_func",
    "ring_flash_attn_varlen_kvpacked_func",
    "ring_flash_attn_varlen_qkvpacked_func",
    "run",
    "stripe_flash_attn_func",
    "stripe_flash_attn_kvpacked_func",
    "stripe_flash_attn_qkvpacked_func",
    "stripe_flash_attn_varlen_func",
    "stripe_flash_attn_varlen_kvpacked_func",
    "stripe_flash_attn_varlen_qkvpacked_func",
    "zigzag_llama3_flash_attn_varlen_func",
    "zigzag_llama3_flash_attn_varlen_kvpacked_func",
    "zigzag_llama3_flash_attn_varlen_qkvpacked_func",
    "zigzag_ring_flash_attn_func",
    "zigzag_ring_flash_attn_kvpacked_func",
    "zigzag_ring_flash_attn_qkvpacked_func",
    "zigzag_ring_flash_attn_varlen_func",
    "zigzag_ring_flash_attn_varlen_kvpacked_func",
    "zigzag_ring_flash_attn_varlen_qkvpacked_func",
]

@overload
def attention(
    q: Tensor, k: Tensor, v: Tensor, *, cp: ContextParallel | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), mask: Masks | None = None, softcap: float = 0.0,
    sinks: Tensor | None = None, alibi_slopes: Tensor | None = None, softmax_scale: float | None = None,
    dropout_p: float = 0.0, deterministic: bool = False, return_lse: Literal[False] = False,
    cu_seqlens: Lengths | None = None, cu_seqlens_k: Lengths | None = None,
) -> Tensor: ...

@overload
def attention(
    q: Tensor, k: Tensor, v: Tensor, *, cp: ContextParallel | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), mask: Masks | None = None, softcap: float = 0.0,
    sinks: Tensor | None = None, alibi_slopes: Tensor | None = None, softmax_scale: float | None = None,
    dropout_p: float = 0.0, deterministic: bool = False, return_lse: Literal[True], cu_seqlens: Lengths | None = None,
    cu_seqlens_k: Lengths | None = None,
) -> tuple[Tensor, Tensor]: ...

@overload
def attention(
    q: Tensor, k: Tensor, v: Tensor, *, cp: ContextParallel | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), mask: Masks | None = None, softcap: float = 0.0,
    sinks: Tensor | None = None, alibi_slopes: Tensor | None = None, softmax_scale: float | None = None,
    dropout_p: float = 0.0, deterministic: bool = False, return_lse: bool = False, cu_seqlens: Lengths | None = None,
    cu_seqlens_k: Lengths | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Exact attention of this rank's queries over the keys of all ranks of `cp` (None: this process alone).

    q: (batch, tokens, num_heads, head_dim), this rank's tokens in the order of cp's layout (`cp.shard`); also without
        the batch dimension. float16, bfloat16, float32 or float64; under autocast q, k and v are cast to its dtype.
    k, v: (batch, tokens of k, num_kv_heads, head_dim) and (..., head_dim_v); num_kv_heads divides num_heads.
    causal, window_size: query i sees key j if -left <= j - i <= right, -1 being an open side, `causal` being right = 0;
        the last query of a sequence stands at its last key.
    mask: any union of bands, of the tokens of all ranks, instead of causal and window_size (`ringattn.masks`); one for
        all rows of a batch, or a list of one for each; None is cp's. Then cu_seqlens only say how tokens are shared.
    softcap: scores become softcap * tanh(score / softcap); 0 is none.
    sinks: (num_heads,) logits of one more key per head whose value is 0; their gradient is this rank's share, as that
        of any replicated weight is.
    alibi_slopes: (num_heads,), (batch, num_heads) or, packed, (sequences, num_heads) of all rows, float32; subtracts
        slope * distance from the scores.
    softmax_scale: what scores are multiplied with; None is head_dim ** -0.5.
    dropout_p: probabilities dropped, in [0, 1). The seed is drawn from torch's CPU generator: seed all ranks alike.
    deterministic: gradients are bitwise the same from run to run.
    cu_seqlens, cu_seqlens_k: global borders of packed sequences, instead of cp's; those of the keys only where they
        differ (cross attention). A list, or a tensor, which is read when it changes (`lengths.read`).

    Returns out, shaped like q with head_dim_v, in q's dtype; with `return_lse` (out, lse), lse being the natural
    logarithm of each query's sum of exponentiated scores, differentiable, (batch, num_heads, tokens) in float32
    (float64 for float64). A query that sees no key has out 0 and lse -inf. Raises ValueError or TypeError for what does
    not fit, before anything is communicated. Ring attention: Liu et al. 2023, arXiv:2310.01889.
    """

@overload
def ring_flash_attn_func(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), alibi_slopes: Tensor | None = None, deterministic: bool = False,
    return_attn_probs: Literal[False] = False, group: Group = None,
) -> Tensor: ...

@overload
def ring_flash_attn_func(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), alibi_slopes: Tensor | None = None, deterministic: bool = False, *,
    return_attn_probs: Literal[True], group: Group = None,
) -> tuple[Tensor, Tensor, None]: ...

@overload
def ring_flash_attn_func(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), alibi_slopes: Tensor | None = None, deterministic: bool = False,
    return_attn_probs: bool = False, group: Group = None,
) -> Tensor | tuple[Tensor, Tensor, None]:
    """Exact attention over a batch, with the keys of all ranks of a group.

    q: (batch, tokens, num_heads, head_dim); k, v: (batch, tokens, num_kv_heads, head_dim).
    They are float16, bfloat16, float32 or float64.
    dropout_p: share of attention probabilities dropped, in [0, 1).
    softmax_scale: what scores are multiplied with; None is head_dim ** -0.5.
    causal, window_size: query i sees key j of its sequence if -left <= j - i <= right; -1 is an open side, causal means
        right = 0 whatever window_size says. Positions are global: a window reaches over the borders of ranks.
    alibi_slopes: (num_heads,), (batch, num_heads), or (sequences, num_heads) for those that cu_seqlens tell of; floats.
    deterministic: gradients are bitwise the same from run to run.
    return_attn_probs: also return (softmax_lse, None); lse is (batch, num_heads, tokens) float32.
    group: a ProcessGroup, a one-dimensional DeviceMesh, or None for all processes.

    Returns out, shaped like q and in its dtype, or (out, softmax_lse, None). Raises ValueError or TypeError for what
    does not fit, before anything is communicated. The same as `ringattn.attention` in the layout `contiguous`, by
    ringattn_core's route `ring`; arguments and results are as in zhuzilin/ring-flash-attention.
    """

@overload
def ring_flash_attn_kvpacked_func(
    q: Tensor, kv: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), alibi_slopes: Tensor | None = None, deterministic: bool = False,
    return_attn_probs: Literal[False] = False, group: Group = None,
) -> Tensor: ...

@overload
def ring_flash_attn_kvpacked_func(
    q: Tensor, kv: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), alibi_slopes: Tensor | None = None, deterministic: bool = False, *,
    return_attn_probs: Literal[True], group: Group = None,
) -> tuple[Tensor, Tensor, None]: ...

@overload
def ring_flash_attn_kvpacked_func(
    q: Tensor, kv: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), alibi_slopes: Tensor | None = None, deterministic: bool = False,
    return_attn_probs: bool = False, group: Group = None,
) -> Tensor | tuple[Tensor, Tensor, None]:
    """Exact attention over a batch, with the keys of all ranks of a group.

    q: (batch, tokens, num_heads, head_dim); kv: (batch, tokens, 2, num_kv_heads, head_dim), k before v.
    They are float16, bfloat16, float32 or float64.
    dropout_p: share of attention probabilities dropped, in [0, 1).
    softmax_scale: what scores are multiplied with; None is head_dim ** -0.5.
    causal, window_size: query i sees key j of its sequence if -left <= j - i <= right; -1 is an open side, causal means
        right = 0 whatever window_size says. Positions are global: a window reaches over the borders of ranks.
    alibi_slopes: (num_heads,), (batch, num_heads), or (sequences, num_heads) for those that cu_seqlens tell of; floats.
    deterministic: gradients are bitwise the same from run to run.
    return_attn_probs: also return (softmax_lse, None); lse is (batch, num_heads, tokens) float32.
    group: a ProcessGroup, a one-dimensional DeviceMesh, or None for all processes.

    Returns out, shaped like q and in its dtype, or (out, softmax_lse, None). Raises ValueError or TypeError for what
    does not fit, before anything is communicated. The same as `ringattn.attention` in the layout `contiguous`, by
    ringattn_core's route `ring`; arguments and results are as in zhuzilin/ring-flash-attention.
    """

@overload
def ring_flash_attn_qkvpacked_func(
    qkv: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), alibi_slopes: Tensor | None = None, deterministic: bool = False,
    return_attn_probs: Literal[False] = False, group: Group = None,
) -> Tensor: ...

@overload
def ring_flash_attn_qkvpacked_func(
    qkv: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), alibi_slopes: Tensor | None = None, deterministic: bool = False, *,
    return_attn_probs: Literal[True], group: Group = None,
) -> tuple[Tensor, Tensor, None]: ...

@overload
def ring_flash_attn_qkvpacked_func(
    qkv: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), alibi_slopes: Tensor | None = None, deterministic: bool = False,
    return_attn_probs: bool = False, group: Group = None,
) -> Tensor | tuple[Tensor, Tensor, None]:
    """Exact attention over a batch, with the keys of all ranks of a group.

    qkv: (batch, tokens, 3, num_heads, head_dim), q before k before v.
    They are float16, bfloat16, float32 or float64.
    dropout_p: share of attention probabilities dropped, in [0, 1).
    softmax_scale: what scores are multiplied with; None is head_dim ** -0.5.
    causal, window_size: query i sees key j of its sequence if -left <= j - i <= right; -1 is an open side, causal means
        right = 0 whatever window_size says. Positions are global: a window reaches over the borders of ranks.
    alibi_slopes: (num_heads,), (batch, num_heads), or (sequences, num_heads) for those that cu_seqlens tell of; floats.
    deterministic: gradients are bitwise the same from run to run.
    return_attn_probs: also return (softmax_lse, None); lse is (batch, num_heads, tokens) float32.
    group: a ProcessGroup, a one-dimensional DeviceMesh, or None for all processes.

    Returns out, shaped like q and in its dtype, or (out, softmax_lse, None). Raises ValueError or TypeError for what
    does not fit, before anything is communicated. The same as `ringattn.attention` in the layout `contiguous`, by
    ringattn_core's route `ring`; arguments and results are as in zhuzilin/ring-flash-attention.
    """

@overload
def zigzag_ring_flash_attn_func(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), alibi_slopes: Tensor | None = None, deterministic: bool = False,
    return_attn_probs: Literal[False] = False, group: Group = None,
) -> Tensor: ...

@overload
def zigzag_ring_flash_attn_func(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), alibi_slopes: Tensor | None = None, deterministic: bool = False, *,
    return_attn_probs: Literal[True], group: Group = None,
) -> tuple[Tensor, Tensor, None]: ...

@overload
def zigzag_ring_flash_attn_func(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), alibi_slopes: Tensor | None = None, deterministic: bool = False,
    return_attn_probs: bool = False, group: Group = None,
) -> Tensor | tuple[Tensor, Tensor, None]:
    """Exact attention over a batch, with the keys of all ranks of a group.

    q: (batch, tokens, num_heads, head_dim); k, v: (batch, tokens, num_kv_heads, head_dim).
    They are float16, bfloat16, float32 or float64.
    dropout_p: share of attention probabilities dropped, in [0, 1).
    softmax_scale: what scores are multiplied with; None is head_dim ** -0.5.
    causal, window_size: query i sees key j of its sequence if -left <= j - i <= right; -1 is an open side, causal means
        right = 0 whatever window_size says. Positions are global: a window reaches over the borders of ranks.
    alibi_slopes: (num_heads,), (batch, num_heads), or (sequences, num_heads) for those that cu_seqlens tell of; floats.
    deterministic: gradients are bitwise the same from run to run.
    return_attn_probs: also return (softmax_lse, None); lse is (batch, num_heads, tokens) float32.
    group: a ProcessGroup, a one-dimensional DeviceMesh, or None for all processes.

    Returns out, shaped like q and in its dtype, or (out, softmax_lse, None). Raises ValueError or TypeError for what
    does not fit, before anything is communicated. The same as `ringattn.attention` in the layout `zigzag`, by
    ringattn_core's route `ring`; arguments and results are as in zhuzilin/ring-flash-attention.
    """

@overload
def zigzag_ring_flash_attn_kvpacked_func(
    q: Tensor, kv: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), alibi_slopes: Tensor | None = None, deterministic: bool = False,
    return_attn_probs: Literal[False] = False, group: Group = None,
) -> Tensor: ...

@overload
def zigzag_ring_flash_attn_kvpacked_func(
    q: Tensor, kv: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), alibi_slopes: Tensor | None = None, deterministic: bool = False, *,
    return_attn_probs: Literal[True], group: Group = None,
) -> tuple[Tensor, Tensor, None]: ...

@overload
def zigzag_ring_flash_attn_kvpacked_func(
    q: Tensor, kv: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), alibi_slopes: Tensor | None = None, deterministic: bool = False,
    return_attn_probs: bool = False, group: Group = None,
) -> Tensor | tuple[Tensor, Tensor, None]:
    """Exact attention over a batch, with the keys of all ranks of a group.

    q: (batch, tokens, num_heads, head_dim); kv: (batch, tokens, 2, num_kv_heads, head_dim), k before v.
    They are float16, bfloat16, float32 or float64.
    dropout_p: share of attention probabilities dropped, in [0, 1).
    softmax_scale: what scores are multiplied with; None is head_dim ** -0.5.
    causal, window_size: query i sees key j of its sequence if -left <= j - i <= right; -1 is an open side, causal means
        right = 0 whatever window_size says. Positions are global: a window reaches over the borders of ranks.
    alibi_slopes: (num_heads,), (batch, num_heads), or (sequences, num_heads) for those that cu_seqlens tell of; floats.
    deterministic: gradients are bitwise the same from run to run.
    return_attn_probs: also return (softmax_lse, None); lse is (batch, num_heads, tokens) float32.
    group: a ProcessGroup, a one-dimensional DeviceMesh, or None for all processes.

    Returns out, shaped like q and in its dtype, or (out, softmax_lse, None). Raises ValueError or TypeError for what
    does not fit, before anything is communicated. The same as `ringattn.attention` in the layout `zigzag`, by
    ringattn_core's route `ring`; arguments and results are as in zhuzilin/ring-flash-attention.
    """

@overload
def zigzag_ring_flash_attn_qkvpacked_func(
    qkv: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), alibi_slopes: Tensor | None = None, deterministic: bool = False,
    return_attn_probs: Literal[False] = False, group: Group = None,
) -> Tensor: ...

@overload
def zigzag_ring_flash_attn_qkvpacked_func(
    qkv: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), alibi_slopes: Tensor | None = None, deterministic: bool = False, *,
    return_attn_probs: Literal[True], group: Group = None,
) -> tuple[Tensor, Tensor, None]: ...

@overload
def zigzag_ring_flash_attn_qkvpacked_func(
    qkv: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), alibi_slopes: Tensor | None = None, deterministic: bool = False,
    return_attn_probs: bool = False, group: Group = None,
) -> Tensor | tuple[Tensor, Tensor, None]:
    """Exact attention over a batch, with the keys of all ranks of a group.

    qkv: (batch, tokens, 3, num_heads, head_dim), q before k before v.
    They are float16, bfloat16, float32 or float64.
    dropout_p: share of attention probabilities dropped, in [0, 1).
    softmax_scale: what scores are multiplied with; None is head_dim ** -0.5.
    causal, window_size: query i sees key j of its sequence if -left <= j - i <= right; -1 is an open side, causal means
        right = 0 whatever window_size says. Positions are global: a window reaches over the borders of ranks.
    alibi_slopes: (num_heads,), (batch, num_heads), or (sequences, num_heads) for those that cu_seqlens tell of; floats.
    deterministic: gradients are bitwise the same from run to run.
    return_attn_probs: also return (softmax_lse, None); lse is (batch, num_heads, tokens) float32.
    group: a ProcessGroup, a one-dimensional DeviceMesh, or None for all processes.

    Returns out, shaped like q and in its dtype, or (out, softmax_lse, None). Raises ValueError or TypeError for what
    does not fit, before anything is communicated. The same as `ringattn.attention` in the layout `zigzag`, by
    ringattn_core's route `ring`; arguments and results are as in zhuzilin/ring-flash-attention.
    """

@overload
def stripe_flash_attn_func(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), alibi_slopes: Tensor | None = None, deterministic: bool = False,
    return_attn_probs: Literal[False] = False, group: Group = None,
) -> Tensor: ...

@overload
def stripe_flash_attn_func(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), alibi_slopes: Tensor | None = None, deterministic: bool = False, *,
    return_attn_probs: Literal[True], group: Group = None,
) -> tuple[Tensor, Tensor, None]: ...

@overload
def stripe_flash_attn_func(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), alibi_slopes: Tensor | None = None, deterministic: bool = False,
    return_attn_probs: bool = False, group: Group = None,
) -> Tensor | tuple[Tensor, Tensor, None]:
    """Exact attention over a batch, with the keys of all ranks of a group.

    q: (batch, tokens, num_heads, head_dim); k, v: (batch, tokens, num_kv_heads, head_dim).
    They are float16, bfloat16, float32 or float64.
    dropout_p: share of attention probabilities dropped, in [0, 1).
    softmax_scale: what scores are multiplied with; None is head_dim ** -0.5.
    causal, window_size: query i sees key j of its sequence if -left <= j - i <= right; -1 is an open side, causal means
        right = 0 whatever window_size says. Positions are global: a window reaches over the borders of ranks.
    alibi_slopes: (num_heads,), (batch, num_heads), or (sequences, num_heads) for those that cu_seqlens tell of; floats.
    deterministic: gradients are bitwise the same from run to run.
    return_attn_probs: also return (softmax_lse, None); lse is (batch, num_heads, tokens) float32.
    group: a ProcessGroup, a one-dimensional DeviceMesh, or None for all processes.

    Returns out, shaped like q and in its dtype, or (out, softmax_lse, None). Raises ValueError or TypeError for what
    does not fit, before anything is communicated. The same as `ringattn.attention` in the layout `striped`, by
    ringattn_core's route `ring`; arguments and results are as in zhuzilin/ring-flash-attention.
    """

@overload
def stripe_flash_attn_kvpacked_func(
    q: Tensor, kv: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), alibi_slopes: Tensor | None = None, deterministic: bool = False,
    return_attn_probs: Literal[False] = False, group: Group = None,
) -> Tensor: ...

@overload
def stripe_flash_attn_kvpacked_func(
    q: Tensor, kv: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), alibi_slopes: Tensor | None = None, deterministic: bool = False, *,
    return_attn_probs: Literal[True], group: Group = None,
) -> tuple[Tensor, Tensor, None]: ...

@overload
def stripe_flash_attn_kvpacked_func(
    q: Tensor, kv: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), alibi_slopes: Tensor | None = None, deterministic: bool = False,
    return_attn_probs: bool = False, group: Group = None,
) -> Tensor | tuple[Tensor, Tensor, None]:
    """Exact attention over a batch, with the keys of all ranks of a group.

    q: (batch, tokens, num_heads, head_dim); kv: (batch, tokens, 2, num_kv_heads, head_dim), k before v.
    They are float16, bfloat16, float32 or float64.
    dropout_p: share of attention probabilities dropped, in [0, 1).
    softmax_scale: what scores are multiplied with; None is head_dim ** -0.5.
    causal, window_size: query i sees key j of its sequence if -left <= j - i <= right; -1 is an open side, causal means
        right = 0 whatever window_size says. Positions are global: a window reaches over the borders of ranks.
    alibi_slopes: (num_heads,), (batch, num_heads), or (sequences, num_heads) for those that cu_seqlens tell of; floats.
    deterministic: gradients are bitwise the same from run to run.
    return_attn_probs: also return (softmax_lse, None); lse is (batch, num_heads, tokens) float32.
    group: a ProcessGroup, a one-dimensional DeviceMesh, or None for all processes.

    Returns out, shaped like q and in its dtype, or (out, softmax_lse, None). Raises ValueError or TypeError for what
    does not fit, before anything is communicated. The same as `ringattn.attention` in the layout `striped`, by
    ringattn_core's route `ring`; arguments and results are as in zhuzilin/ring-flash-attention.
    """

@overload
def stripe_flash_attn_qkvpacked_func(
    qkv: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), alibi_slopes: Tensor | None = None, deterministic: bool = False,
    return_attn_probs: Literal[False] = False, group: Group = None,
) -> Tensor: ...

@overload
def stripe_flash_attn_qkvpacked_func(
    qkv: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), alibi_slopes: Tensor | None = None, deterministic: bool = False, *,
    return_attn_probs: Literal[True], group: Group = None,
) -> tuple[Tensor, Tensor, None]: ...

@overload
def stripe_flash_attn_qkvpacked_func(
    qkv: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), alibi_slopes: Tensor | None = None, deterministic: bool = False,
    return_attn_probs: bool = False, group: Group = None,
) -> Tensor | tuple[Tensor, Tensor, None]:
    """Exact attention over a batch, with the keys of all ranks of a group.

    qkv: (batch, tokens, 3, num_heads, head_dim), q before k before v.
    They are float16, bfloat16, float32 or float64.
    dropout_p: share of attention probabilities dropped, in [0, 1).
    softmax_scale: what scores are multiplied with; None is head_dim ** -0.5.
    causal, window_size: query i sees key j of its sequence if -left <= j - i <= right; -1 is an open side, causal means
        right = 0 whatever window_size says. Positions are global: a window reaches over the borders of ranks.
    alibi_slopes: (num_heads,), (batch, num_heads), or (sequences, num_heads) for those that cu_seqlens tell of; floats.
    deterministic: gradients are bitwise the same from run to run.
    return_attn_probs: also return (softmax_lse, None); lse is (batch, num_heads, tokens) float32.
    group: a ProcessGroup, a one-dimensional DeviceMesh, or None for all processes.

    Returns out, shaped like q and in its dtype, or (out, softmax_lse, None). Raises ValueError or TypeError for what
    does not fit, before anything is communicated. The same as `ringattn.attention` in the layout `striped`, by
    ringattn_core's route `ring`; arguments and results are as in zhuzilin/ring-flash-attention.
    """

@overload
def ring_flash_attn_varlen_func(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout_p: float = 0.0,
    softmax_scale: float | None = None, causal: bool = False, window_size: tuple[int, int] = (-1, -1),
    alibi_slopes: Tensor | None = None, deterministic: bool = False, return_attn_probs: Literal[False] = False,
    group: Group = None,
) -> Tensor: ...

@overload
def ring_flash_attn_varlen_func(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout_p: float = 0.0,
    softmax_scale: float | None = None, causal: bool = False, window_size: tuple[int, int] = (-1, -1),
    alibi_slopes: Tensor | None = None, deterministic: bool = False, *, return_attn_probs: Literal[True],
    group: Group = None,
) -> tuple[Tensor, Tensor, None]: ...

@overload
def ring_flash_attn_varlen_func(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout_p: float = 0.0,
    softmax_scale: float | None = None, causal: bool = False, window_size: tuple[int, int] = (-1, -1),
    alibi_slopes: Tensor | None = None, deterministic: bool = False, return_attn_probs: bool = False,
    group: Group = None,
) -> Tensor | tuple[Tensor, Tensor, None]:
    """Exact attention over packed sequences, with the keys of all ranks of a group.

    q: (tokens, num_heads, head_dim); k, v: (tokens, num_kv_heads, head_dim).
    They are float16, bfloat16, float32 or float64.
    cu_seqlens: int32 borders of the packed sequences *on this rank*: the global borders divided by
        the number of ranks.
    max_seqlen: unused, part of the signature only.
    dropout_p: share of attention probabilities dropped, in [0, 1).
    softmax_scale: what scores are multiplied with; None is head_dim ** -0.5.
    causal, window_size: query i sees key j of its sequence if -left <= j - i <= right; -1 is an open side, causal means
        right = 0 whatever window_size says. Positions are global: a window reaches over the borders of ranks.
    alibi_slopes: (num_heads,), (batch, num_heads), or (sequences, num_heads) for those that cu_seqlens tell of; floats.
    deterministic: gradients are bitwise the same from run to run.
    return_attn_probs: also return (softmax_lse, None); lse is (num_heads, tokens) float32.
    group: a ProcessGroup, a one-dimensional DeviceMesh, or None for all processes.

    Returns out, shaped like q and in its dtype, or (out, softmax_lse, None). Raises ValueError or TypeError for what
    does not fit, before anything is communicated. The same as `ringattn.attention` in the layout `contiguous`, by
    ringattn_core's route `ring`; arguments and results are as in zhuzilin/ring-flash-attention.
    """

@overload
def ring_flash_attn_varlen_kvpacked_func(
    q: Tensor, kv: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout_p: float = 0.0,
    softmax_scale: float | None = None, causal: bool = False, window_size: tuple[int, int] = (-1, -1),
    alibi_slopes: Tensor | None = None, deterministic: bool = False, return_attn_probs: Literal[False] = False,
    group: Group = None,
) -> Tensor: ...

@overload
def ring_flash_attn_varlen_kvpacked_func(
    q: Tensor, kv: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout_p: float = 0.0,
    softmax_scale: float | None = None, causal: bool = False, window_size: tuple[int, int] = (-1, -1),
    alibi_slopes: Tensor | None = None, deterministic: bool = False, *, return_attn_probs: Literal[True],
    group: Group = None,
) -> tuple[Tensor, Tensor, None]: ...

@overload
def ring_flash_attn_varlen_kvpacked_func(
    q: Tensor, kv: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout_p: float = 0.0,
    softmax_scale: float | None = None, causal: bool = False, window_size: tuple[int, int] = (-1, -1),
    alibi_slopes: Tensor | None = None, deterministic: bool = False, return_attn_probs: bool = False,
    group: Group = None,
) -> Tensor | tuple[Tensor, Tensor, None]:
    """Exact attention over packed sequences, with the keys of all ranks of a group.

    q: (tokens, num_heads, head_dim); kv: (tokens, 2, num_kv_heads, head_dim), k before v.
    They are float16, bfloat16, float32 or float64.
    cu_seqlens: int32 borders of the packed sequences *on this rank*: the global borders divided by
        the number of ranks.
    max_seqlen: unused, part of the signature only.
    dropout_p: share of attention probabilities dropped, in [0, 1).
    softmax_scale: what scores are multiplied with; None is head_dim ** -0.5.
    causal, window_size: query i sees key j of its sequence if -left <= j - i <= right; -1 is an open side, causal means
        right = 0 whatever window_size says. Positions are global: a window reaches over the borders of ranks.
    alibi_slopes: (num_heads,), (batch, num_heads), or (sequences, num_heads) for those that cu_seqlens tell of; floats.
    deterministic: gradients are bitwise the same from run to run.
    return_attn_probs: also return (softmax_lse, None); lse is (num_heads, tokens) float32.
    group: a ProcessGroup, a one-dimensional DeviceMesh, or None for all processes.

    Returns out, shaped like q and in its dtype, or (out, softmax_lse, None). Raises ValueError or TypeError for what
    does not fit, before anything is communicated. The same as `ringattn.attention` in the layout `contiguous`, by
    ringattn_core's route `ring`; arguments and results are as in zhuzilin/ring-flash-attention.
    """

@overload
def ring_flash_attn_varlen_qkvpacked_func(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout_p: float = 0.0, softmax_scale: float | None = None,
    causal: bool = False, window_size: tuple[int, int] = (-1, -1), alibi_slopes: Tensor | None = None,
    deterministic: bool = False, return_attn_probs: Literal[False] = False, group: Group = None,
) -> Tensor: ...

@overload
def ring_flash_attn_varlen_qkvpacked_func(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout_p: float = 0.0, softmax_scale: float | None = None,
    causal: bool = False, window_size: tuple[int, int] = (-1, -1), alibi_slopes: Tensor | None = None,
    deterministic: bool = False, *, return_attn_probs: Literal[True], group: Group = None,
) -> tuple[Tensor, Tensor, None]: ...

@overload
def ring_flash_attn_varlen_qkvpacked_func(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout_p: float = 0.0, softmax_scale: float | None = None,
    causal: bool = False, window_size: tuple[int, int] = (-1, -1), alibi_slopes: Tensor | None = None,
    deterministic: bool = False, return_attn_probs: bool = False, group: Group = None,
) -> Tensor | tuple[Tensor, Tensor, None]:
    """Exact attention over packed sequences, with the keys of all ranks of a group.

    qkv: (tokens, 3, num_heads, head_dim), q before k before v.
    They are float16, bfloat16, float32 or float64.
    cu_seqlens: int32 borders of the packed sequences *on this rank*: the global borders divided by
        the number of ranks.
    max_seqlen: unused, part of the signature only.
    dropout_p: share of attention probabilities dropped, in [0, 1).
    softmax_scale: what scores are multiplied with; None is head_dim ** -0.5.
    causal, window_size: query i sees key j of its sequence if -left <= j - i <= right; -1 is an open side, causal means
        right = 0 whatever window_size says. Positions are global: a window reaches over the borders of ranks.
    alibi_slopes: (num_heads,), (batch, num_heads), or (sequences, num_heads) for those that cu_seqlens tell of; floats.
    deterministic: gradients are bitwise the same from run to run.
    return_attn_probs: also return (softmax_lse, None); lse is (num_heads, tokens) float32.
    group: a ProcessGroup, a one-dimensional DeviceMesh, or None for all processes.

    Returns out, shaped like q and in its dtype, or (out, softmax_lse, None). Raises ValueError or TypeError for what
    does not fit, before anything is communicated. The same as `ringattn.attention` in the layout `contiguous`, by
    ringattn_core's route `ring`; arguments and results are as in zhuzilin/ring-flash-attention.
    """

@overload
def zigzag_ring_flash_attn_varlen_func(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout_p: float = 0.0,
    softmax_scale: float | None = None, causal: bool = False, window_size: tuple[int, int] = (-1, -1),
    alibi_slopes: Tensor | None = None, deterministic: bool = False, return_attn_probs: Literal[False] = False,
    group: Group = None,
) -> Tensor: ...

@overload
def zigzag_ring_flash_attn_varlen_func(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout_p: float = 0.0,
    softmax_scale: float | None = None, causal: bool = False, window_size: tuple[int, int] = (-1, -1),
    alibi_slopes: Tensor | None = None, deterministic: bool = False, *, return_attn_probs: Literal[True],
    group: Group = None,
) -> tuple[Tensor, Tensor, None]: ...

@overload
def zigzag_ring_flash_attn_varlen_func(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout_p: float = 0.0,
    softmax_scale: float | None = None, causal: bool = False, window_size: tuple[int, int] = (-1, -1),
    alibi_slopes: Tensor | None = None, deterministic: bool = False, return_attn_probs: bool = False,
    group: Group = None,
) -> Tensor | tuple[Tensor, Tensor, None]:
    """Exact attention over packed sequences, with the keys of all ranks of a group.

    q: (tokens, num_heads, head_dim); k, v: (tokens, num_kv_heads, head_dim).
    They are float16, bfloat16, float32 or float64.
    cu_seqlens: int32 borders of the packed sequences *on this rank*: the global borders divided by
        the number of ranks.
    max_seqlen: unused, part of the signature only.
    dropout_p: share of attention probabilities dropped, in [0, 1).
    softmax_scale: what scores are multiplied with; None is head_dim ** -0.5.
    causal, window_size: query i sees key j of its sequence if -left <= j - i <= right; -1 is an open side, causal means
        right = 0 whatever window_size says. Positions are global: a window reaches over the borders of ranks.
    alibi_slopes: (num_heads,), (batch, num_heads), or (sequences, num_heads) for those that cu_seqlens tell of; floats.
    deterministic: gradients are bitwise the same from run to run.
    return_attn_probs: also return (softmax_lse, None); lse is (num_heads, tokens) float32.
    group: a ProcessGroup, a one-dimensional DeviceMesh, or None for all processes.

    Returns out, shaped like q and in its dtype, or (out, softmax_lse, None). Raises ValueError or TypeError for what
    does not fit, before anything is communicated. The same as `ringattn.attention` in the layout `zigzag`, by
    ringattn_core's route `ring`; arguments and results are as in zhuzilin/ring-flash-attention.
    """

@overload
def zigzag_ring_flash_attn_varlen_kvpacked_func(
    q: Tensor, kv: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout_p: float = 0.0,
    softmax_scale: float | None = None, causal: bool = False, window_size: tuple[int, int] = (-1, -1),
    alibi_slopes: Tensor | None = None, deterministic: bool = False, return_attn_probs: Literal[False] = False,
    group: Group = None,
) -> Tensor: ...

@overload
def zigzag_ring_flash_attn_varlen_kvpacked_func(
    q: Tensor, kv: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout_p: float = 0.0,
    softmax_scale: float | None = None, causal: bool = False, window_size: tuple[int, int] = (-1, -1),
    alibi_slopes: Tensor | None = None, deterministic: bool = False, *, return_attn_probs: Literal[True],
    group: Group = None,
) -> tuple[Tensor, Tensor, None]: ...

@overload
def zigzag_ring_flash_attn_varlen_kvpacked_func(
    q: Tensor, kv: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout_p: float = 0.0,
    softmax_scale: float | None = None, causal: bool = False, window_size: tuple[int, int] = (-1, -1),
    alibi_slopes: Tensor | None = None, deterministic: bool = False, return_attn_probs: bool = False,
    group: Group = None,
) -> Tensor | tuple[Tensor, Tensor, None]:
    """Exact attention over packed sequences, with the keys of all ranks of a group.

    q: (tokens, num_heads, head_dim); kv: (tokens, 2, num_kv_heads, head_dim), k before v.
    They are float16, bfloat16, float32 or float64.
    cu_seqlens: int32 borders of the packed sequences *on this rank*: the global borders divided by
        the number of ranks.
    max_seqlen: unused, part of the signature only.
    dropout_p: share of attention probabilities dropped, in [0, 1).
    softmax_scale: what scores are multiplied with; None is head_dim ** -0.5.
    causal, window_size: query i sees key j of its sequence if -left <= j - i <= right; -1 is an open side, causal means
        right = 0 whatever window_size says. Positions are global: a window reaches over the borders of ranks.
    alibi_slopes: (num_heads,), (batch, num_heads), or (sequences, num_heads) for those that cu_seqlens tell of; floats.
    deterministic: gradients are bitwise the same from run to run.
    return_attn_probs: also return (softmax_lse, None); lse is (num_heads, tokens) float32.
    group: a ProcessGroup, a one-dimensional DeviceMesh, or None for all processes.

    Returns out, shaped like q and in its dtype, or (out, softmax_lse, None). Raises ValueError or TypeError for what
    does not fit, before anything is communicated. The same as `ringattn.attention` in the layout `zigzag`, by
    ringattn_core's route `ring`; arguments and results are as in zhuzilin/ring-flash-attention.
    """

@overload
def zigzag_ring_flash_attn_varlen_qkvpacked_func(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout_p: float = 0.0, softmax_scale: float | None = None,
    causal: bool = False, window_size: tuple[int, int] = (-1, -1), alibi_slopes: Tensor | None = None,
    deterministic: bool = False, return_attn_probs: Literal[False] = False, group: Group = None,
) -> Tensor: ...

@overload
def zigzag_ring_flash_attn_varlen_qkvpacked_func(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout_p: float = 0.0, softmax_scale: float | None = None,
    causal: bool = False, window_size: tuple[int, int] = (-1, -1), alibi_slopes: Tensor | None = None,
    deterministic: bool = False, *, return_attn_probs: Literal[True], group: Group = None,
) -> tuple[Tensor, Tensor, None]: ...

@overload
def zigzag_ring_flash_attn_varlen_qkvpacked_func(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout_p: float = 0.0, softmax_scale: float | None = None,
    causal: bool = False, window_size: tuple[int, int] = (-1, -1), alibi_slopes: Tensor | None = None,
    deterministic: bool = False, return_attn_probs: bool = False, group: Group = None,
) -> Tensor | tuple[Tensor, Tensor, None]:
    """Exact attention over packed sequences, with the keys of all ranks of a group.

    qkv: (tokens, 3, num_heads, head_dim), q before k before v.
    They are float16, bfloat16, float32 or float64.
    cu_seqlens: int32 borders of the packed sequences *on this rank*: the global borders divided by
        the number of ranks.
    max_seqlen: unused, part of the signature only.
    dropout_p: share of attention probabilities dropped, in [0, 1).
    softmax_scale: what scores are multiplied with; None is head_dim ** -0.5.
    causal, window_size: query i sees key j of its sequence if -left <= j - i <= right; -1 is an open side, causal means
        right = 0 whatever window_size says. Positions are global: a window reaches over the borders of ranks.
    alibi_slopes: (num_heads,), (batch, num_heads), or (sequences, num_heads) for those that cu_seqlens tell of; floats.
    deterministic: gradients are bitwise the same from run to run.
    return_attn_probs: also return (softmax_lse, None); lse is (num_heads, tokens) float32.
    group: a ProcessGroup, a one-dimensional DeviceMesh, or None for all processes.

    Returns out, shaped like q and in its dtype, or (out, softmax_lse, None). Raises ValueError or TypeError for what
    does not fit, before anything is communicated. The same as `ringattn.attention` in the layout `zigzag`, by
    ringattn_core's route `ring`; arguments and results are as in zhuzilin/ring-flash-attention.
    """

@overload
def stripe_flash_attn_varlen_func(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout_p: float = 0.0,
    softmax_scale: float | None = None, causal: bool = False, window_size: tuple[int, int] = (-1, -1),
    alibi_slopes: Tensor | None = None, deterministic: bool = False, return_attn_probs: Literal[False] = False,
    group: Group = None,
) -> Tensor: ...

@overload
def stripe_flash_attn_varlen_func(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout_p: float = 0.0,
    softmax_scale: float | None = None, causal: bool = False, window_size: tuple[int, int] = (-1, -1),
    alibi_slopes: Tensor | None = None, deterministic: bool = False, *, return_attn_probs: Literal[True],
    group: Group = None,
) -> tuple[Tensor, Tensor, None]: ...

@overload
def stripe_flash_attn_varlen_func(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout_p: float = 0.0,
    softmax_scale: float | None = None, causal: bool = False, window_size: tuple[int, int] = (-1, -1),
    alibi_slopes: Tensor | None = None, deterministic: bool = False, return_attn_probs: bool = False,
    group: Group = None,
) -> Tensor | tuple[Tensor, Tensor, None]:
    """Exact attention over packed sequences, with the keys of all ranks of a group.

    q: (tokens, num_heads, head_dim); k, v: (tokens, num_kv_heads, head_dim).
    They are float16, bfloat16, float32 or float64.
    cu_seqlens: int32 borders of the packed sequences *on this rank*: the global borders divided by
        the number of ranks.
    max_seqlen: unused, part of the signature only.
    dropout_p: share of attention probabilities dropped, in [0, 1).
    softmax_scale: what scores are multiplied with; None is head_dim ** -0.5.
    causal, window_size: query i sees key j of its sequence if -left <= j - i <= right; -1 is an open side, causal means
        right = 0 whatever window_size says. Positions are global: a window reaches over the borders of ranks.
    alibi_slopes: (num_heads,), (batch, num_heads), or (sequences, num_heads) for those that cu_seqlens tell of; floats.
    deterministic: gradients are bitwise the same from run to run.
    return_attn_probs: also return (softmax_lse, None); lse is (num_heads, tokens) float32.
    group: a ProcessGroup, a one-dimensional DeviceMesh, or None for all processes.

    Returns out, shaped like q and in its dtype, or (out, softmax_lse, None). Raises ValueError or TypeError for what
    does not fit, before anything is communicated. The same as `ringattn.attention` in the layout `striped`, by
    ringattn_core's route `ring`; arguments and results are as in zhuzilin/ring-flash-attention.
    """

@overload
def stripe_flash_attn_varlen_kvpacked_func(
    q: Tensor, kv: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout_p: float = 0.0,
    softmax_scale: float | None = None, causal: bool = False, window_size: tuple[int, int] = (-1, -1),
    alibi_slopes: Tensor | None = None, deterministic: bool = False, return_attn_probs: Literal[False] = False,
    group: Group = None,
) -> Tensor: ...

@overload
def stripe_flash_attn_varlen_kvpacked_func(
    q: Tensor, kv: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout_p: float = 0.0,
    softmax_scale: float | None = None, causal: bool = False, window_size: tuple[int, int] = (-1, -1),
    alibi_slopes: Tensor | None = None, deterministic: bool = False, *, return_attn_probs: Literal[True],
    group: Group = None,
) -> tuple[Tensor, Tensor, None]: ...

@overload
def stripe_flash_attn_varlen_kvpacked_func(
    q: Tensor, kv: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout_p: float = 0.0,
    softmax_scale: float | None = None, causal: bool = False, window_size: tuple[int, int] = (-1, -1),
    alibi_slopes: Tensor | None = None, deterministic: bool = False, return_attn_probs: bool = False,
    group: Group = None,
) -> Tensor | tuple[Tensor, Tensor, None]:
    """Exact attention over packed sequences, with the keys of all ranks of a group.

    q: (tokens, num_heads, head_dim); kv: (tokens, 2, num_kv_heads, head_dim), k before v.
    They are float16, bfloat16, float32 or float64.
    cu_seqlens: int32 borders of the packed sequences *on this rank*: the global borders divided by
        the number of ranks.
    max_seqlen: unused, part of the signature only.
    dropout_p: share of attention probabilities dropped, in [0, 1).
    softmax_scale: what scores are multiplied with; None is head_dim ** -0.5.
    causal, window_size: query i sees key j of its sequence if -left <= j - i <= right; -1 is an open side, causal means
        right = 0 whatever window_size says. Positions are global: a window reaches over the borders of ranks.
    alibi_slopes: (num_heads,), (batch, num_heads), or (sequences, num_heads) for those that cu_seqlens tell of; floats.
    deterministic: gradients are bitwise the same from run to run.
    return_attn_probs: also return (softmax_lse, None); lse is (num_heads, tokens) float32.
    group: a ProcessGroup, a one-dimensional DeviceMesh, or None for all processes.

    Returns out, shaped like q and in its dtype, or (out, softmax_lse, None). Raises ValueError or TypeError for what
    does not fit, before anything is communicated. The same as `ringattn.attention` in the layout `striped`, by
    ringattn_core's route `ring`; arguments and results are as in zhuzilin/ring-flash-attention.
    """

@overload
def stripe_flash_attn_varlen_qkvpacked_func(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout_p: float = 0.0, softmax_scale: float | None = None,
    causal: bool = False, window_size: tuple[int, int] = (-1, -1), alibi_slopes: Tensor | None = None,
    deterministic: bool = False, return_attn_probs: Literal[False] = False, group: Group = None,
) -> Tensor: ...

@overload
def stripe_flash_attn_varlen_qkvpacked_func(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout_p: float = 0.0, softmax_scale: float | None = None,
    causal: bool = False, window_size: tuple[int, int] = (-1, -1), alibi_slopes: Tensor | None = None,
    deterministic: bool = False, *, return_attn_probs: Literal[True], group: Group = None,
) -> tuple[Tensor, Tensor, None]: ...

@overload
def stripe_flash_attn_varlen_qkvpacked_func(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout_p: float = 0.0, softmax_scale: float | None = None,
    causal: bool = False, window_size: tuple[int, int] = (-1, -1), alibi_slopes: Tensor | None = None,
    deterministic: bool = False, return_attn_probs: bool = False, group: Group = None,
) -> Tensor | tuple[Tensor, Tensor, None]:
    """Exact attention over packed sequences, with the keys of all ranks of a group.

    qkv: (tokens, 3, num_heads, head_dim), q before k before v.
    They are float16, bfloat16, float32 or float64.
    cu_seqlens: int32 borders of the packed sequences *on this rank*: the global borders divided by
        the number of ranks.
    max_seqlen: unused, part of the signature only.
    dropout_p: share of attention probabilities dropped, in [0, 1).
    softmax_scale: what scores are multiplied with; None is head_dim ** -0.5.
    causal, window_size: query i sees key j of its sequence if -left <= j - i <= right; -1 is an open side, causal means
        right = 0 whatever window_size says. Positions are global: a window reaches over the borders of ranks.
    alibi_slopes: (num_heads,), (batch, num_heads), or (sequences, num_heads) for those that cu_seqlens tell of; floats.
    deterministic: gradients are bitwise the same from run to run.
    return_attn_probs: also return (softmax_lse, None); lse is (num_heads, tokens) float32.
    group: a ProcessGroup, a one-dimensional DeviceMesh, or None for all processes.

    Returns out, shaped like q and in its dtype, or (out, softmax_lse, None). Raises ValueError or TypeError for what
    does not fit, before anything is communicated. The same as `ringattn.attention` in the layout `striped`, by
    ringattn_core's route `ring`; arguments and results are as in zhuzilin/ring-flash-attention.
    """

@overload
def llama3_flash_attn_varlen_func(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int, max_seqlen_k: int,
    heads_k_stride: int, local_k_slice: slice[int, int, int | None], dropout_p: float = 0.0,
    softmax_scale: float | None = None, causal: bool = False, window_size: tuple[int, int] = (-1, -1),
    alibi_slopes: Tensor | None = None, deterministic: bool = False, return_attn_probs: Literal[False] = False,
    group: Group = None,
) -> Tensor: ...

@overload
def llama3_flash_attn_varlen_func(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int, max_seqlen_k: int,
    heads_k_stride: int, local_k_slice: slice[int, int, int | None], dropout_p: float = 0.0,
    softmax_scale: float | None = None, causal: bool = False, window_size: tuple[int, int] = (-1, -1),
    alibi_slopes: Tensor | None = None, deterministic: bool = False, *, return_attn_probs: Literal[True],
    group: Group = None,
) -> tuple[Tensor, Tensor, None]: ...

@overload
def llama3_flash_attn_varlen_func(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int, max_seqlen_k: int,
    heads_k_stride: int, local_k_slice: slice[int, int, int | None], dropout_p: float = 0.0,
    softmax_scale: float | None = None, causal: bool = False, window_size: tuple[int, int] = (-1, -1),
    alibi_slopes: Tensor | None = None, deterministic: bool = False, return_attn_probs: bool = False,
    group: Group = None,
) -> Tensor | tuple[Tensor, Tensor, None]:
    """Exact attention over a packed stream, with the keys of all ranks of a group.

    q: (tokens, num_heads, head_dim); k, v: (tokens, num_kv_heads, head_dim).
    They are float16, bfloat16, float32 or float64.
    cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, local_k_slice: what
        `llama3_flash_attn_prepare_cu_seqlens` returned for this rank.
    heads_k_stride: kv heads gathered at a time; it divides num_kv_heads.
    dropout_p: share of attention probabilities dropped, in [0, 1).
    softmax_scale: what scores are multiplied with; None is head_dim ** -0.5.
    causal, window_size: query i sees key j of its sequence if -left <= j - i <= right; -1 is an open side, causal means
        right = 0 whatever window_size says. Positions are global: a window reaches over the borders of ranks.
    alibi_slopes: (num_heads,), (batch, num_heads), or (sequences, num_heads) for those that cu_seqlens tell of; floats.
    deterministic: gradients are bitwise the same from run to run.
    return_attn_probs: also return (softmax_lse, None); lse is (num_heads, tokens) float32.
    group: a ProcessGroup, a one-dimensional DeviceMesh, or None for all processes.

    Returns out, shaped like q and in its dtype, or (out, softmax_lse, None). Raises ValueError or TypeError for what
    does not fit, before anything is communicated. The same as `ringattn.attention` in the layout `contiguous`, by
    ringattn_core's route `at_once`; arguments and results are as in zhuzilin/ring-flash-attention.
    """

@overload
def llama3_flash_attn_varlen_kvpacked_func(
    q: Tensor, kv: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int, max_seqlen_k: int,
    heads_k_stride: int, local_k_slice: slice[int, int, int | None], dropout_p: float = 0.0,
    softmax_scale: float | None = None, causal: bool = False, window_size: tuple[int, int] = (-1, -1),
    alibi_slopes: Tensor | None = None, deterministic: bool = False, return_attn_probs: Literal[False] = False,
    group: Group = None,
) -> Tensor: ...

@overload
def llama3_flash_attn_varlen_kvpacked_func(
    q: Tensor, kv: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int, max_seqlen_k: int,
    heads_k_stride: int, local_k_slice: slice[int, int, int | None], dropout_p: float = 0.0,
    softmax_scale: float | None = None, causal: bool = False, window_size: tuple[int, int] = (-1, -1),
    alibi_slopes: Tensor | None = None, deterministic: bool = False, *, return_attn_probs: Literal[True],
    group: Group = None,
) -> tuple[Tensor, Tensor, None]: ...

@overload
def llama3_flash_attn_varlen_kvpacked_func(
    q: Tensor, kv: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int, max_seqlen_k: int,
    heads_k_stride: int, local_k_slice: slice[int, int, int | None], dropout_p: float = 0.0,
    softmax_scale: float | None = None, causal: bool = False, window_size: tuple[int, int] = (-1, -1),
    alibi_slopes: Tensor | None = None, deterministic: bool = False, return_attn_probs: bool = False,
    group: Group = None,
) -> Tensor | tuple[Tensor, Tensor, None]:
    """Exact attention over a packed stream, with the keys of all ranks of a group.

    q: (tokens, num_heads, head_dim); kv: (tokens, 2, num_kv_heads, head_dim), k before v.
    They are float16, bfloat16, float32 or float64.
    cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, local_k_slice: what
        `llama3_flash_attn_prepare_cu_seqlens` returned for this rank.
    heads_k_stride: kv heads gathered at a time; it divides num_kv_heads.
    dropout_p: share of attention probabilities dropped, in [0, 1).
    softmax_scale: what scores are multiplied with; None is head_dim ** -0.5.
    causal, window_size: query i sees key j of its sequence if -left <= j - i <= right; -1 is an open side, causal means
        right = 0 whatever window_size says. Positions are global: a window reaches over the borders of ranks.
    alibi_slopes: (num_heads,), (batch, num_heads), or (sequences, num_heads) for those that cu_seqlens tell of; floats.
    deterministic: gradients are bitwise the same from run to run.
    return_attn_probs: also return (softmax_lse, None); lse is (num_heads, tokens) float32.
    group: a ProcessGroup, a one-dimensional DeviceMesh, or None for all processes.

    Returns out, shaped like q and in its dtype, or (out, softmax_lse, None). Raises ValueError or TypeError for what
    does not fit, before anything is communicated. The same as `ringattn.attention` in the layout `contiguous`, by
    ringattn_core's route `at_once`; arguments and results are as in zhuzilin/ring-flash-attention.
    """

@overload
def llama3_flash_attn_varlen_qkvpacked_func(
    qkv: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int, max_seqlen_k: int, heads_k_stride: int,
    local_k_slice: slice[int, int, int | None], dropout_p: float = 0.0, softmax_scale: float | None = None,
    causal: bool = False, window_size: tuple[int, int] = (-1, -1), alibi_slopes: Tensor | None = None,
    deterministic: bool = False, return_attn_probs: Literal[False] = False, group: Group = None,
) -> Tensor: ...

@overload
def llama3_flash_attn_varlen_qkvpacked_func(
    qkv: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int, max_seqlen_k: int, heads_k_stride: int,
    local_k_slice: slice[int, int, int | None], dropout_p: float = 0.0, softmax_scale: float | None = None,
    causal: bool = False, window_size: tuple[int, int] = (-1, -1), alibi_slopes: Tensor | None = None,
    deterministic: bool = False, *, return_attn_probs: Literal[True], group: Group = None,
) -> tuple[Tensor, Tensor, None]: ...

@overload
def llama3_flash_attn_varlen_qkvpacked_func(
    qkv: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int, max_seqlen_k: int, heads_k_stride: int,
    local_k_slice: slice[int, int, int | None], dropout_p: float = 0.0, softmax_scale: float | None = None,
    causal: bool = False, window_size: tuple[int, int] = (-1, -1), alibi_slopes: Tensor | None = None,
    deterministic: bool = False, return_attn_probs: bool = False, group: Group = None,
) -> Tensor | tuple[Tensor, Tensor, None]:
    """Exact attention over a packed stream, with the keys of all ranks of a group.

    qkv: (tokens, 3, num_heads, head_dim), q before k before v.
    They are float16, bfloat16, float32 or float64.
    cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, local_k_slice: what
        `llama3_flash_attn_prepare_cu_seqlens` returned for this rank.
    heads_k_stride: kv heads gathered at a time; it divides num_kv_heads.
    dropout_p: share of attention probabilities dropped, in [0, 1).
    softmax_scale: what scores are multiplied with; None is head_dim ** -0.5.
    causal, window_size: query i sees key j of its sequence if -left <= j - i <= right; -1 is an open side, causal means
        right = 0 whatever window_size says. Positions are global: a window reaches over the borders of ranks.
    alibi_slopes: (num_heads,), (batch, num_heads), or (sequences, num_heads) for those that cu_seqlens tell of; floats.
    deterministic: gradients are bitwise the same from run to run.
    return_attn_probs: also return (softmax_lse, None); lse is (num_heads, tokens) float32.
    group: a ProcessGroup, a one-dimensional DeviceMesh, or None for all processes.

    Returns out, shaped like q and in its dtype, or (out, softmax_lse, None). Raises ValueError or TypeError for what
    does not fit, before anything is communicated. The same as `ringattn.attention` in the layout `contiguous`, by
    ringattn_core's route `at_once`; arguments and results are as in zhuzilin/ring-flash-attention.
    """

@overload
def zigzag_llama3_flash_attn_varlen_func(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, heads_k_stride: int, dropout_p: float = 0.0,
    softmax_scale: float | None = None, causal: bool = False, window_size: tuple[int, int] = (-1, -1),
    alibi_slopes: Tensor | None = None, deterministic: bool = False, return_attn_probs: Literal[False] = False,
    group: Group = None,
) -> Tensor: ...

@overload
def zigzag_llama3_flash_attn_varlen_func(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, heads_k_stride: int, dropout_p: float = 0.0,
    softmax_scale: float | None = None, causal: bool = False, window_size: tuple[int, int] = (-1, -1),
    alibi_slopes: Tensor | None = None, deterministic: bool = False, *, return_attn_probs: Literal[True],
    group: Group = None,
) -> tuple[Tensor, Tensor, None]: ...

@overload
def zigzag_llama3_flash_attn_varlen_func(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, heads_k_stride: int, dropout_p: float = 0.0,
    softmax_scale: float | None = None, causal: bool = False, window_size: tuple[int, int] = (-1, -1),
    alibi_slopes: Tensor | None = None, deterministic: bool = False, return_attn_probs: bool = False,
    group: Group = None,
) -> Tensor | tuple[Tensor, Tensor, None]:
    """Exact attention over packed sequences, with the keys of all ranks of a group.

    q: (tokens, num_heads, head_dim); k, v: (tokens, num_kv_heads, head_dim).
    They are float16, bfloat16, float32 or float64.
    cu_seqlens: int32 borders of the packed sequences *on this rank*: the global borders divided by
        the number of ranks.
    max_seqlen: unused, part of the signature only.
    heads_k_stride: kv heads gathered at a time; it divides num_kv_heads.
    dropout_p: share of attention probabilities dropped, in [0, 1).
    softmax_scale: what scores are multiplied with; None is head_dim ** -0.5.
    causal, window_size: query i sees key j of its sequence if -left <= j - i <= right; -1 is an open side, causal means
        right = 0 whatever window_size says. Positions are global: a window reaches over the borders of ranks.
    alibi_slopes: (num_heads,), (batch, num_heads), or (sequences, num_heads) for those that cu_seqlens tell of; floats.
    deterministic: gradients are bitwise the same from run to run.
    return_attn_probs: also return (softmax_lse, None); lse is (num_heads, tokens) float32.
    group: a ProcessGroup, a one-dimensional DeviceMesh, or None for all processes.

    Returns out, shaped like q and in its dtype, or (out, softmax_lse, None). Raises ValueError or TypeError for what
    does not fit, before anything is communicated. The same as `ringattn.attention` in the layout `zigzag`, by
    ringattn_core's route `gather`; arguments and results are as in zhuzilin/ring-flash-attention.
    """

@overload
def zigzag_llama3_flash_attn_varlen_kvpacked_func(
    q: Tensor, kv: Tensor, cu_seqlens: Tensor, max_seqlen: int, heads_k_stride: int, dropout_p: float = 0.0,
    softmax_scale: float | None = None, causal: bool = False, window_size: tuple[int, int] = (-1, -1),
    alibi_slopes: Tensor | None = None, deterministic: bool = False, return_attn_probs: Literal[False] = False,
    group: Group = None,
) -> Tensor: ...

@overload
def zigzag_llama3_flash_attn_varlen_kvpacked_func(
    q: Tensor, kv: Tensor, cu_seqlens: Tensor, max_seqlen: int, heads_k_stride: int, dropout_p: float = 0.0,
    softmax_scale: float | None = None, causal: bool = False, window_size: tuple[int, int] = (-1, -1),
    alibi_slopes: Tensor | None = None, deterministic: bool = False, *, return_attn_probs: Literal[True],
    group: Group = None,
) -> tuple[Tensor, Tensor, None]: ...

@overload
def zigzag_llama3_flash_attn_varlen_kvpacked_func(
    q: Tensor, kv: Tensor, cu_seqlens: Tensor, max_seqlen: int, heads_k_stride: int, dropout_p: float = 0.0,
    softmax_scale: float | None = None, causal: bool = False, window_size: tuple[int, int] = (-1, -1),
    alibi_slopes: Tensor | None = None, deterministic: bool = False, return_attn_probs: bool = False,
    group: Group = None,
) -> Tensor | tuple[Tensor, Tensor, None]:
    """Exact attention over packed sequences, with the keys of all ranks of a group.

    q: (tokens, num_heads, head_dim); kv: (tokens, 2, num_kv_heads, head_dim), k before v.
    They are float16, bfloat16, float32 or float64.
    cu_seqlens: int32 borders of the packed sequences *on this rank*: the global borders divided by
        the number of ranks.
    max_seqlen: unused, part of the signature only.
    heads_k_stride: kv heads gathered at a time; it divides num_kv_heads.
    dropout_p: share of attention probabilities dropped, in [0, 1).
    softmax_scale: what scores are multiplied with; None is head_dim ** -0.5.
    causal, window_size: query i sees key j of its sequence if -left <= j - i <= right; -1 is an open side, causal means
        right = 0 whatever window_size says. Positions are global: a window reaches over the borders of ranks.
    alibi_slopes: (num_heads,), (batch, num_heads), or (sequences, num_heads) for those that cu_seqlens tell of; floats.
    deterministic: gradients are bitwise the same from run to run.
    return_attn_probs: also return (softmax_lse, None); lse is (num_heads, tokens) float32.
    group: a ProcessGroup, a one-dimensional DeviceMesh, or None for all processes.

    Returns out, shaped like q and in its dtype, or (out, softmax_lse, None). Raises ValueError or TypeError for what
    does not fit, before anything is communicated. The same as `ringattn.attention` in the layout `zigzag`, by
    ringattn_core's route `gather`; arguments and results are as in zhuzilin/ring-flash-attention.
    """

@overload
def zigzag_llama3_flash_attn_varlen_qkvpacked_func(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, heads_k_stride: int, dropout_p: float = 0.0,
    softmax_scale: float | None = None, causal: bool = False, window_size: tuple[int, int] = (-1, -1),
    alibi_slopes: Tensor | None = None, deterministic: bool = False, return_attn_probs: Literal[False] = False,
    group: Group = None,
) -> Tensor: ...

@overload
def zigzag_llama3_flash_attn_varlen_qkvpacked_func(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, heads_k_stride: int, dropout_p: float = 0.0,
    softmax_scale: float | None = None, causal: bool = False, window_size: tuple[int, int] = (-1, -1),
    alibi_slopes: Tensor | None = None, deterministic: bool = False, *, return_attn_probs: Literal[True],
    group: Group = None,
) -> tuple[Tensor, Tensor, None]: ...

@overload
def zigzag_llama3_flash_attn_varlen_qkvpacked_func(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, heads_k_stride: int, dropout_p: float = 0.0,
    softmax_scale: float | None = None, causal: bool = False, window_size: tuple[int, int] = (-1, -1),
    alibi_slopes: Tensor | None = None, deterministic: bool = False, return_attn_probs: bool = False,
    group: Group = None,
) -> Tensor | tuple[Tensor, Tensor, None]:
    """Exact attention over packed sequences, with the keys of all ranks of a group.

    qkv: (tokens, 3, num_heads, head_dim), q before k before v.
    They are float16, bfloat16, float32 or float64.
    cu_seqlens: int32 borders of the packed sequences *on this rank*: the global borders divided by
        the number of ranks.
    max_seqlen: unused, part of the signature only.
    heads_k_stride: kv heads gathered at a time; it divides num_kv_heads.
    dropout_p: share of attention probabilities dropped, in [0, 1).
    softmax_scale: what scores are multiplied with; None is head_dim ** -0.5.
    causal, window_size: query i sees key j of its sequence if -left <= j - i <= right; -1 is an open side, causal means
        right = 0 whatever window_size says. Positions are global: a window reaches over the borders of ranks.
    alibi_slopes: (num_heads,), (batch, num_heads), or (sequences, num_heads) for those that cu_seqlens tell of; floats.
    deterministic: gradients are bitwise the same from run to run.
    return_attn_probs: also return (softmax_lse, None); lse is (num_heads, tokens) float32.
    group: a ProcessGroup, a one-dimensional DeviceMesh, or None for all processes.

    Returns out, shaped like q and in its dtype, or (out, softmax_lse, None). Raises ValueError or TypeError for what
    does not fit, before anything is communicated. The same as `ringattn.attention` in the layout `zigzag`, by
    ringattn_core's route `gather`; arguments and results are as in zhuzilin/ring-flash-attention.
    """
