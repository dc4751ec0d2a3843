"""What the calls of `generate` become: a prompt that is read in shards, or new tokens that every rank has."""

from __future__ import annotations

from dataclasses import replace
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
    device = inputs.tokens_of(arguments).device
    positions = batch.shard(torch.arange(batch.length, device=device), dim=0)
    rows = (positions < batch.tokens).nonzero().flatten()
    cache.expect(rows, positions[rows])
    return keep_last(inputs.planned(arguments, batch), batch)


def keep_last(planned: dict[str, Any], batch: ShardedBatch) -> dict[str, Any]:
    """The planned arguments, with the last token of the text for what logits are to be kept of, if the model asks."""
    batch.last_only = True
    device = inputs.tokens_of(planned).device
    # Every step of `generate` without a cache comes here too. Where there are gradients nobody generates.
    if batch.cache is not None or not torch.is_grad_enabled():
        _share_random_state(batch.row.communicator, device)
    if planned.get("logits_to_keep") is not None:
        owner, index = batch.place(batch.tokens - 1)
        # The other ranks' logits go nowhere, but all have to be of one shape.
        planned["logits_to_keep"] = torch.tensor([index if owner == batch.row.cp_rank else 0], device=device)
    return planned


def _go_on(arguments: dict[str, Any], cache: ShardedCache) -> dict[str, Any]:
    """New tokens, which every rank computes; the keys of each are kept by one of them, in turn."""
    new = inputs.tokens_of(arguments)
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


def with_last(output: Any, batch: ShardedBatch) -> Any:
    """The output, a ModelOutput or a tuple, with the logits of the last token, on every rank."""
    if isinstance(output, tuple):
        return (_last_logits(output[0], batch), *output[1:])
    output["logits"] = _last_logits(output["logits"], batch)
    return output


def _last_logits(logits: Tensor, batch: ShardedBatch) -> Tensor:
    """Those of a text's last token, (rows, 1, vocabulary), from the rank that has them."""
    owner, index = batch.place(batch.tokens - 1)
    # A model that knows of logits_to_keep has kept this one already.
    index = 0 if logits.shape[1] == 1 or owner != batch.row.cp_rank else index
    one_each = replace(batch.row, layout="contiguous", cu_seqlens=None)
    everyone: Tensor = one_each.unshard(logits[:, index : index + 1])
    return everyone[:, owner : owner + 1]


def _share_random_state(comm: Communicator, device: torch.device) -> None:
    """Every rank goes on with the random numbers of the first, or they would draw different tokens."""
    generators = [torch] if device.type == "cpu" else [torch, torch.get_device_module(device)]
    for generator in generators:
        state = generator.get_rng_state()
        generator.set_rng_state(comm.all_gather(state.to(device)).wait()[0].to(state.device))
