"""Attention layers that scale each query by its place in the text, as Llama 4's without rotary embeddings do.

They count places from the tokens in the cache on: in a shard that would be wrong, so a hook tells them.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import Cache

from ringattn.hf.batch import KEYWORD, ShardedBatch
from ringattn.hf.cache import NAMES


def hooks(model: nn.Module) -> Iterator[RemovableHandle]:
    """Hooks by which such layers get the places of this rank's tokens."""
    for module in model.modules():
        if getattr(module, "attn_temperature_tuning", False) and not getattr(module, "use_rope", True):
            yield module.register_forward_pre_hook(_tell, with_kwargs=True)


def _tell(attention: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    batch, names = kwargs.get(KEYWORD), inspect.signature(attention.forward).parameters
    if not isinstance(batch, ShardedBatch):
        return None  # All new tokens are on every rank.
    places = torch.tensor(batch.positions(batch.row.cp_rank), device=kwargs["hidden_states"].device)
    if "cache_position" in names:
        return args, kwargs | {"cache_position": places}
    name = next(name for name in NAMES if name in names)
    return args, kwargs | {name: _Ahead(kwargs.get(name), places - torch.arange(len(places), device=places.device))}


class _Ahead:
    """In place of a layer's cache, which may be None: says of each token how many there are before those in the call.

    tokens: (tokens,), how far each is ahead of its place in the shard.
    """

    def __init__(self, cache: Cache | None, tokens: Tensor) -> None:
        self.cache, self.tokens = cache, tokens

    def get_seq_length(self, *args: Any) -> Tensor:
        return self.tokens

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.cache is None:
            return keys, values
        stored: tuple[Tensor, Tensor] = self.cache.update(keys, values, *args, **kwargs)
        return stored
