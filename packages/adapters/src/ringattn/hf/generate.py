"""What the calls of `generate` become: a prompt that is read in shards, or new tokens that every rank has."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin, PretrainedConfig
from transformers.generation.configuration_utils import GenerationMode

from ringattn.context_parallel import ContextParallel
from ringattn.hf import inputs, logits, rope
from ringattn.hf.batch import ShardedBatch
from ringattn.hf.cache import ShardedCache, argument_of, cache_of
from ringattn.hf.decode import Decoding
from ringattn.hf.random_state import share_random_state
from ringattn_core.errors import UnsupportedError

# Ways to lay out the same keys and values, in whose place a ShardedCache does the same; some models' generation config
# names one.
_REPLACED = (None, "dynamic", "dynamic_full", "static", "hybrid", "hybrid_chunked", "sliding_window")

# With use_cache=True these raise an error for a cache of any other class than theirs, and without it they use it.
_OWN_CACHES = ("minimax",)


def prepare_cache(
    model: GenerationMixin,
    cp: ContextParallel,
    config: GenerationConfig,
    arguments: dict[str, Any],
    mode: GenerationMode,
) -> None:
    """Before `generate` begins: put a ShardedCache among the model's arguments, unless a cache is given or unwanted.

    Raises UnsupportedError for an implementation of the cache that a ShardedCache cannot stand for.
    """
    share_random_state(cp.communicator, model.device)
    if not model._supports_logits_to_keep():
        arguments.setdefault(logits.NAME, 1)  # the hook chooses
    if cache_of(arguments) is None:
        if config.use_cache is False:
            return
        arguments[argument_of(model)] = ShardedCache(cp.communicator)
    cache = cache_of(arguments)
    if not isinstance(cache, ShardedCache):
        return  # The model refuses it.
    if config.cache_implementation not in _REPLACED:
        raise UnsupportedError(
            f"cache_implementation={config.cache_implementation!r} cannot be spread over ranks: leave it out, and "
            f"generate() keeps its keys in a ringattn.hf.ShardedCache, and each rank has a part of it."
        )
    if mode == GenerationMode.ASSISTED_GENERATION or config.is_assistant:
        cache.activate_past_recording()
    config.cache_implementation = None  # This config is the call's own.


def prepare(
    arguments: dict[str, Any], cp: ContextParallel, config: PretrainedConfig, model_chooses: bool
) -> dict[str, Any]:
    """The arguments, with the plan for a text's next tokens.

    model_chooses: does the model take logits_to_keep? Raises UnsupportedError for what no cache goes with, and
    ValueError for a cache of another group or another batch.
    """
    cache = cache_of(arguments)
    assert isinstance(cache, ShardedCache), "the hook has asked"
    if cache.comm.size != cp.cp_size or cache.comm.rank != cp.cp_rank:
        raise ValueError(
            f"The ShardedCache was made for a group of {cache.comm.size} ranks, and the model is parallelized over "
            f"{cp.cp_size}: give both the same group."
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
    # A model around a text tower compares lengths of a shard with those of the whole where it chooses.
    chooses = model_chooses and config.get_text_config() is config
    planned = keep(inputs.planned(arguments, batch), batch, chooses)
    positions, rows = batch.shard(torch.arange(batch.length, device=device), dim=0).sort()
    rows = rows[positions < batch.tokens]
    cache.expect(batch.tokens, rows, positions[: len(rows)].tolist())
    return planned


def keep(planned: dict[str, Any], batch: ShardedBatch, model_chooses: bool) -> dict[str, Any]:
    """The planned arguments of a call whose logits every rank gets."""
    device = inputs.tokens_of(planned).device
    # Every step of a loop without a cache comes here too. Where there are gradients, no tokens are drawn.
    if batch.cache is not None or not torch.is_grad_enabled():
        share_random_state(batch.row.communicator, device)
    return logits.plan(planned, batch, device, model_chooses)


def _go_on(arguments: dict[str, Any], cache: ShardedCache, model_chooses: bool) -> dict[str, Any]:
    """New tokens, which every rank computes; the keys of each are kept by one of them, in turn."""
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
        # Some models choose tokens before their last layers where they get a number, and would lose queries there.
        kept = logits.chosen(arguments[logits.NAME], tokens, new.device)
        arguments = logits.replaced(arguments, kept if model_chooses else None)
    planned = inputs.planned(arguments, Decoding(cache, tokens, mask, new.device))
    mine = [place for place in range(tokens) if (cache.length + place) % cache.comm.size == cache.comm.rank]
    # Rows are looked up only where some are kept and others not: one token waits for no copy to the device.
    device = new.device if 0 < len(mine) < tokens else torch.device("cpu")
    rows_kept = torch.tensor(mine, dtype=torch.int64, device=device)
    cache.expect(tokens, rows_kept, [cache.length + place for place in mine])
    return planned
