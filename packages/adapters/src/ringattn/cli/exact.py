"""Attention in float64 inside a float32 model, for a comparison in which only the sharding could make a difference.

In float32 two right ways to compute attention differ in the last bits, and thirty layers make about 1e-4 of that in
SmolLM2's logits, which reach 43 (dev/LOG.md): as much as the demo's limit. What this leaves out, the error of attention
in float32 itself, is for the tests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


def use(model: Any, name: str, attend: Callable[..., tuple[Tensor, Any]]) -> None:
    """Let a model attend with this function of transformers' contract, in float64, under this name in this process."""
    from transformers import AttentionInterface, AttentionMaskInterface

    def in_float64(module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        out, weights = attend(module, query.double(), key.double(), value.double(), *args, **kwargs)
        return out.to(query.dtype), weights

    AttentionInterface.register(name, in_float64)
    AttentionMaskInterface.register(name, _no_mask)
    model.set_attn_implementation(name)


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """A causal mask is what both sides assume where there is none."""
