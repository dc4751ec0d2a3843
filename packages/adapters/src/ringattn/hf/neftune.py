"""NEFTune on shards: noise on embeddings that is as large, and the same on all ranks, as in one process.

The noise is uniform within alpha / sqrt(tokens * hidden size) of 0 (https://arxiv.org/abs/2310.05914), and a hook of
transformers on the embedding layer draws it for as many tokens as that layer gets. So the layer gets all tokens.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ringattn.hf import inputs
from ringattn.hf.batch import KEYWORD, ShardedBatch
from ringattn.hf.random_state import share_random_state
from ringattn_core.errors import UnsupportedError


def local(model: nn.Module, planned: dict[str, Any]) -> dict[str, Any]:
    """The planned arguments of a model with this rank's tokens in place of all, with noise where the model gets any.

    Raises UnsupportedError as `_embedded` does.
    """
    return inputs.local(_embedded(model, planned))


def _embedded(model: nn.Module, planned: dict[str, Any]) -> dict[str, Any]:
    """The planned arguments, with embeddings (rows, tokens, hidden) in place of input_ids where they get noise.

    Raises UnsupportedError for a model that makes more of input_ids than these embeddings.
    """
    batch, ids = planned[KEYWORD], planned.get("input_ids")
    if not isinstance(batch, ShardedBatch) or not isinstance(model, PreTrainedModel) or ids is None:
        return planned
    layer = next((each for each in model.modules() if _gets_noise(each)), None) if model.training else None
    if layer is None:
        return planned
    if "per_layer_inputs" in inspect.signature(model.base_model.forward).parameters:
        raise UnsupportedError(
            f"{type(model).__name__} trains with neftune_noise_alpha, and makes inputs of every layer from input_ids, "
            "which noise on whole embeddings would take the place of. Leave neftune_noise_alpha out."
        )
    share_random_state(batch.row.communicator, ids.device)
    return {name: value for name, value in planned.items() if name != "input_ids"} | {"inputs_embeds": layer(ids)}


def _gets_noise(layer: nn.Module) -> bool:
    """Has Trainer set the attribute that its hook on the embedding layer reads?"""
    return getattr(layer, "neftune_noise_alpha", None) is not None
