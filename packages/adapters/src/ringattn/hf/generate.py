"""What a call with a `ShardedCache` becomes: a prompt that is read in shards, or new tokens that every rank has."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from ringattn.context_parallel import ContextParallel
from ringattn.hf import inputs, rope
from ringattn.hf.batch import ShardedBatch
from ringattn.hf.cache import ShardedCache, cache_of
from ringattn.hf.decode import Decoding
from ringattn_comms.communicator import Communicator
from ringattn_core.errors import UnsupportedError


def prepare(arguments: dict[str, Any], cp: ContextParallel, config: PretrainedConfig) -> dict[str, Any]:
    """The arguments, with the plan for a text's next tokens.

    Raises UnsupportedError for what no cache goes with, and ValueError for a cache of another group.
    """
    cache = cache_of(arguments)
    assert isinstance(cache, ShardedCache), "the hook has asked"
    if cache.comm.size != cp.cp_size or cache.comm.rank != cp.cp_rank:
        raise ValueError(
            f"The ShardedCache was made for a group of {cache.comm.size} ranks, and the model is parallelized over "
            f"{cp.cp_size}: give both the same group."
        )
    if getattr(config.get_text_config(), "num_kv_shared_layers", 0):
        raise UnsupportedError("Layers that share their keys with others cannot generate from a ShardedCache.")
    if arguments.get("labels") is not None:
        raise UnsupportedError("labels go with whole texts, not with a ShardedCache: leave one of them out.")
    prepared = _read(arguments, cp, cache, config) if cache.length == 0 else _go_on(arguments, cache)
    return {**prepared, "use_cache": True}


def _read(
    arguments: dict[str, Any], cp: ContextParallel, cache: ShardedCache, config: PretrainedConfig
) -> dict[str, Any]:
    """The prompt, or its first part."""
    batch = inputs.divided(arguments, cp, cache)
    rope.check(config, batch, arguments.get("position_ids"))
    device = _tokens_of(arguments).device
    positions = batch.shard(torch.arange(batch.length, device=device), dim=0)
    rows = (positions < batch.tokens).nonzero().flatten()
    cache.expect(rows, positions[rows])
    _share_random_state(cache.comm, device)
    planned = inputs.planned(arguments, batch)
    if arguments.get("logits_to_keep") is not None:
        owner, index = batch.place(batch.tokens - 1)
        # The other ranks' logits go nowhere, but all have to be of one shape.
        planned["logits_to_keep"] = torch.tensor([index if owner == cache.comm.rank else 0], device=device)
    return planned


def _go_on(arguments: dict[str, Any], cache: ShardedCache) -> dict[str, Any]:
    """New tokens, which every rank computes; the keys of each are kept by one of them, in turn."""
    new = _tokens_of(arguments)
    rows, tokens = new.shape[:2]
    mask = arguments.get("attention_mask")
    if mask is not None and mask.shape != (rows, cache.length + tokens):
        raise ValueError(
            f"attention_mask must be (rows, tokens) = ({rows}, {cache.length + tokens}), for the {cache.length} tokens "
            f"in the cache and the {tokens} new ones, got {tuple(mask.shape)}."
        )
    positions = torch.arange(cache.length, cache.length + tokens, device=new.device)
    kept = (positions % cache.comm.size == cache.comm.rank).nonzero().flatten()
    cache.expect(kept, positions[kept])
    return inputs.planned(arguments, Decoding(cache, tokens, None if mask is None else mask.bool()))


def _tokens_of(arguments: dict[str, Any]) -> Tensor:
    """Token ids (rows, tokens) or embeddings (rows, tokens, hidden): whichever the model gets."""
    embeddings: Tensor | None = arguments.get("inputs_embeds")
    return arguments["input_ids"] if embeddings is None else embeddings


def last_logits(logits: Tensor, batch: ShardedBatch) -> Tensor:
    """The logits of a prompt's last token, (rows, 1, vocabulary), from the rank that has them."""
    owner, index = batch.place(batch.tokens - 1)
    comm = batch.row.communicator
    # A model that knows of logits_to_keep has kept this one already.
    index = 0 if logits.shape[1] == 1 or owner != comm.rank else index
    return comm.all_gather(logits[:, index : index + 1]).wait()[owner]


def _share_random_state(comm: Communicator, device: torch.device) -> None:
    """Every rank goes on with the random numbers of the first, or they would draw different tokens."""
    generators = [torch] if device.type == "cpu" else [torch, torch.get_device_module(device)]
    for generator in generators:
        state = generator.get_rng_state()
        generator.set_rng_state(comm.all_gather(state.to(device)).wait()[0].to(state.device))
