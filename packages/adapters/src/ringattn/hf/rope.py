"""Rotary embeddings that depend on the longest position in a batch: every rank has to come to the same frequencies."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from ringattn.hf.batch import ShardedBatch
from ringattn_core.errors import UnsupportedError

_BY_LENGTH = ("dynamic", "longrope")


def check(config: PretrainedConfig, batch: ShardedBatch, position_ids: Tensor | None) -> None:
    """Raise UnsupportedError where ranks would choose different frequencies for this batch.

    position_ids: (rows, tokens), the whole batch's, or None for those of one text.
    """
    for kind, limit in _scalings(config.get_text_config()):
        longest = _longest(batch, position_ids)
        beyond = {length > limit for length in longest}
        if len(beyond) > 1 or (kind == "dynamic" and beyond == {True} and len(set(longest)) > 1):
            raise UnsupportedError(
                f"Rotary embeddings of type {kind!r} change with the longest position that a rank has, from {limit:,} "
                f"tokens on; here the ranks' are {', '.join(f'{length:,}' for length in longest)}. Keep the texts "
                "shorter, make them longer, choose layout='striped' (for packed texts 'zigzag' may do, too), or a type "
                "such as 'yarn' that does not change."
            )


def _scalings(config: PretrainedConfig) -> list[tuple[str, int]]:
    """The kinds that depend on lengths, each with the length from which on it does."""
    # Transformers 5 says rope_parameters, for each type of layer if need be; 4 says rope_scaling.
    told: dict[str, Any] = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    each = [value for value in told.values() if isinstance(value, dict)] or [told]
    found = []
    for scaling in each:
        kind = scaling.get("rope_type", scaling.get("type"))
        if kind in _BY_LENGTH:
            original = getattr(config, "original_max_position_embeddings", None) or config.max_position_embeddings
            found.append((kind, scaling.get("original_max_position_embeddings") or original))
    return found


def _longest(batch: ShardedBatch, position_ids: Tensor | None) -> list[int]:
    """One more than the largest position of every rank."""
    if position_ids is None:
        return [max(batch.positions(rank)) + 1 for rank in range(batch.row.cp_size)]
    rows = [torch.tensor(batch.positions(rank), device=position_ids.device) for rank in range(batch.row.cp_size)]
    inside = [row[row < batch.tokens] for row in rows]
    return [int(position_ids.index_select(-1, row).max()) + 1 for row in inside if len(row)]
