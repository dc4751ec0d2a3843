"""Positions that a model counts in its whole batch: counted in a shard they would be wrong, so they are handed in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
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
