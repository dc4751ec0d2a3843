"""Models whose tokens meet outside the attention call, or in masks that it does not know: refused, with the reason."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from ringattn.hf import heads, hybrid, layers, logits, positions, towers, unshifted
from ringattn.hf.cache import ARGUMENT, ShardedCache, cache_of
from ringattn.hf.register import NAME
from ringattn_core.errors import UnsupportedError

_SUPPORTED = ("attention", "chunked_attention", "full_attention", "sliding_attention")
# Layers of one token each: of experts alone, or a network.
_PER_TOKEN = ("mlp", "moe")

_SPARSE = "it picks keys for each query by itself, among the tokens of one rank"
_LAYERS = {
    "window_attention": "where its windows end never reaches the attention call",
    "reference_sliding_attention": "its window depends on which tokens were generated",
    "indexed_attention": _SPARSE,
    "compressed_sparse_attention": _SPARSE,
    "heavily_compressed_attention": _SPARSE,
    "minimax_m3_sparse": _SPARSE,
}
# With these a layer says of itself that it is not causal, and its mask that it is: eager attention goes by the mask,
# others by it where there is padding.
_IN_SOME = ("gemma", "gemma2")
# What an encoder, or a vision tower, gives to layers of cross attention.
_CROSS = ("encoder_hidden_states", "cross_attention_states")
# Text models whose tokens meet in a way that no attribute of their configuration tells.
_STATE = "it passes a state from token to token, in layers whose code is none that is known here"
_MIXING = {
    "blt": "it pools bytes into patches, and looks each up by those before it, which the border of a shard parts",
    "doge": "its mask is computed from the values of keys, and a rank has those of local tokens alone",
    "rwkv": _STATE,
    "xlstm": _STATE,
}


def check(model: PreTrainedModel) -> None:
    """Raise UnsupportedError, with the layer type and the reason, unless the model can run on shards."""
    name = type(model).__name__
    for reason in _reasons(heads.sharded_part(model), model.config):
        raise UnsupportedError(f"{name} cannot run on a sharded sequence: {reason}.")


def _reasons(model: PreTrainedModel, config: PretrainedConfig) -> Iterator[str]:
    if config.is_encoder_decoder:
        yield "it is an encoder-decoder, whose cross attention joins two sequences (decoder-only models are supported)"
    yield from towers.reasons(config)
    text, reader = config.get_text_config(), tower(model)
    if not {"input_ids", "inputs_embeds"} & inspect.signature(reader.forward).parameters.keys():
        yield "its forward takes neither input_ids nor inputs_embeds, and only sequences of tokens are sharded"
    yield from _layer_reasons(text, reader)
    if text is config and text.model_type in _IN_SOME and getattr(text, "use_bidirectional_attention", None):
        yield "with use_bidirectional_attention transformers' attention implementations differ in what its tokens see"
    if text.model_type in _MIXING:
        yield _MIXING[text.model_type]
    yield from heads.reasons(reader)
    yield from layers.reasons(reader)
    if hybrid.has_attention(reader):
        if not layers.ask_interface(reader):
            yield "its attention does not ask transformers' AttentionInterface for a function"
        elif "position_ids" not in inspect.signature(reader.forward).parameters and not any(
            positions.counting_embeddings(reader)
        ):
            yield "its forward takes no position_ids: it numbers the tokens that it gets, a shard by itself"
    if (layerdrop := max((getattr(module, "layerdrop", 0.0) for module in reader.modules()), default=0.0)) > 0:
        yield f"it skips layers at random in training (layerdrop={layerdrop}), and each rank would skip other ones"
    if _computes_its_loss(model) and not unshifted.is_unshifted(model):
        yield (
            "this version of transformers computes its loss without its loss function, and shifts the labels of a "
            "shard again"
        )
    if not all(map(_takes_more, (model, reader))):
        yield "its forward takes no **kwargs, through which the plan of a batch has to reach the attention layers"


def _takes_more(model: PreTrainedModel) -> bool:
    parameters = inspect.signature(model.forward).parameters.values()
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)


def _computes_its_loss(model: PreTrainedModel) -> bool:
    """Does a model that takes labels make nothing of transformers' loss function, which knows of shifted labels?"""
    if "labels" not in inspect.signature(model.forward).parameters:
        return False
    forwards = (inspect.unwrap(vars(kind)["forward"]) for kind in type(model).__mro__ if "forward" in vars(kind))
    return not any("loss_function" in forward.__code__.co_names for forward in forwards)


def _layer_reasons(config: PretrainedConfig, reader: PreTrainedModel) -> Iterator[str]:
    kinds = getattr(config, "layer_types", None) or ()
    found = set(kinds) - {*_SUPPORTED, *_PER_TOKEN, *hybrid.LAYER_TYPES}
    supported = sorted({*_SUPPORTED, *hybrid.LAYER_TYPES})
    for kind in sorted(found):
        reason = _LAYERS.get(kind, "nothing is known here of what it does")
        yield f"it has layers of type {kind!r}: {reason} (supported are {', '.join(map(repr, supported))})"
    expected = sum(kind in hybrid.LAYER_TYPES for kind in kinds)
    if expected > len(hybrid.mixers(reader)):
        yield (
            f"it has {expected} layers of type {' or '.join(map(repr, sorted(hybrid.LAYER_TYPES & set(kinds))))}, in "
            "which tokens meet outside the attention call, and their code is none that is known here"
        )


def check_call(name: str, arguments: dict[str, Any], config: PretrainedConfig) -> None:
    """Raise UnsupportedError for arguments of a forward pass that mean something else on a shard than on the whole.

    ValueError where the model's attention would no longer ask other ranks.
    """
    implementation = config.get_text_config()._attn_implementation
    if implementation != NAME:
        raise ValueError(
            f"{name} was parallelized, and then its attention implementation was changed to {implementation!r}, with "
            "which every rank would attend to local tokens alone. Change it back with "
            f"model.set_attn_implementation({NAME!r}), or let the model run in one process again with "
            f"ringattn.hf.restore(model, {implementation!r})."
        )
    for states in _CROSS:
        if arguments.get(states) is not None:
            raise UnsupportedError(
                f"{name} got {states}: its cross attention joins two sequences, and only one is sharded."
            )
    towers.check_call(name, arguments, config)
    weights = arguments.get("output_attentions")
    if config.get_text_config().output_attentions if weights is None else weights:
        raise UnsupportedError(f"{name} got output_attentions=True: the weights are never formed as a whole.")
    cache = cache_of(arguments)
    if isinstance(cache, ShardedCache):
        return
    if cache is not None or arguments.get("use_cache"):
        kind = "a cache that the model makes" if cache is None else f"a {type(cache).__name__} as its cache"
        argument = "cache_params" if "cache_params" in arguments else ARGUMENT
        raise UnsupportedError(
            f"{name} got {kind}, which would hold this rank's keys alone: pass "
            f"{argument}=ringattn.hf.ShardedCache(group), or use_cache=False, with which generate() reads the whole "
            "text again for every token."
        )
    if arguments.get("labels") is not None and logits.asked(arguments):
        raise UnsupportedError(
            f"{name} got labels and logits_to_keep={arguments[logits.NAME]}: a loss takes the logits of all tokens. "
            "Leave one of them out."
        )


def tower(model: PreTrainedModel) -> PreTrainedModel:
    """The part of a model that reads the sequence: a vision-language model's text tower; of others all."""
    text = model.config.get_text_config()
    return next(part for part in model.modules() if isinstance(part, PreTrainedModel) and part.config is text)


def outermost(model: object) -> PreTrainedModel:
    """The transformers model in a module: itself, or the first within DDP, PEFT or a compiled module.

    Raises TypeError where there is none.
    """
    if isinstance(model, str):
        raise TypeError(
            f"ringattn.hf.parallelize takes a model, not the name of one: load {model!r} first, with "
            "AutoModelForCausalLM.from_pretrained."
        )
    for module in model.modules() if isinstance(model, nn.Module) else ():
        if isinstance(module, PreTrainedModel):
            return module
    raise TypeError(
        f"ringattn.hf.parallelize takes a transformers model, or a module around one, and got {type(model).__name__}. "
        "Any other model calls ringattn.attention itself, with ringattn.ContextParallel for its inputs."
    )
