"""Which rank holds which tokens of a user's sequences, by a layout that is checked."""

from __future__ import annotations

from functools import lru_cache

from ringattn.lengths import Borders, Lengths, read
from ringattn.unshard import lengths
from ringattn_core.look.verify import check_sharding
from ringattn_core.plan.layout import Layout, Sharding, packed


def divided(layout: Layout, cu_seqlens: Lengths | None, length: int, cp_size: int, per_sequence: bool) -> Sharding:
    """How `length` tokens, with these borders if there are any, are divided among ranks.

    Raises ValueError for borders that do not end with `length`, for a layout that does not divide tokens without
    borders evenly, and for one that does not give every token to exactly one rank.
    """
    borders = Borders((0, length)) if cu_seqlens is None else read(cu_seqlens)
    if borders[-1] != length:
        raise ValueError(
            f"cu_seqlens ends at {borders[-1]}, but the tensor to shard has {length} tokens along the sequence: "
            "cu_seqlens are global borders, before sharding."
        )
    sharding = sound(Sharding(layout, borders, cp_size, per_sequence))
    if cu_seqlens is None and not _even(sharding):
        raise ValueError(
            f"This layout does not divide {length} tokens evenly among {cp_size} ranks, so that a rank could "
            f"not tell the whole length from its share. Say ContextParallel(..., cu_seqlens=[0, {length}])."
        )
    return sharding


def sound(sharding: Sharding) -> Sharding:
    """The same sharding, if every token is on one rank, else ValueError. ringattn's layouts need no proof."""
    if not packed(sharding.layout).built_in:
        _prove(sharding)
    return sharding


@lru_cache(16)
def _prove(sharding: Sharding) -> None:
    check_sharding(sharding, "tokens")


@lru_cache(16)
def _even(sharding: Sharding) -> bool:
    return len(set(lengths(sharding))) == 1
