"""Models with a text tower and others: which of them can be sharded, and the arguments of the text tower on a shard."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig

from ringattn.hf import inputs
from ringattn.hf.batch import KEYWORD, ShardedBatch, padded
from ringattn.hf.cache import cache_of
from ringattn.hf.decode import Decoding
from ringattn.hf.seen import Seen
from ringattn_core.errors import UnsupportedError

# Types whose images are tested: their features are laid into the sequence before an ordinary decoder reads it.
IMAGES = (
    *("gemma3", "gemma4", "internvl", "llava", "mistral3", "paligemma"),
    *("qwen2_5_vl", "qwen2_vl", "qwen3_vl", "qwen3_vl_moe"),
)
# These get text alone, with the reason.
_TEXT_ALONE = {
    "phi4_multimodal": "its decoder puts images and sounds into the sequence, and a shard has only a part of that",
}
_REFUSED = {
    "mllama": "its decoder has layers of cross attention to images, which join two sequences",
}
# Qwen3-VL adds features of images to some layers' outputs: at a mask of tokens, those of the tokens in it.
_PLACES, _FEATURES = "visual_pos_masks", "deepstack_visual_embeds"
# Arguments that are of the text, or say nothing of single tokens.
_TEXT = {"input_ids", "inputs_embeds", "attention_mask", "position_ids", "cache_position", "labels", "shift_labels"}
_TEXT |= {"num_items_in_batch", "logits_to_keep", KEYWORD, *inputs.PACKING}


def reasons(config: PretrainedConfig) -> Iterator[str]:
    """Why a model with this configuration cannot run on shards, even with text alone."""
    if config.model_type in _REFUSED:
        yield f"it is of type {config.model_type!r}: {_REFUSED[config.model_type]}"


def check_call(name: str, arguments: dict[str, Any], config: PretrainedConfig) -> None:
    """Raise UnsupportedError for images and the like where nothing is known of how they come into the sequence."""
    kinds, cache = arguments.get("token_type_ids"), cache_of(arguments)
    if config.model_type == "paligemma" and kinds is None and (cache is None or cache.get_seq_length() == 0):
        raise UnsupportedError(
            f"{name} got no token_type_ids, without which transformers' attention implementations differ in what the "
            "prefix sees: give them as the processor makes them, 0 for the prefix and 1 behind it."
        )
    if not config.sub_configs or config.model_type in IMAGES:
        return
    for argument, value in arguments.items():
        # Integers may say of each token that it is none of an image.
        if argument not in _TEXT and any(each.is_floating_point() or bool(each.any()) for each in _tensors(value)):
            reason = _TEXT_ALONE.get(config.model_type, "how they come into its sequence is not known here")
            raise UnsupportedError(
                f"{name} got {argument}. With images, sounds and the like models of type {config.model_type!r} are not "
                f"supported: {reason}. Give it text alone, or parallelize its decoder alone and give that "
                f"inputs_embeds. Supported with images are {', '.join(map(repr, IMAGES))}."
            )


def local(arguments: dict[str, Any]) -> dict[str, Any]:
    """A text tower's planned arguments for this rank.

    Raises UnsupportedError for tensors that are not (rows, tokens, ...), and where the tower does not get all tokens of
    the batch.
    """
    batch, asked = arguments[KEYWORD], arguments.get("attention_mask")
    # What transformers' mask functions made of each kind of layer, or of all: PaliGemma's decoder takes no such one.
    kinds = {"attention_mask": asked} if isinstance(asked, dict) else {}
    if batch.seen is None and isinstance(asked, Seen):
        batch.seen = asked
    if isinstance(batch, Decoding):
        return inputs.local(arguments) | kinds  # new tokens are on every rank
    _check_tokens(arguments, batch)
    rest = {name: value for name, value in arguments.items() if name not in (_PLACES, _FEATURES)}
    for name in rest.keys() - _TEXT:
        if any(each.shape[:2] not in ((batch.rows, batch.tokens), (1, batch.tokens)) for each in _tensors(rest[name])):
            raise UnsupportedError(
                f"The text tower got {name}, and how that belongs to tokens is not known, while a shard has only some "
                "of them. Leave out the argument that it comes from, or parallelize only the text tower and give it "
                "inputs_embeds."
            )
    local = inputs.local(rest) | kinds
    if arguments.get(_PLACES) is not None:
        local |= _added(arguments[_PLACES], arguments[_FEATURES], batch)
    return local


def keep(tower: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
    """A text tower's output, with those tokens alone whose logits are asked for: the head gets no others."""
    batch = kwargs[KEYWORD]
    if isinstance(batch, Decoding) or batch.kept is None or batch.kept.rows is None:
        return output
    rows, batch.kept.rows = batch.kept.rows, None
    if isinstance(output, tuple):
        return (output[0].index_select(1, rows), *output[1:])
    output["last_hidden_state"] = output["last_hidden_state"].index_select(1, rows)
    return output


def _check_tokens(arguments: dict[str, Any], batch: ShardedBatch) -> None:
    found = tuple(inputs.tokens_of(arguments).shape[:2])
    if found != (batch.rows, batch.tokens):
        raise UnsupportedError(
            f"The text tower got (rows, tokens) = {found} of a batch of {(batch.rows, batch.tokens)}: a model that "
            "puts tokens in or takes them out before its decoder reads them is not supported."
        )


def _added(places: Tensor, features: list[Tensor], batch: ShardedBatch) -> dict[str, Any]:
    """The mask of this rank's tokens, and of each features (tokens in the mask, hidden) the rows of those.

    places: (rows, tokens). The features of its tokens follow each other row by row.
    """
    index = places.flatten().cumsum(0).view(places.shape) - 1
    ours = _shard(places, batch)
    rows = _shard(index, batch)[ours]
    return {_PLACES: ours, _FEATURES: [each[rows] for each in features]}


def _shard(x: Tensor, batch: ShardedBatch) -> Tensor:
    return batch.shard(padded(x, batch.length, 1, 0))


def _tensors(value: Any) -> Iterator[Tensor]:
    """A tensor, or those in a list."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)
