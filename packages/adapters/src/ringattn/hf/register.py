"""The name "ringattn" in transformers' registries of attention and mask functions."""

from __future__ import annotations

from typing import Any

from transformers import AttentionInterface, AttentionMaskInterface

from ringattn.hf.attention import attention_forward

# Transformers takes a name with "flash" in it for FlashAttention, and one with a slash for a kernel on its Hub.
NAME = "ringattn"


def no_mask(*args: Any, **kwargs: Any) -> None:
    """Masks are bands that the planner knows of; padding and packing were turned into sequences before the model ran.

    Versions of transformers call this with different arguments, of which none is needed.
    """


AttentionInterface.register(NAME, attention_forward)
AttentionMaskInterface.register(NAME, no_mask)
