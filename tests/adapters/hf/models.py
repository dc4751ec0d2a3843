"""Tiny models of every architecture, made from their configurations: random weights, the real code of transformers."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from adapters.hf.hybrid_models import HYBRIDS

VOCABULARY = 64
WINDOW = 5

COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "attention_dropout": 0.0,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
_MIXED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW}
_CALM = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
# Decoders of encoder-decoders, which number their tokens themselves and take labels that are shifted already.
_DECODER = {
    **dict.fromkeys(("d_model", "decoder_ffn_dim"), 32),
    "decoder_layers": 2,
    "encoder_layers": 1,
    "decoder_attention_heads": 4,
    **dict.fromkeys(("dropout", "activation_dropout"), 0.0),
}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}

# What each adds to the common settings: what it is here for is the comment beside it.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},  # norms of queries and keys
    "mistral": {"sliding_window": WINDOW, "head_dim": 8},  # a window in every layer
    "gemma2": {"head_dim": 8, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8, **_MIXED},  # softcap
    "gemma3_text": {"head_dim": 8, "query_pre_attn_scalar": 8, **_MIXED},  # two rotary embeddings
    "gpt_oss": {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, **_MIXED},  # sinks
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": {  # MLA: values have other dimensions than keys
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16,
        "v_head_dim": 12,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        **_EXPERTS,
    },
    "phi3": {"pad_token_id": 0},  # queries, keys and values out of one projection
    "olmo2": {},
    "granite": {"attention_multiplier": 0.3},  # a scale of its own
    "glm4_moe": {
        "head_dim": 8,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        **_EXPERTS,
    },
    "smollm3": {"no_rope_layers": [1, 0]},  # a layer without rotary embeddings
    "qwen3_moe": {"head_dim": 8, "num_experts": 4, **_EXPERTS},
}
if version("transformers") >= "5":  # before, their attention was their own code, or got their own masks
    ARCHITECTURES |= {
        "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0},  # positions counted by the mask
        "roberta": _CALM | {"is_decoder": True},  # and by ids
        "biogpt": _CALM | {"activation_dropout": 0.0},
        "nemotron": {"head_dim": 8},  # layers that keep **kwargs to themselves
        "stablelm": {},
        "bert-generation": _CALM | {"is_decoder": True},  # a class without a usual name
        "bart": _DECODER | {"scale_embedding": True},
        "bigbird_pegasus": _DECODER,  # its attention calls itself not causal, and gets a causal mask
        "whisper": _DECODER | {"max_target_positions": 128},
        "llama4_text": {  # chunks, and a layer that scales queries by their place
            "head_dim": 8,
            "intermediate_size_mlp": 48,
            "num_local_experts": 2,
            "attention_chunk_size": 8,
            "no_rope_layers": [1, 0],
            "layer_types": ["chunked_attention", "full_attention"],
            "floor_scale": 4,
            "attn_scale": 0.5,
        },
    }


def build(name: str, seed: int = 0, **settings: Any) -> PreTrainedModel:
    """A tiny model with random weights, the same for the same seed, running on transformers' eager attention."""
    return build_from(name, COMMON | (ARCHITECTURES | HYBRIDS)[name] | settings, seed)


def build_from(name: str, settings: dict[str, Any], seed: int = 0) -> PreTrainedModel:
    """The same, of any type that transformers knows, from all its settings."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(name, **settings)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    for parameter in model.parameters():
        # The initial weights are so small that all logits, and all attention weights, would be nearly equal; and sinks
        # would not be initialised at all.
        torch.nn.init.normal_(parameter, std=0.3) if parameter.dim() > 1 else torch.nn.init.normal_(parameter, 1.0, 0.3)
    return model
