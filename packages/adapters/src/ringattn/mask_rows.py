"""Masks as users give them, one for all rows of a batch or one for each, as one mask of the stream of all rows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

from torch import Tensor

from ringattn.lengths import Borders
from ringattn_core.errors import UnsupportedError
from ringattn_core.plan import masks
from ringattn_core.plan.mask import Mask
from ringattn_core.plan.tile import FULL, Window

Masks = Mask | Sequence[Mask]
"""One mask for all rows of a batch, or one for each."""


def read_masks(mask: object) -> tuple[Mask, ...] | None:
    """The masks as a tuple: of one, or of one for each row. Raises TypeError for anything else."""
    if mask is None:
        return None
    if isinstance(mask, Mask):
        return (mask,)
    if isinstance(mask, list | tuple) and mask and all(isinstance(row, Mask) for row in mask):
        return tuple(mask)
    hint = " masks.of_dense(matrix.tolist()) reads a matrix of booleans." if isinstance(mask, Tensor) else ""
    inside = f" of {len(mask)} ({', '.join(type(row).__name__ for row in mask[:4])})" if isinstance(mask, list) else ""
    raise TypeError(
        "mask must be a mask that ringattn.masks makes, or a list of them, one for each row of the batch; got "
        f"{type(mask).__name__}{inside}.{hint}"
    )


def tokens(rows: Sequence[Mask]) -> int:
    """How many tokens a row of these masks has. Raises where they differ, and for masks of cross attention."""
    lengths = {(row.num_queries, row.num_keys) for row in rows}
    if len({row.num_queries for row in rows}) > 1:
        raise ValueError(
            f"The masks of a batch must have the same number of tokens, got {sorted(n for n, _ in lengths)}: rows of a "
            "tensor have one length. Lay sequences of other lengths end to end, as masks.end_to_end does their masks."
        )
    for num_queries, num_keys in lengths:
        if num_queries != num_keys:
            raise UnsupportedError(
                f"The mask has {num_queries} queries and {num_keys} keys: cross attention takes no mask yet, only "
                "causal, window_size, cu_seqlens and cu_seqlens_k."
            )
    return rows[0].num_queries


def check_length(rows: Sequence[Mask] | None, length: int) -> None:
    """Raise ValueError unless a tensor to shard has the tokens of these masks, if there are any."""
    if rows and tokens(rows) != length:
        raise ValueError(
            f"The mask has {tokens(rows)} tokens, but the tensor to shard has {length} along the sequence: a mask is "
            "of the whole sequence, before sharding."
        )


@lru_cache(16)
def of_batch(rows: tuple[Mask, ...], batch: int) -> Mask:
    """The mask of a stream of `batch` rows, laid end to end. Raises ValueError for another number of masks."""
    if len(rows) not in (1, batch):
        raise ValueError(
            f"There is one mask for all rows of a batch or one for each: got {len(rows)} for {batch} rows."
        )
    each = rows * batch if len(rows) == 1 else rows
    return each[0] if batch == 1 else masks.end_to_end(each)


def live(rows: tuple[Mask, ...] | None, window: Window, borders: tuple[Borders, Borders], batch: int) -> Window | Mask:
    """What is live in a batch: the mask, else the window. `borders` are those of a row, of queries and of keys.

    Raises ValueError for a mask together with a window, and for one that does not fit the borders.
    """
    if rows is None:
        return window
    if window != FULL:
        raise ValueError(
            f"mask says all that a query sees, and causal and window_size ask for the window {window} too: leave them "
            "out, or combine them in the mask, as in masks.causal(n) & mask."
        )
    if borders[0] != borders[1]:
        raise UnsupportedError(
            f"q is of {borders[0][-1]} tokens and k of {borders[1][-1]}, in sequences of their own: cross attention "
            "takes no mask yet, only causal, window_size, cu_seqlens and cu_seqlens_k."
        )
    for row in rows:
        _check_borders(row, borders[0])
    return of_batch(rows, batch)


@lru_cache(16)
def _check_borders(row: Mask, borders: Borders) -> None:
    """Raise unless the mask is of the tokens that the borders are of, and lets no sequence see another."""
    if borders[-1] != row.num_queries:
        raise ValueError(
            f"The mask has {row.num_queries} tokens and cu_seqlens ends at {borders[-1]}: both are of the whole row, "
            "the tokens of all ranks."
        )
    across = row - masks.packed([stop - start for start, stop in pairwise(borders)], window=FULL)
    if across.tiles:
        query = across.tiles[0].q.start
        key = max(across.tiles[0].k.start, query + across.tiles[0].low)
        raise ValueError(
            f"The mask lets query {query} see key {key}, which cu_seqlens put into different sequences: leave out "
            "cu_seqlens, or keep sequences apart in the mask, as in mask & masks.packed(lengths, window=(-1, -1))."
        )


def described(seen: Window | Mask) -> object:
    """What ranks compare of it, and what is shown where it differs."""
    return f"{seen.digest} ({len(seen.tiles)} tiles, {seen.num_queries} tokens)" if isinstance(seen, Mask) else seen
