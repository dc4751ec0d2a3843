"""The sum of gradients that lie in several places, on a GPU: every row is read once from each, and written once."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from ringattn_core.run.gradient import Part

ROWS = 32


def fused_parts(like: Tensor, parts: Sequence[Part]) -> Tensor:
    """`gradient.part_sum` in one pass, summed in float32 and in like's dtype at the end."""
    rows, heads, dim = like.shape
    total = like.new_empty(like.shape)
    found = tuple(part.found.contiguous() for part in parts)
    _sum_parts[(triton.cdiv(rows, ROWS), heads)](
        total, found, tuple(part.places for part in parts), rows, heads, dim, ROWS, triton.next_power_of_2(dim)
    )
    return total


@triton.jit  # type: ignore[untyped-decorator]
def _sum_parts(  # type: ignore[no-untyped-def]
    total, found, places, rows, heads, dim, block: tl.constexpr, width: tl.constexpr
):
    """One block of rows of one head."""
    head = tl.program_id(1)
    row = tl.program_id(0) * block + tl.arange(0, block)
    column = head * dim + tl.arange(0, width)[None, :]
    within = column < (head + 1) * dim
    result = tl.zeros((block, width), dtype=tl.float32)
    for part in tl.static_range(len(found)):
        place = tl.load(places[part] + row, mask=row < rows, other=-1)
        at = found[part] + place.to(tl.int64)[:, None] * (heads * dim) + column
        result += tl.load(at, mask=(place >= 0)[:, None] & within, other=0.0).to(tl.float32)
    at = total + row.to(tl.int64)[:, None] * (heads * dim) + column
    tl.store(at, result.to(total.dtype.element_ty), mask=(row < rows)[:, None] & within)
