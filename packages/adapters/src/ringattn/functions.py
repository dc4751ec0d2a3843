"""The functions of ring-flash-attention by name, made from the table in `ringattn.conventions`.

Every function takes this rank's share of the tokens and returns this rank's share.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ringattn import checks
from ringattn.agree import telling
from ringattn.conventions import CONVENTIONS, PACKINGS, TAIL, Convention, documentation
from ringattn.family import Function, Given, divide, function
from ringattn.native import attention
from ringattn.tensors import check_tensors
from ringattn_comms.connect import communicator


def _made(convention: Convention, packing: str) -> Function:
    tensors = PACKINGS[packing]

    def compute(given: Given) -> Any:
        with telling(lambda: communicator(given["group"])):
            q, k, v = _separate(given, tensors[-1], convention.rows)
            cp, borders, slopes = divide(convention, given["group"], q, k, v, given)
            window = checks.causal_window(given["causal"], given["window_size"])
        out = attention(
            *(q, k, v),
            cp=cp,
            causal=given["causal"],
            window_size=window,
            alibi_slopes=slopes,
            softmax_scale=given["softmax_scale"],
            dropout_p=given["dropout_p"],
            deterministic=given["deterministic"],
            return_lse=given["return_attn_probs"],
            cu_seqlens=borders,
        )
        return (*out, None) if given["return_attn_probs"] else out

    name, doc = f"{convention.prefix}_{packing}", documentation(convention, packing)
    return function("ringattn", name, doc, (*tensors, *convention.lengths), TAIL, compute)


def _separate(given: Given, last: str, rows: str) -> tuple[Tensor, ...]:
    """q, k and v, which may come in one tensor: (..., 2, heads, head_dim) for `kv`, (..., 3, ...) for `qkv`."""
    if last == "v":
        return given["q"], given["k"], given["v"]
    packed, count = given[last], len(last)
    check_tensors(f"{last} must be a tensor", packed)
    if packed.dim() not in (4, 5) or packed.shape[-3] != count:
        raise ValueError(f"{last} must be ({rows}, {count}, heads, head_dim), got {tuple(packed.shape)}.")
    separate: tuple[Tensor, ...] = packed.unbind(-3)
    return separate if last == "qkv" else (given["q"], *separate)


FUNCTIONS = {
    f"{convention.prefix}_{packing}": _made(convention, packing)
    for convention in CONVENTIONS.values()
    for packing in PACKINGS
}
