"""The plan of a mask: by its tiles, or, where these are one band for each sequence, as the window that it is."""

from __future__ import annotations

from bisect import bisect_right
from itertools import pairwise

from ringattn_core.errors import check_cu_seqlens, check_ranks_and_sequences
from ringattn_core.plan.layout import Layout, Sharding
from ringattn_core.plan.mask import Mask
from ringattn_core.plan.mask_layout import layout_of_keys
from ringattn_core.plan.mask_schedule import schedule_of_mask
from ringattn_core.plan.masks import packed
from ringattn_core.plan.memo import shared
from ringattn_core.plan.planner import plan
from ringattn_core.plan.route import Route
from ringattn_core.plan.schedule import Schedule
from ringattn_core.plan.tile import FAR, Window


@shared
def plan_mask(
    mask: Mask,
    layout: Layout,
    route: Route,
    cp_rank: int,
    cp_size: int,
    *,
    cu_seqlens: tuple[int, ...] | None = None,
    cu_seqlens_k: tuple[int, ...] | None = None,
    per_sequence: bool = True,
    batch: int = 1,
    num_early_rows: int = 0,
) -> Schedule:
    """What rank `cp_rank` of `cp_size` computes under a mask.

    The layout divides the stream of `mask.num_queries` tokens by the borders `cu_seqlens`, or whole without them; they
    say who holds which tokens, and not what is live. So it divides the keys by `cu_seqlens_k`; of a self attention,
    where a mask has the same number of both, these are the queries' borders. `layout_for` makes `balanced` even under
    a mask. `batch` is the number of equal rows of the stream, which matters only without `per_sequence`, and
    `num_early_rows` is as of `plan`. Raises ValueError for borders that do not end with the mask's numbers or whose
    number differs, for a rank or a batch that cannot be, and for a layout whose runs have several strides.
    """
    borders = (0, mask.num_queries) if cu_seqlens is None else cu_seqlens
    alike = cu_seqlens_k is None and mask.num_keys == mask.num_queries
    borders_k = cu_seqlens_k or (borders if alike else (0, mask.num_keys))
    for each, tokens, name in ((borders, mask.num_queries, "cu_seqlens"), (borders_k, mask.num_keys, "cu_seqlens_k")):
        check_cu_seqlens(each, name)
        if each[-1] != tokens:
            raise ValueError(f"{name} ends with {each[-1]}, but the mask has {tokens} tokens: they must agree.")
        if batch < 1 or tokens % batch:
            raise ValueError(f"batch must be a number of rows of equal length, got {batch} for {tokens} tokens.")
    check_ranks_and_sequences(cp_rank, cp_size, borders, borders_k, ("cu_seqlens", "cu_seqlens_k"))
    window, layout_k = window_of(mask, borders, borders_k), layout_of_keys(layout, mask)
    if window is None or layout_k != layout:
        queries = Sharding(layout, borders, cp_size, per_sequence, batch)
        keys = Sharding(layout_k, borders_k, cp_size, per_sequence, batch)
        return schedule_of_mask(mask, queries, keys, route, cp_rank, num_early_rows)
    return plan(
        *(layout, route, borders, borders_k, cp_rank, cp_size),
        window=window,
        per_sequence=per_sequence,
        batch=batch,
        num_early_rows=num_early_rows,
    )


def window_of(mask: Mask, cu_seqlens: tuple[int, ...], cu_seqlens_k: tuple[int, ...]) -> Window | None:
    """The window with which the mask is that of packed sequences with these borders; None if there is none."""
    lengths, key_lengths = ([stop - start for start, stop in pairwise(each)] for each in (cu_seqlens, cu_seqlens_k))
    if len(mask.tiles) > len(lengths):
        return None
    # No side of a window is met by fewer sequences than by the longest.
    longest = max(mask.tiles, key=lambda tile: len(tile.q) + len(tile.k), default=None)
    if longest is None:
        return None
    index = bisect_right(cu_seqlens, longest.q.start) - 1
    corner = cu_seqlens_k[index + 1] - cu_seqlens[index + 1] if index < len(lengths) else 0
    left = -1 if longest.low == -FAR else corner - longest.low
    right = -1 if longest.high == FAR else longest.high - corner
    if left < -1 or right < -1:
        return None
    same = packed(lengths, window=(left, right), key_lengths=key_lengths)
    return (left, right) if same.tiles == mask.tiles else None
