"""The reference of the demo: the same model and text in one process, with PyTorch's own attention."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ringattn.cli import exact


class Reference(NamedTuple):
    """What one process found, and how long it took."""

    loss: float
    seconds: float


def run(model: Any, ids: Tensor, files: Path, advance: Callable[[], None]) -> Reference:
    """Run the model on the whole text, calling `advance` after each layer.

    Leaves in `files` what the others read: weights.pt, ids.pt (1, tokens) and logits.pt (1, tokens, vocabulary).
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    exact.use(model, "sdpa64", sdpa_attention_forward)
    handles = [layer.register_forward_hook(lambda *_: advance()) for layer in model.model.layers]
    start = time.perf_counter()
    with torch.inference_mode():
        output = model(input_ids=ids, labels=ids)
    seconds = time.perf_counter() - start
    for handle in handles:
        handle.remove()
    model.set_attn_implementation("sdpa")  # The others get this model's settings.
    torch.save(model.state_dict(), files / "weights.pt")
    torch.save(ids, files / "ids.pt")
    torch.save(output.logits, files / "logits.pt")
    return Reference(output.loss.item(), seconds)
