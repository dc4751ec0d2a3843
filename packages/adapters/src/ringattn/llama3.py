"""The lengths that the llama 3 functions are given, as borders of the whole stream."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

from torch import Tensor
from torch.nn.functional import pad

from ringattn.lengths import Borders, read, written
from ringattn.no_compile import no_compile


class ContractError(ValueError, AssertionError):
    """A ValueError that ring-flash-attention raises as an AssertionError; callers may rely on either."""


@no_compile
def llama3_flash_attn_prepare_cu_seqlens(
    cu_seqlens: Tensor, causal: bool, rank: int, world_size: int
) -> tuple[Tensor, Tensor, int, int, slice[int, int, int]]:
    """The lengths that rank `rank` of `world_size` passes to `llama3_flash_attn_varlen_func`.

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
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be from 0 to world_size - 1 = {world_size - 1}, got {rank}.")
    length = borders[-1] // world_size
    start, stop = rank * length, (rank + 1) * length
    # The rank's tokens lie in these sequences, from the border at or before their start to that at or after their end.
    first = bisect_left(borders, start)
    if borders[first] > start:
        first -= 1
    last = bisect_left(borders, stop, lo=first + 1)
    q = [min(max(border, start), stop) - start for border in borders[first : last + 1]]
    k = [border - borders[first] for border in borders[first : last + 1]]
    if causal:
        k[-1] = stop - borders[first]
    return (
        written(q, cu_seqlens),
        written(k, cu_seqlens),
        _longest(q),
        _longest(k),
        slice(borders[first], borders[first] + k[-1]),
    )


def stream_borders(
    cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, local_k_slice: slice, rank: int, size: int, length: int
) -> Borders:
    """Borders of the whole stream under which this rank's `length` queries see exactly the keys of its arguments.

    The tokens before and after its slice count as sequences of other ranks. So the ranks' borders differ, and they need
    a route that communicates the same whatever the borders are: `at_once`.
    """
    if not isinstance(local_k_slice, slice):
        raise TypeError(f"local_k_slice must be a slice of the gathered keys, got {local_k_slice!r}.")
    q, k = read(cu_seqlens_q, "cu_seqlens_q"), read(cu_seqlens_k, "cu_seqlens_k")
    keys, tokens = range(size * length)[local_k_slice], range(rank * length, (rank + 1) * length)
    borders = _stream_borders(q, k, keys, tokens, size * length)
    if borders is None:
        raise ValueError(
            f"cu_seqlens_q (to {q[-1]}), cu_seqlens_k (to {k[-1]}) and {local_k_slice} do not describe the tokens "
            f"{tokens.start} to {tokens.stop} that rank {rank} of {size} holds: take all of them from "
            "llama3_flash_attn_prepare_cu_seqlens, called with this rank and group size and the global cu_seqlens."
        )
    return borders


@lru_cache(16)
def _stream_borders(q: Borders, k: Borders, keys: range, tokens: range, total: int) -> Borders | None:
    inside = [keys.start + border for border in k]
    held = [min(max(border, tokens.start), tokens.stop) - tokens.start for border in inside]
    if inside[-1] != keys.stop or held != list(q) or q[-1] != len(tokens):
        return None
    return Borders(([0] if keys.start > 0 else []) + inside + ([total] if keys.stop < total else []))


def stream_slopes(slopes: Tensor, local_k_slice: slice, borders: Borders) -> Tensor:
    """ALiBi's slopes of all sequences between the borders of `stream_borders`, from those of this rank's sequences."""
    before = int(range(borders[-1])[local_k_slice].start > 0)
    return pad(slopes, (0, 0, before, len(borders) - 1 - len(slopes) - before))


def head_groups(k: Tensor, heads_k_stride: int) -> int:
    """The number of groups, if `heads_k_stride` kv heads at a time are gathered."""
    heads = k.shape[-2]
    if heads_k_stride < 1 or heads % heads_k_stride:
        raise ContractError(f"heads_k_stride must divide the {heads} kv heads, got {heads_k_stride}.")
    return heads // heads_k_stride


def _longest(borders: Sequence[int]) -> int:
    return max(stop - start for start, stop in pairwise(borders))
