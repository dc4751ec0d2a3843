"""Tiny random models of every causal type in transformers: the configuration's own defaults, made small by name."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 64
WINDOW = 5
TYPES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)

# A value for every name that makes a model large, where its configuration has that name and a number under it.
_SIZES = {
    VOCABULARY: "vocab_size vocab_size_per_layer_input decoder_vocab_size unpadded_vocab_size",
    128: "max_position_embeddings n_positions n_ctx max_seq_len max_target_positions model_max_length",
    48: """
        intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim ffn_hidden_size dim_ff dff
        dense_intermediate_size intermediate_size_mlp d_inner feed_forward_size
    """,
    32: """
        hidden_size d_model n_embd emb_dim embedding_size embedding_dim attention_hidden_size lru_width
        backbone_hidden_size word_embed_proj_dim input_embedding_size output_embedding_size adapter_in_dim
        adapter_out_dim adapter_input_size
    """,
    16: """
        moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size kv_lora_rank q_lora_rank
        qk_nope_head_dim shared_experts_intermediate_size expert_ffn_hidden_size o_lora_rank
        moe_shared_expert_intermediate_size index_head_dim router_hidden_size state_size ssm_state_size
        mamba_d_state mamba_head_dim mamba_d_head mamba_headdim hidden_size_per_layer_input qk_head_dim
    """,
    12: "v_head_dim swa_v_head_dim",
    8: """
        head_dim qk_rope_head_dim dim_head d_head attention_head_dim linear_key_head_dim kv_channels
        linear_value_head_dim linear_head_dim query_pre_attn_scalar swa_head_dim attention_head_size
        global_head_dim index_topk chunk_size mamba_chunk_size block_size attention_chunk_size laurel_rank
        altup_rank time_step_rank mamba_dt_rank rotary_dim d_rel rel_extent hc_lowrank
    """,
    WINDOW: "sliding_window attention_window_size window_size sliding_window_size local_attention",
    4: """
        num_attention_heads n_head n_heads decoder_attention_heads encoder_attention_heads num_heads
        attention_heads num_decoder_attention_heads num_encoder_attention_heads num_experts num_local_experts
        n_routed_experts moe_num_experts linear_num_value_heads linear_num_heads swa_num_attention_heads
        mamba_n_heads mamba_num_heads n_mamba_heads index_n_heads
    """,
    2: """
        num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_blocks num_decoder_layers
        num_encoder_layers num_key_value_heads num_kv_heads num_experts_per_tok moe_topk moe_k
        num_experts_per_token linear_num_key_heads swa_num_key_value_heads hc_mult num_global_key_value_heads
    """,
    1: """
        n_group topk_group num_expert_group n_shared_experts first_k_dense_replace num_shared_experts
        moe_num_shared_experts mamba_n_groups n_groups num_query_groups num_dense_layers hc_count
    """,
    0: "pad_token_id num_nextn_predict_layers num_kv_shared_layers",
}
SIZES = {name: size for size, names in _SIZES.items() for name in names.split()} | {
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")

# What cannot be told from names.
_MIXED = {"layer_types": ["sliding_attention", "full_attention"]}
_DECODER = {"is_decoder": True}
_HEADS = {"head_dim": 8}
_INDEXER = {
    "hc_count": 2,
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 16,
    "indexer_compress_ratio": 4,
}
_ROPE = {"rope_type": "default", "rope_theta": 1e4}
_SHARED_TRANSFORMER = {
    "layers_block_type": ["linear_attention", "hybrid"] * 2,
    "num_hidden_layers": 4,
    "attention_hidden_size": 64,
    "attention_head_dim": 16,
}
SPECIAL: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie"), _DECODER
    ),
    **dict.fromkeys(("megatron-bert", "rembert", "roberta", "roberta-prelayernorm", "roformer"), _DECODER),
    **dict.fromkeys(("xlm-roberta", "xlm-roberta-xl"), _DECODER),
    **dict.fromkeys(("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral", "longcat_flash"), _HEADS),
    **dict.fromkeys(("qwen4_exp", "qwen4_exp_text"), _INDEXER),
    "bamba": {"attn_layer_indices": [1]},
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "cohere_compass_text": _MIXED | {"rope_parameters": dict.fromkeys(_MIXED["layer_types"], _ROPE)},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": _MIXED | {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dory": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_hidden_layers": 4,
        "n_input_layers": 1,
        "n_output_layers": 1,
    },
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma3n_text": {
        "layer_types": _MIXED["layer_types"] * 2,
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "intermediate_size": 48,
        "activation_sparsity_pattern": [0.5, 0.0] * 2,
    },
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "laguna": _MIXED | {"num_attention_heads_per_layer": [4, 4]},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"head_dim": 16},
    "mellum": _MIXED,
    "nemotron": {"num_key_value_heads": 2},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "reformer": _DECODER | {"axial_pos_embds": False},
    "roc_bert": _DECODER | {"pronunciation_vocab_size": 64, "shape_vocab_size": 64},
    "xmod": _DECODER | {"languages": ["en_XX"], "default_language": "en_XX"},
    "zamba": _SHARED_TRANSFORMER,
    "zamba2": _SHARED_TRANSFORMER | {"hybrid_layer_ids": [1, 3], "mamba_headdim": 16, "num_query_groups": 4},
    "zaya": {"num_experts_per_tok": 1},
}


def config_of(kind: str) -> PretrainedConfig:
    """A tiny configuration of one type. Raises whatever transformers raises for it."""
    return AutoConfig.for_model(kind, **_small(AutoConfig.for_model(kind)) | copy.deepcopy(SPECIAL.get(kind, {})))


def _small(config: PretrainedConfig) -> dict[str, Any]:
    """The settings that make a configuration small, those within it too."""
    small: dict[str, Any] = {}
    for name in config.sub_configs:
        part = getattr(config, name, None)
        if isinstance(part, PretrainedConfig):
            small[name] = {"model_type": part.model_type} | _small(part) | SPECIAL.get(part.model_type, {})
    known = vars(config)
    latent = "qk_rope_head_dim" in known  # multi-head latent attention derives the other dimensions of its heads
    for name, value in known.items():
        if latent and name in ("head_dim", "qk_head_dim"):
            continue
        if latent and name == "num_key_value_heads":
            small[name] = SIZES["num_attention_heads"]
        elif name in SIZES and isinstance(value, int | float) and not isinstance(value, bool):
            small[name] = SIZES[name]
        elif "drop" in name and isinstance(value, float) and value:
            small[name] = 0.0
    return small | _one_layer_of_each_kind(config)


def _one_layer_of_each_kind(config: PretrainedConfig) -> dict[str, Any]:
    """Two layers at least, and one of each combination of what the lists with an entry per layer say."""
    number = next((name for name in _LAYERS if isinstance(vars(config).get(name), int)), None)
    if number is None:
        return {}
    layers = vars(config)[number]
    told = {
        name: value
        for name, value in vars(config).items()
        if isinstance(value, list | tuple) and len(value) == layers and all(isinstance(each, str) for each in value)
    }
    if not told:
        return {}
    kinds = list(zip(*told.values(), strict=True))
    chosen = sorted({kind: place for place, kind in reversed(list(enumerate(kinds)))}.values())
    chosen = chosen if len(chosen) > 1 else chosen * 2
    return {name: [value[place] for place in chosen] for name, value in told.items()} | {number: len(chosen)}


def build(kind: str) -> PreTrainedModel:
    """The model, in evaluation mode, on transformers' eager attention; all weights are large enough to matter."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(kind), attn_implementation="eager").eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3) if parameter.dim() > 1 else nn.init.normal_(parameter, 1.0, 0.3)
    return model
