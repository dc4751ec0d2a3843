"""The model calls of `generate`: a prompt is sharded, and every rank computes all new tokens after it."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin, PretrainedConfig
from transformers.generation.configuration_utils import GenerationMode

from ringattn.context_parallel import ContextParallel
from ringattn.hf import given_mask, inputs, logits, rope
from ringattn.hf.batch import ShardedBatch
from ringattn.hf.cache import ShardedCache, argument_of, cache_of
from ringattn.hf.decode import Decoding
from ringattn.hf.random_state import share_random_state
from ringattn_core.errors import UnsupportedError

# Other layouts of the same keys and values, which a ShardedCache replaces. The generation config of some models names
# one.
_REPLACED = (None, "dynamic", "dynamic_full", "static", "hybrid", "hybrid_chunked", "sliding_window")

# With use_cache=True these models reject a cache of any class except a class of their module; without it they use it.
_OWN_CACHES = ("minimax",)


def prepare_cache(
    model: GenerationMixin,
    cp: ContextParallel,
    config: GenerationConfig,
    arguments: dict[str, Any],
    mode: GenerationMode,
) -> None:
    """Before `generate` begins, add a ShardedCache to the model's arguments, unless they have a cache or want none.

    Raises UnsupportedError for a cache implementation that a ShardedCache cannot replace.
    """
    share_random_state(cp.communicator, model.device)
    if not model._supports_logits_to_keep():
        arguments.setdefault(logits.NAME, 1)  # handled by the hook
    if cache_of(arguments) is None:
        if config.use_cache is False:
            return
        arguments[argument_of(model)] = ShardedCache(cp.communicator)
    cache = cache_of(arguments)
    if not isinstance(cache, ShardedCache):
        return  # The model raises an error for it.
    if config.cache_implementation not in _REPLACED:
        raise UnsupportedError(
            f"cache_implementation={config.cache_implementation!r} cannot be spread over ranks: leave it out, and "
            f"generate() keeps its keys in a ringattn.hf.ShardedCache, and each rank has a part of it."
        )
    if mode == GenerationMode.ASSISTED_GENERATION or config.is_assistant:
        cache.activate_past_recording()
    config.cache_implementation = None  # This config is a copy for this call.


def prepare(
    arguments: dict[str, Any], cp: ContextParallel, config: PretrainedConfig, model_chooses: bool
) -> dict[str, Any]:
    """The arguments of a call with a cache, with the plan for the next tokens of the texts.

    model_chooses: the model takes logits_to_keep. Raises UnsupportedError for labels, and ValueError for a cache of
    another group or another batch.
    """
    cache = cache_of(arguments)
    assert isinstance(cache, ShardedCache), "checked by the hook"
    if cache.comm.size != cp.cp_size or cache.comm.rank != cp.cp_rank:
        raise ValueError(
            f"The ShardedCache was made for a group of {cache.comm.size} ranks, and the model is parallelized over "
            f"{cp.cp_size}: give both the same group."
        )
    if given_mask.is_given(arguments.get("attention_mask")):
        raise UnsupportedError(
            "attention_mask says what every query sees, and a ShardedCache is for tokens that are not there yet: give "
            "attention_mask=(rows, tokens) with 0 at padding, or read the whole text without a cache."
        )
    if arguments.get("labels") is not None:
        raise UnsupportedError("labels go with whole texts, not with a ShardedCache: leave one of them out.")
    planned = (
        _go_on(arguments, cache, model_chooses) if cache.length else _read(arguments, cp, cache, config, model_chooses)
    )
    return {**planned, "use_cache": config.model_type not in _OWN_CACHES}


def _read(
    arguments: dict[str, Any], cp: ContextParallel, cache: ShardedCache, config: PretrainedConfig, model_chooses: bool
) -> dict[str, Any]:
    """The prompt, or its first part."""
    batch = inputs.divided(arguments, cp, cache)
    rope.check(config, batch, arguments.get("position_ids"))
    device = inputs.tokens_of(arguments).device
    # With logits_to_keep, a model around a text tower compares the length of a shard with that of the whole.
    chooses = model_chooses and config.get_text_config() is config
    planned = keep(inputs.planned(arguments, batch), batch, chooses)
    positions, rows = batch.shard(torch.arange(batch.length, device=device), dim=0).sort()
    rows = rows[positions < batch.tokens]
    cache.expect(batch.tokens, rows, positions[: len(rows)].tolist())
    return planned


def keep(planned: dict[str, Any], batch: ShardedBatch, model_chooses: bool) -> dict[str, Any]:
    """The planned arguments of a call after which every rank has the logits that were asked for."""
    device = inputs.tokens_of(planned).device
    # Every step of a loop without a cache comes here too. In a call with gradients no tokens are sampled.
    if batch.cache is not None or not torch.is_grad_enabled():
        share_random_state(batch.row.communicator, device)
    return logits.plan(planned, batch, device, model_chooses)


def _go_on(arguments: dict[str, Any], cache: ShardedCache, model_chooses: bool) -> dict[str, Any]:
    """New tokens: every rank computes all of them, and the ranks keep their keys in turn."""
    new = inputs.tokens_of(arguments)
    rows, tokens = new.shape[:2]
    if cache.rows not in (None, rows):
        raise ValueError(
            f"The ShardedCache has {cache.rows} rows, and the model got {rows}: every call reads on in all."
        )
    mask = arguments.get("attention_mask")
    if mask is not None and mask.shape != (rows, cache.length + tokens):
        raise ValueError(
            f"attention_mask must be (rows, tokens) = ({rows}, {cache.length + tokens}), for the {cache.length} tokens "
            f"in the cache and the {tokens} new ones, got {tuple(mask.shape)}."
        )
    mask = None if mask is None or bool((mask != 0).all()) else mask.bool()
    if logits.asked(arguments):
        # Given a number, some models drop tokens before their last layers, whose attention would miss queries then.
        kept = logits.chosen(arguments[logits.NAME], tokens, new.device)
        arguments = logits.replaced(arguments, kept if model_chooses else None)
    planned = inputs.planned(arguments, Decoding(cache, tokens, mask, new.device))
    mine = [place for place in range(tokens) if (cache.length + place) % cache.comm.size == cache.comm.rank]
    # Indices are needed only if some tokens are kept and others are not: one token needs no copy to the device.
    device = new.device if 0 < len(mine) < tokens else torch.device("cpu")
    rows_kept = torch.tensor(mine, dtype=torch.int64, device=device)
    cache.expect(tokens, rows_kept, [cache.length + place for place in mine])
    return planned
