"""The name "ringattn" in transformers' registries of attention and mask functions."""

from __future__ import annotations

from transformers import AttentionInterface, AttentionMaskInterface

from ringattn.hf.attention import attention_forward
from ringattn.hf.masks import mask

# Transformers takes a name with "flash" in it for FlashAttention, and one with a slash for a kernel on its Hub.
NAME = "ringattn"

AttentionInterface.register(NAME, attention_forward)
AttentionMaskInterface.register(NAME, mask)
