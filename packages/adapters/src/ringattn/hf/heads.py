"""The head of a model: one that predicts the next token runs on shards, any other on whole sequences.

Below another head, such as one for classes, rewards or spans, the base model is sharded and its hidden states are
gathered on every rank, so that every rank computes the head and its loss as one process does.
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

# Names of transformers' classes whose head gives logits of the next token, and whose labels are tokens.
_NEXT_TOKEN = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")
_ALSO_NEXT_TOKEN = frozenset(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())  # BertGenerationDecoder among them


def sharded_part(model: PreTrainedModel) -> PreTrainedModel:
    """The part of a model that runs on shards: the model if its head predicts the next token, else its base model."""
    base = model.base_model
    # A subclass that defines forward may do anything with the logits of its base class.
    kind = next(kind for kind in type(model).__mro__ if "forward" in vars(kind))
    next_token = kind.__name__.endswith(_NEXT_TOKEN) or kind.__name__ in _ALSO_NEXT_TOKEN
    return base if isinstance(base, PreTrainedModel) and not next_token else model


def reasons(reader: PreTrainedModel) -> Iterator[str]:
    """Why a vector that the model makes of a whole text, below its head, cannot be computed from shards."""
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
    """The module that reduces the tokens of each text to one vector, if the model has one."""
    found: nn.Module | None = getattr(reader, "pooler", None)
    return found


def whole(pooler: nn.Module, args: tuple[Any, ...], batch: ShardedBatch | None) -> tuple[Tensor]:
    """The argument of a pooler, gathered: the hidden states of whole texts. Raises UnsupportedError for any other."""
    match args:
        case [Tensor() as hidden] if batch is not None and hidden.shape[:2] == (batch.rows, batch.local):
            return (batch.unshard(hidden),)
    raise UnsupportedError(
        f"{type(pooler).__name__} takes more, or less, than the hidden states of all tokens, and nothing is known here "
        "of what they are on a shard."
    )
