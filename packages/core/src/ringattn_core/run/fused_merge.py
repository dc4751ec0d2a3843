"""The merge of attention to several sets of keys in one Triton kernel: the same sums as `merge.merge_gathered`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


def merge_gathered(gathered: Tensor, dtype: torch.dtype, sinks: Tensor | None = None) -> Tensor:
    """As `merge.merge_gathered`, for `gathered` in float32."""
    gathered = gathered.contiguous()
    sets, rows, num_heads, tokens, width = gathered.shape
    out = gathered.new_empty((rows, tokens, num_heads, width - 1), dtype=dtype)
    if out.numel():
        _merge[(rows * num_heads * tokens,)](
            gathered, out, None if sinks is None else sinks.contiguous(), sets, num_heads, tokens, width - 1,
            triton.next_power_of_2(sets), triton.next_power_of_2(width - 1), num_warps=1,
        )  # fmt: skip
    return out


@triton.jit  # type: ignore[untyped-decorator]
def _merge(  # type: ignore[no-untyped-def]
    gathered, out, sinks, sets, num_heads, tokens, dim, max_sets: tl.constexpr, width: tl.constexpr
):
    """One query of one head: its lse of all sets at once, then the weighted sum of its out, one set after another."""
    query = tl.program_id(0).to(tl.int64)  # (row * num_heads + head) * tokens + token
    head, token = query // tokens % num_heads, query % tokens
    row = query // tokens // num_heads
    of_set = tl.num_programs(0).to(tl.int64) * (dim + 1)
    first = gathered + query * (dim + 1)

    index = tl.arange(0, max_sets)
    infinity = float("inf")
    lse = tl.load(first + index * of_set + dim, mask=index < sets, other=-infinity)
    top = tl.max(lse)
    sink = -infinity
    if sinks is not None:
        sink = tl.load(sinks + head).to(tl.float32)
        top = tl.maximum(top, sink)
    # Where all are -inf, -inf - -inf is NaN, and so are all weights.
    total = tl.sum(tl.exp(lse - top)) + tl.exp(sink - top)

    column = tl.arange(0, width)
    state = tl.zeros((width,), dtype=tl.float32)
    for number in range(sets):
        at = first + number * of_set
        weight = tl.exp(tl.load(at + dim) - top) / total
        state += weight * tl.load(at + column, mask=column < dim, other=0.0)
    at_out = out + ((row * tokens + token) * num_heads + head) * dim + column
    tl.store(at_out, state.to(out.dtype.element_ty), mask=column < dim)
