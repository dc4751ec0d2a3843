"""The calling conventions of ring-flash-attention as one table, from which all of its functions are made.

Names, arguments, their order and their defaults are those of version 0.1.8 of
https://github.com/zhuzilin/ring-flash-attention, so its users change an import. A family of functions is a row: how
tokens are laid out, which way keys travel, and which arguments tell the lengths. `ringattn.functions` makes three
functions of each row, and `ringattn.compat.raw` two more that work below autograd. This module imports no torch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

LOCAL = "cu_seqlens", "max_seqlen"
PREPARED = "cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k", "heads_k_stride", "local_k_slice"


class Convention(NamedTuple):
    """One family of functions.

    lengths: the arguments between the tensors and `TAIL`. Empty: a batch, with the same number of tokens on every
        rank. `LOCAL`: packed sequences, each of them divided among the ranks. `PREPARED`: the whole packed stream is
        divided. "heads_k_stride" says how many kv heads travel at a time.
    raw_only: more arguments of the functions below autograd; None where there are no such functions, because version
        0.1.8 has no such family.
    """

    prefix: str
    layout: str
    route: str
    lengths: tuple[str, ...] = ()
    raw_only: tuple[str, ...] | None = ()

    @property
    def rows(self) -> str:
        """The dimensions of a tensor before its heads."""
        return "tokens" if self.lengths else "batch, tokens"


_FAMILIES = (
    Convention("ring_flash_attn", "contiguous", "ring"),
    Convention("zigzag_ring_flash_attn", "zigzag", "ring"),
    Convention("stripe_flash_attn", "striped", "ring"),
    Convention("ring_flash_attn_varlen", "contiguous", "ring", LOCAL),
    Convention("zigzag_ring_flash_attn_varlen", "zigzag", "ring", LOCAL, raw_only=("half_index0", "half_index1")),
    Convention("stripe_flash_attn_varlen", "striped", "ring", LOCAL, raw_only=None),
    Convention("llama3_flash_attn_varlen", "contiguous", "at_once", PREPARED),
    Convention("zigzag_llama3_flash_attn_varlen", "zigzag", "gather", (*LOCAL, "heads_k_stride"), raw_only=None),
)
CONVENTIONS = {family.prefix: family for family in _FAMILIES}
"""Every family by the name that its functions begin with."""

PACKINGS = {"func": ("q", "k", "v"), "kvpacked_func": ("q", "kv"), "qkvpacked_func": ("qkv",)}
"""The tensors of a function, by what its name ends with."""

TAIL: dict[str, Any] = {
    "dropout_p": 0.0,
    "softmax_scale": None,
    "causal": False,
    "window_size": (-1, -1),
    "alibi_slopes": None,
    "deterministic": False,
    "return_attn_probs": False,
    "group": None,
}
"""The last arguments of every function, and their defaults."""

RAW_TAIL: dict[str, Any] = {
    "dropout_p": 0.0,
    "causal": True,
    "window_size": (-1, -1),
    "alibi_slopes": None,
    "deterministic": False,
}
"""The same for the functions below autograd."""

TYPES = {
    "max_seqlen": "int",
    "max_seqlen_q": "int",
    "max_seqlen_k": "int",
    "heads_k_stride": "int",
    "local_k_slice": "slice[int, int, int | None]",
    "half_index0": "slice | Tensor",
    "half_index1": "slice | Tensor",
    "dropout_p": "float",
    "softmax_scale": "float | None",
    "causal": "bool",
    "window_size": "tuple[int, int]",
    "alibi_slopes": "Tensor | None",
    "deterministic": "bool",
    "return_attn_probs": "bool",
    "group": "Group",
    "process_group": "Group",
}
"""The types of all arguments that are no tensors."""


def names(convention: Convention) -> list[str]:
    """The names of a family's functions."""
    return [f"{convention.prefix}_{packing}" for packing in PACKINGS]


def documentation(convention: Convention, packing: str) -> str:
    """The docstring of a function: what it computes, its shapes and dtypes, what it returns and raises."""
    rows, lengths = convention.rows, [_LENGTHS[name] for name in convention.lengths if name in _LENGTHS]
    return _DOC.format(
        what="a packed stream" if convention.lengths == PREPARED else "packed sequences" if lengths else "a batch",
        tensors=_TENSORS[packing].format(rows=rows),
        lengths="".join(f"{line}\n    " for line in lengths),
        lse=f"({rows.replace('tokens', 'num_heads, tokens')})",
        layout=convention.layout,
        route=convention.route,
    )


_DOC = """Exact attention over {what}, with the keys of all ranks of a group.

    {tensors}
    They are float16, bfloat16, float32 or float64.
    {lengths}dropout_p: share of attention probabilities dropped, in [0, 1).
    softmax_scale: what scores are multiplied with; None is head_dim ** -0.5.
    causal, window_size: query i sees key j of its sequence if -left <= j - i <= right; -1 is an open side, causal means
        right = 0 whatever window_size says. Positions are global: a window reaches over the borders of ranks.
    alibi_slopes: (num_heads,), (batch, num_heads), or (sequences, num_heads) for those that cu_seqlens tell of; floats.
    deterministic: gradients are bitwise the same from run to run.
    return_attn_probs: also return (softmax_lse, None); lse is {lse} float32.
    group: a ProcessGroup, a one-dimensional DeviceMesh, or None for all processes.

    Returns out, shaped like q and in its dtype, or (out, softmax_lse, None). Raises ValueError or TypeError for what
    does not fit, before anything is communicated. The same as `ringattn.attention` in the layout `{layout}`, by
    ringattn_core's route `{route}`; arguments and results are as in zhuzilin/ring-flash-attention.
    """
_TENSORS = {
    "func": "q: ({rows}, num_heads, head_dim); k, v: ({rows}, num_kv_heads, head_dim).",
    "kvpacked_func": "q: ({rows}, num_heads, head_dim); kv: ({rows}, 2, num_kv_heads, head_dim), k before v.",
    "qkvpacked_func": "qkv: ({rows}, 3, num_heads, head_dim), q before k before v.",
}
_LENGTHS = {
    "cu_seqlens": "cu_seqlens: int32 borders of the packed sequences *on this rank*: the global borders divided by\n"
    "        the number of ranks.",
    "max_seqlen": "max_seqlen: unused, part of the signature only.",
    "cu_seqlens_q": "cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, local_k_slice: what\n"
    "        `llama3_flash_attn_prepare_cu_seqlens` returned for this rank.",
    "heads_k_stride": "heads_k_stride: kv heads gathered at a time; it divides num_kv_heads.",
}
