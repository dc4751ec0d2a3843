"""Settings of tiny models whose layers mix tokens outside the attention call, and the layers that they are here for."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from transformers import CONFIG_MAPPING

# Transformers 4 calls these layers by the names of the time.
_OLD = version("transformers") < "5"
_STATE, _ATTENTION = ("mamba", "attention") if _OLD else ("linear_attention", "full_attention")

_LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    **_LINEAR,
}
_MLA = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": None,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 12,
}
_MAMBA_2 = {
    "mamba_d_state": 8,
    "mamba_expand": 2,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}

_ALL: dict[str, dict[str, Any]] = {
    "qwen3_next": {"head_dim": 8, "shared_expert_intermediate_size": 16, **_DELTA, **_EXPERTS},  # gated delta rule
    "qwen3_5_text": {"head_dim": 8, **_DELTA},
    "qwen3_5_moe_text": {"head_dim": 8, "shared_expert_intermediate_size": 16, **_DELTA, **_EXPERTS},
    "olmo_hybrid": {**_DELTA, "linear_num_key_heads": 4},
    "kimi_linear": {  # Kimi delta attention, and MLA
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "linear_head_dim": 8,
        "linear_num_heads": 4,
        **_MLA,
        **_LINEAR,
    },
    "bailing_hybrid": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "head_dim": 8,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "num_mtp_layers": 0,
        **_MLA,
        **_LINEAR,
    },
    "minimax": {"head_dim": 8, "num_local_experts": 4, "block_size": 8, **_LINEAR},  # lightning attention
    "nemotron_h": {  # Mamba 2, and layers of experts or of a network alone
        "num_hidden_layers": 4,
        "layer_types": ["linear_attention", "moe", "full_attention", "mlp"],
        "head_dim": 8,
        "ssm_state_size": 8,
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "n_groups": 2,
        "chunk_size": 8,
        "n_routed_experts": 4,
        "moe_intermediate_size": 16,
        "moe_shared_expert_intermediate_size": 16,
    },
    "granitemoehybrid": {
        **_MAMBA_2,
        "layer_types": [_STATE, _ATTENTION],
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 16,
    },
    "bamba": {**_MAMBA_2, "attn_layer_indices": [1]},
    "falcon_h1": {**_MAMBA_2, "mamba_d_ssm": 64},  # Mamba 2 beside attention in every layer
    "zamba2": {  # and before it, with attention whose weights layers share
        "num_hidden_layers": 3,
        "layers_block_type": [_STATE, "hybrid", _STATE],
        "num_key_value_heads": 4,
        "mamba_d_state": 8,
        "mamba_ngroups": 1,
        "n_mamba_heads": 4,
        "chunk_size": 8,
    },
    "zamba": {  # Mamba
        "num_hidden_layers": 3,
        "layers_block_type": [_STATE, "hybrid", _STATE],
        "num_key_value_heads": 4,
        "mamba_d_state": 8,
    },
    "jamba": {  # whose layers do not pass **kwargs on to it
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "num_experts": 4,
        "mamba_d_state": 8,
        "use_mamba_kernels": False,
    },
    "mamba": {"state_size": 8},  # no attention, and nothing that is passed on but a mask
    "falcon_mamba": {"state_size": 8},
    "mamba2": {"state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 2, "chunk_size": 8},
    "recurrent_gemma": {"num_hidden_layers": 3, "attention_window_size": 5, "lru_width": 32},  # reads positions
    "lfm2": {"layer_types": ["conv", "full_attention"]},  # short convolutions
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1, **_EXPERTS},
    "lfm3": {
        "num_hidden_layers": 3,
        "layer_types": ["conv", "sliding_attention", "full_attention"],
        "sliding_window": 5,
        "head_dim": 8,
    },
}
# Transformers 4 has its own attention code in some of these models, and its own loss in others: refused there.
_REFUSED_BEFORE_5 = {
    "bamba",
    "falcon_h1",
    "falcon_mamba",
    "granitemoehybrid",
    "jamba",
    "mamba",
    "recurrent_gemma",
    "zamba",
    "zamba2",
}

HYBRIDS = {
    name: settings
    for name, settings in _ALL.items()
    if name in CONFIG_MAPPING and not (_OLD and name in _REFUSED_BEFORE_5)
}
