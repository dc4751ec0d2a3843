"""What stands on top of a sequence: a head that predicts the next token runs on shards, any other on whole sequences.

Below a head of the other kind, a classifier of texts or tokens, a reward, a span, the base model is sharded and gives
its hidden states whole to every rank, so that the head and its loss are computed as in one process, on all ranks alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ringattn.hf import layers
from ringattn.hf.batch import ShardedBatch
from ringattn_core.errors import UnsupportedError

# How transformers calls the classes whose head is a row of logits for each token, and whose labels are the tokens.
_NEXT_TOKEN = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")
_ALSO_NEXT_TOKEN = frozenset(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())  # BertGenerationDecoder among them


def sharded_part(model: PreTrainedModel) -> PreTrainedModel:
    """The part of a model that runs on shards: what is below its head, unless that runs on shards too."""
    base = model.base_model
    # A subclass with a forward of its own may do anything with the logits of the class that it is made from.
    kind = next(kind for kind in type(model).__mro__ if "forward" in vars(kind))
    next_token = kind.__name__.endswith(_NEXT_TOKEN) or kind.__name__ in _ALSO_NEXT_TOKEN
    return base if isinstance(base, PreTrainedModel) and not next_token else model


def reasons(reader: PreTrainedModel) -> Iterator[str]:
    """Why one vector for a whole text cannot be had from shards, where a model makes one below its head."""
    pooler = getattr(reader, "pooler", None)
    if pooler is not None and not type(pooler).__name__.endswith("Pooler"):
        yield (
            f"its {type(pooler).__name__} pools tokens that the model has chosen among those of a shard (load it with "
            "add_pooling_layer=False, if the class takes that)"
        )
    own = (module for module in reader.modules() if not layers.in_other_tower(module, reader))
    for kind in dict.fromkeys(map(type, own)):
        code = layers.code_of(kind)
        if "pooler_output" in layers.keywords(code) and "pooler" not in code.co_names:
            yield f"its {kind.__name__} takes one token of the sequence by its place, which is another one in a shard"


def pooler(reader: PreTrainedModel) -> nn.Module | None:
    """The module that makes one vector of the tokens of each text, if the model has one."""
    found: nn.Module | None = getattr(reader, "pooler", None)
    return found


def whole(pooler: nn.Module, args: tuple[Any, ...], batch: ShardedBatch | None) -> tuple[Tensor]:
    """A pooler's argument, the hidden states of whole texts. Raises UnsupportedError for any other."""
    match args:
        case [Tensor() as hidden] if batch is not None and hidden.shape[:2] == (batch.rows, batch.local):
            return (batch.unshard(hidden),)
    raise UnsupportedError(
        f"{type(pooler).__name__} takes more, or less, than the hidden states of all tokens, and nothing is known here "
        "of what they are on a shard."
    )
