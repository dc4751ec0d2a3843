"""Positions that a model counts by itself: counted in a shard they would be wrong, so hooks pass them in."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PretrainedConfig, PreTrainedModel

from ringattn.hf import layers
from ringattn.hf.batch import KEYWORD
from ringattn.hf.decode import Decoding


class Counted:
    """The positions of models that count real tokens, by the mask as OPT does or by token ids as RoBERTa does.

    Others number their tokens from 0 on, and need nothing of this.
    """

    def __init__(self, model: nn.Module, config: PretrainedConfig) -> None:
        codes = [layers.code_of(type(module)) for module in model.modules()]
        self.by_ids = any("create_position_ids_from_input_ids" in code.co_names for code in codes)
        # BioGPT's embedding could count too, and is always told positions.
        decoders = [layers.code_of(type(module)) for module in model.modules() if isinstance(module, PreTrainedModel)]
        self.by_mask = any(
            "cumsum" in code.co_names and {"attention_mask", "position_ids"} <= {*code.co_varnames} for code in decoders
        )
        self.padding: int | None = config.pad_token_id if self.by_ids else None

    def of(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The planned arguments, with position_ids (rows, tokens) as the model makes them, unless it is told others."""
        if not (self.by_ids or self.by_mask) or arguments.get("position_ids") is not None:
            return arguments
        tokens = arguments["input_ids"] if arguments.get("inputs_embeds") is None else arguments["inputs_embeds"]
        shape, device = tokens.shape[:2], tokens.device
        start = arguments[KEYWORD].start if isinstance(arguments[KEYWORD], Decoding) else 0
        if self.by_ids:
            positions = self._of_ids(arguments.get("input_ids"), shape, device, start)
        else:
            mask = arguments.get("attention_mask")
            mask = torch.ones(shape[0], start + shape[1], device=device) if mask is None else mask
            positions = (mask.cumsum(dim=1) * mask - 1).long()[:, start:]
        return arguments | {"position_ids": positions}

    def _of_ids(self, ids: Tensor | None, shape: torch.Size, device: torch.device, start: int) -> Tensor:
        """Real tokens from one behind the padding's id on; padding itself stays at its id."""
        padding = self.padding or 0
        real = torch.ones(shape, dtype=torch.int64, device=device) if ids is None else (ids != padding).long()
        return (real.cumsum(dim=1) + start) * real + padding


def counting_embeddings(model: PreTrainedModel) -> Iterator[tuple[nn.Module, nn.Embedding]]:
    """Each decoder that numbers its tokens from 0 on, with its embedding of positions: BART and its relatives.

    Nothing for a model whose forward takes position_ids.
    """
    if _takes_positions(model):
        return
    for decoder in model.modules():
        embedding = getattr(decoder, "embed_positions", None)
        if isinstance(embedding, nn.Embedding) and _takes_positions(embedding):
            yield decoder, embedding


def hooks(model: PreTrainedModel) -> list[RemovableHandle]:
    """Hooks by which these embeddings get the positions of this rank's tokens, those that the model was called with."""
    handles = []
    for decoder, embedding in counting_embeddings(model):
        positions = _Positions()
        handles += [
            decoder.register_forward_pre_hook(positions.take, with_kwargs=True),
            embedding.register_forward_pre_hook(positions.give, with_kwargs=True),
            embedding.register_forward_hook(positions.unflatten),
            decoder.register_forward_hook(positions.forget, always_call=True),
        ]
    return handles


class _Positions:
    """Holds position_ids, (rows or 1, tokens), while the decoder runs."""

    def __init__(self) -> None:
        self.positions: Tensor | None = None

    def take(self, decoder: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self.positions = kwargs.get("position_ids")

    def give(self, embedding: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        assert self.positions is not None, "the decoder of a parallelized model gets them"
        # Flat, because some of these embeddings add a dimension of rows.
        return args, kwargs | {"position_ids": self.positions.flatten()}

    def unflatten(self, embedding: nn.Module, args: Any, output: Tensor) -> Tensor:
        assert self.positions is not None, "given above"
        return output.view(*self.positions.shape, -1)

    def forget(self, decoder: nn.Module, args: Any, output: Any) -> None:
        self.positions = None


def _takes_positions(module: nn.Module) -> bool:
    return "position_ids" in inspect.signature(module.forward).parameters
