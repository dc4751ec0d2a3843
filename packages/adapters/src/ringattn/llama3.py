"""What the llama 3 functions say of lengths, translated into the borders of the whole stream."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import pairwise

import torch
from torch import Tensor

from ringattn.lengths import read


class ContractError(ValueError, AssertionError):
    """A ValueError that ring-flash-attention raises as an AssertionError; callers may rely on either."""


def llama3_flash_attn_prepare_cu_seqlens(
    cu_seqlens: Tensor, causal: bool, rank: int, world_size: int
) -> tuple[Tensor, Tensor, int, int, slice]:
    """What rank `rank` of `world_size` passes to `llama3_flash_attn_varlen_func`.

    cu_seqlens: (sequences + 1,) int32 or int64, the *global* borders of the packed stream, whose total world_size
        divides; every rank holds one contiguous slice of it.
    causal: cut the keys after the rank's last query, so that its queries are the suffix of their keys.

    Returns (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, local_k_slice): borders of the dtype and on the
    device of the input, lengths as ints, and the slice of the gathered keys. Raises an error that is both a ValueError
    and an AssertionError where world_size does not divide the total. From zhuzilin/ring-flash-attention.
    """
    borders = read(cu_seqlens)
    if borders[-1] % world_size:
        raise ContractError(
            f"cu_seqlens end at {borders[-1]} tokens, which {world_size} ranks do not divide: pad the stream to "
            f"{-(-borders[-1] // world_size) * world_size}."
        )
    length = borders[-1] // world_size
    start, stop = rank * length, (rank + 1) * length
    first, last = bisect_right(borders, start) - 1, bisect_left(borders, stop)
    if borders[first] == start:  # of empty sequences at the border, the first
        first = bisect_left(borders, start)
    q = [min(max(border, start), stop) - start for border in borders[first : last + 1]]
    k = [border - borders[first] for border in borders[first : last + 1]]
    if causal:
        k[-1] = stop - borders[first]
    return (
        torch.tensor(q, dtype=cu_seqlens.dtype, device=cu_seqlens.device),
        torch.tensor(k, dtype=cu_seqlens.dtype, device=cu_seqlens.device),
        _longest(q),
        _longest(k),
        slice(borders[first], borders[first] + k[-1]),
    )


def stream_borders(
    cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, local_k_slice: slice, rank: int, length: int, total: int
) -> list[int]:
    """Borders of the whole stream under which this rank's queries see just the keys that it was told.

    What lies before and after its slice counts as sequences of others. Every rank's view gives the same communication,
    an all-gather of everything, so that it does not matter that the views differ.
    """
    q, k = read(cu_seqlens_q, "cu_seqlens_q"), read(cu_seqlens_k, "cu_seqlens_k")
    begin, start, stop = int(local_k_slice.start or 0), rank * length, (rank + 1) * length
    inside = [begin + border for border in k]
    if q[-1] != length or [min(max(border, start), stop) - start for border in inside] != list(q):
        raise ValueError(
            f"cu_seqlens_q {list(q)}, cu_seqlens_k {list(k)} and local_k_slice {local_k_slice} do not describe the "
            f"tokens {start} to {stop} that rank {rank} holds: take all of them from "
            "llama3_flash_attn_prepare_cu_seqlens, called with this rank and group size and the global cu_seqlens."
        )
    return [*([0] if begin > 0 else []), *inside, *([total] if inside[-1] < total else [])]


def head_groups(k: Tensor, heads_k_stride: int) -> int:
    """In how many groups `heads_k_stride` kv heads at a time are gathered."""
    heads = k.shape[-2]
    if heads_k_stride < 1 or heads % heads_k_stride:
        raise ContractError(f"heads_k_stride must divide the {heads} kv heads, got {heads_k_stride}.")
    return heads // heads_k_stride


def _longest(borders: list[int]) -> int:
    return max(stop - start for start, stop in pairwise(borders))
