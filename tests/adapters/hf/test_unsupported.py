"""What cannot run on shards is refused before it runs, with the layer type and the reason."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from importlib.metadata import version
from typing import Any

import pytest
import torch
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

import ringattn.hf
from adapters.comms import Mute
from adapters.hf.models import COMMON, build
from ringattn import UnsupportedError
from ringattn.hf import rope
from ringattn.hf.batch import divide
from ringattn_comms.communicator import SingleRank

FULL = ["full_attention", "full_attention"]
IDS = torch.arange(3, 13)[None]


def default(name: str, **settings: Any) -> PreTrainedModel:
    """A model of this architecture without memory."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **(COMMON | settings)))


SKIPS = r"skips layers at random in training \(layerdrop=0.1\)"
BART = SKIPS if version("transformers") >= "5" else r"does not pass \*\*kwargs on"  # its model did not, before


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "llama",
            {"layer_types": ["linear_attention", "full_attention"]},
            "1 layers of type 'linear_attention', in whi",
        ),
        ("deepseek_v32", {}, "'indexed_attention'.*picks keys"),
        ("deepseek_v32", {"layer_types": FULL}, "DeepseekV32Attention passes 'indices'.*a sparse indexer"),
        ("inkling_text", {"layer_types": FULL}, "InklingAttention passes 'position_bias'.*a bias for every pair"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention.*differ in what its tokens see"),
        ("rwkv", {}, "passes a state from token to token"),
        ("bloom", {}, "its attention does not ask transformers' AttentionInterface"),
        ("xglm", {}, "its attention does not ask transformers' AttentionInterface"),
        ("doge", {}, "its mask is computed from the values of keys"),
        ("bart", {"decoder_layerdrop": 0.1}, BART),
        ("opt", {"layerdrop": 0.2, "ffn_dim": 48}, r"skips layers at random in training \(layerdrop=0.2\)"),
        ("blt", {}, "it pools bytes into patches"),
    ],
)
def test_a_decoder(name: str, settings: dict[str, Any], message: str) -> None:
    if name not in CONFIG_MAPPING:
        pytest.skip(f"this version of transformers does not know {name}")
    with pytest.raises(UnsupportedError, match=f"cannot run on a sharded sequence: .*{message}"):
        ringattn.hf.parallelize(default(name, **settings), SingleRank())


def test_other_towers_within_a_decoder() -> None:
    """Phi-4 has layers for images and sounds within: they stay as they are, and say nothing of its text."""
    if version("transformers") < "5":
        pytest.skip("before, it computed its loss without its loss function")
    model = ringattn.hf.parallelize(default("phi4_multimodal"), SingleRank())
    assert model.config._attn_implementation == ringattn.hf.NAME
    assert ringattn.hf.NAME not in {
        model.config.vision_config._attn_implementation,
        model.config.audio_config._attn_implementation,
    }


def test_other_models() -> None:
    with torch.device("meta"):
        # The encoder alone says of its configuration that it is none of an encoder-decoder.
        t5, encoder = (
            kind(T5Config(vocab_size=64, d_model=32, num_layers=1, num_heads=2))
            for kind in (T5ForConditionalGeneration, T5EncoderModel)
        )
    with pytest.raises(UnsupportedError, match=r"T5ForConditionalGeneration.*encoder-decoder"):
        ringattn.hf.parallelize(t5, SingleRank())
    bias = version("transformers") >= "5"  # before, its attention did not ask AttentionInterface
    with pytest.raises(
        UnsupportedError, match="T5Attention passes 'position_bias'" if bias else "its attention does not ask"
    ):
        ringattn.hf.parallelize(encoder, SingleRank())
    with pytest.raises(TypeError, match=r"got Linear.*ringattn\.attention"):
        ringattn.hf.parallelize(torch.nn.Linear(2, 2), SingleRank())


def test_names_that_do_not_exist() -> None:
    model = build("llama")
    with pytest.raises(ValueError, match="Did you mean 'zigzag'"):
        ringattn.hf.parallelize(model, SingleRank(), layout="zig-zag")
    with pytest.raises(ValueError, match="Did you mean 'gather'"):
        ringattn.hf.parallelize(model, SingleRank(), route="gathers")
    with pytest.raises(ValueError, match="init_process_group"):
        ringattn.hf.parallelize(model)
    with pytest.raises(ValueError, match=r"logits must be 'shards' .* got 'full'"):
        ringattn.hf.parallelize(model, SingleRank(), logits="full")
    with pytest.raises(TypeError, match="load 'gpt2' first, with AutoModelForCausalLM"):
        ringattn.hf.parallelize("gpt2", SingleRank())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "neither input_ids nor inputs_embeds"),
        ({"input_ids": IDS, "attention_mask": torch.ones(1, 10, 10)}, r"attention_mask must be .*\(1, 10\)"),
        ({"input_ids": IDS, "attention_mask": torch.tensor([[1, 1, 0, 0, 1, 1, 1, 1, 1, 1]])}, "between real tokens"),
        ({"input_ids": IDS, "cu_seq_lens_q": [0, 12]}, "ends at 12, but the row has 10 tokens"),
        ({"input_ids": IDS.expand(2, -1), "cu_seq_lens_q": [0, 10]}, "the batch has 2 rows"),
        ({"input_ids": IDS, "use_cache": True}, "ShardedCache"),
        ({"input_ids": IDS, "logits_to_keep": 1, "labels": IDS}, "labels and logits_to_keep=1: a loss takes the logit"),
        ({"input_ids": IDS, "output_attentions": True}, "output_attentions"),
        ({"input_ids": IDS, "position_bias": torch.zeros(1)}, "'position_bias'.*a bias for every pair"),
        ({"input_ids": IDS, "encoder_hidden_states": torch.zeros(1, 4, 32)}, "got encoder_hidden_states: its cross"),
        ({"input_ids": IDS, "indices": torch.zeros(1)}, "'indices'.*a sparse indexer"),
    ],
)
def test_arguments(arguments: dict[str, Any], message: str) -> None:
    model = ringattn.hf.parallelize(build("llama"), SingleRank())
    with pytest.raises(ValueError, match=message):
        model(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": IDS[0]}, r"input_ids must be \(rows, tokens\), got \(10,\).*input_ids\[None\]"),
        ({"inputs_embeds": torch.zeros(10, 32)}, r"inputs_embeds must be \(rows, tokens, hidden\), got \(10, 32\)"),
        ({"input_ids": IDS, "labels": IDS[:, :5]}, r"labels must be \(rows, tokens\) = \(1, 10\), got \(1, 5\)"),
        ({"input_ids": IDS[:, :5], "labels": IDS}, r"labels must be \(rows, tokens\) = \(1, 5\), got \(1, 10\)"),
        ({"input_ids": IDS.expand(2, -1), "labels": IDS}, r"labels must be .* = \(2, 10\), got \(1, 10\)"),
        ({"input_ids": IDS, "shift_labels": IDS[:, 1:]}, r"shift_labels must be .* = \(1, 10\), got \(1, 9\)"),
        ({"input_ids": IDS, "position_ids": IDS[:, :5]}, r"position_ids must be .* or \(1, 10\), got \(1, 5\)"),
    ],
)
def test_shapes(arguments: dict[str, Any], message: str) -> None:
    """Before anything is communicated."""
    model = ringattn.hf.parallelize(build("llama"), Mute(0, 2))
    with pytest.raises(ValueError, match=message):
        model(**arguments)


def test_router_losses() -> None:
    """Those that are not Mixtral's; which are, is tested with their values."""
    model = ringattn.hf.parallelize(build("llama"), SingleRank())
    with pytest.raises(UnsupportedError, match="model-specific code for the loss that balances"):
        model(IDS, output_router_logits=True)
    assert model(IDS, output_router_logits=False).logits.shape == (1, 10, 64)


def test_noise_on_embeddings() -> None:
    """Of a model that makes more of its tokens than embeddings; that it is right in others is tested with a Trainer."""
    layers = {"intermediate_size": [48] * 2, "activation_sparsity_pattern": [0.0] * 2, "laurel_rank": 4, "head_dim": 8}
    embeddings = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 64}
    full = {"layer_types": ["full_attention"] * 2, "num_kv_shared_layers": 0}
    config = AutoConfig.for_model("gemma3n_text", **(COMMON | layers | embeddings | full))
    model = AutoModelForCausalLM.from_config(config).train()
    model.get_input_embeddings().neftune_noise_alpha = 5.0
    with pytest.raises(UnsupportedError, match="neftune_noise_alpha, and makes inputs of every layer from input_ids"):
        ringattn.hf.parallelize(model, SingleRank())(IDS)


def test_a_model_that_was_not_parallelized() -> None:
    model = build("llama")
    model.set_attn_implementation(ringattn.hf.NAME)
    with pytest.raises(UnsupportedError, match=r"call ringattn\.hf\.parallelize\(model, group\)"):
        model(IDS)


def test_a_model_whose_attention_goes_elsewhere() -> None:
    model = ringattn.hf.parallelize(build("llama"), SingleRank())
    for layer in model.model.layers:
        layer.self_attn.config = build("llama").config
    with pytest.raises(UnsupportedError, match="without calling its registered attention function"):
        model(IDS)


def test_another_implementation_was_chosen() -> None:
    model = build("llama").eval()
    expected = model(IDS).logits
    ringattn.hf.parallelize(model, SingleRank()).set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match=r"changed to 'sdpa'.*set_attn_implementation\('ringattn'\).*restore"):
        model(IDS)
    model.set_attn_implementation(ringattn.hf.NAME)
    torch.testing.assert_close(model(IDS).logits, expected)


def test_parallelize_twice_and_restore() -> None:
    model = build("llama").eval()
    expected = model(IDS, labels=IDS)
    for layout in ("zigzag", "striped"):
        assert ringattn.hf.parallelize(model, SingleRank(), layout=layout) is model
        output = model(IDS, labels=IDS)
        torch.testing.assert_close(output.loss, expected.loss)
        torch.testing.assert_close(ringattn.hf.unshard(model, output.logits), expected.logits)
    assert len(model._forward_pre_hooks) == 1
    for _ in range(2):
        ringattn.hf.restore(model)
        assert not model._forward_pre_hooks and not model._forward_hooks
        torch.testing.assert_close(model(IDS, labels=IDS).loss, expected.loss)
    with pytest.raises(ValueError, match="has not run since"):
        ringattn.hf.unshard(model, expected.logits)


def test_nothing_but_the_model_changes() -> None:
    """Per model, never global: another model of the same class goes on as it was, and a saved config says nothing."""
    one, other = build("llama"), build("llama")
    expected = other(IDS).logits
    ringattn.hf.parallelize(one, SingleRank())
    torch.testing.assert_close(other(IDS).logits, expected)
    assert ringattn.hf.NAME not in one.config.to_json_string()


def test_models_that_share_a_config() -> None:
    """As a policy and the model that it is compared with do."""
    config = build("gemma2").config
    one, other = (AutoModelForCausalLM.from_config(config, attn_implementation="eager") for _ in range(2))
    wrapped = torch.nn.ModuleDict({"model": one})
    expected = other(IDS).logits
    ringattn.hf.parallelize(wrapped, SingleRank())
    torch.testing.assert_close(other(IDS).logits, expected)
    assert other.config is config and config._attn_implementation == "eager"
    own = {id(module.config) for module in one.modules() if "config" in vars(module)}
    assert own == {id(one.config)} and one.config is not config
    ringattn.hf.parallelize(one, SingleRank(), layout="striped")
    assert own == {id(one.config)}, "one copy is enough"
    with pytest.raises(UnsupportedError, match="made from the config of a parallelized one"):
        type(one)(one.config)(IDS)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rotary_embeddings_that_depend_on_the_length(kind: str) -> None:
    """8 tokens are the border; on two ranks the shorter side of a text may still be below it."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4} if kind == "longrope" else {"factor": 2.0}
    scaling = {"rope_type": kind, "rope_theta": 1e4, "original_max_position_embeddings": 8, **factors}
    name = "rope_parameters" if version("transformers") >= "5" else "rope_scaling"
    config = AutoConfig.for_model("llama", **(COMMON | {name: scaling, "max_position_embeddings": 32}))
    cp = ringattn.ContextParallel(Mute(0, 2), "contiguous")
    packed = torch.cat([torch.arange(length) for length in (10, 3, 3, 3, 3, 2)])[None]
    for layout, fits in (("balanced", False), ("striped", kind == "longrope")):  # a rank has short texts only
        batch = divide(ringattn.ContextParallel(Mute(0, 2), layout), [(0, 10, 13, 16, 19, 22, 24)], 24, 24)
        with nullcontext() if fits else pytest.raises(UnsupportedError, match="for packed texts 'zigzag' may do"):
            rope.check(config, batch, packed)
    for tokens, agreed in ((8, True), (12, False), (24, kind == "longrope")):
        batch = divide(cp, [(0, tokens)], tokens, tokens)
        positions = torch.arange(tokens)[None]
        for given in (None, positions):
            if agreed:
                rope.check(config, batch, given)
            else:
                with pytest.raises(UnsupportedError, match=f"{kind!r} change with the longest.*layout='striped'"):
                    rope.check(config, batch, given)


def test_layers_that_lose_the_plan() -> None:
    """What takes the plan and does not pass it on gets help; what takes none is seen, or says it when it runs."""
    layer: Any = type(build("llama").model.layers[0])

    class Keeping(layer):
        def forward(self, hidden_states: torch.Tensor, position_embeddings: Any = None, **kwargs: Any) -> Any:
            return super().forward(hidden_states, position_embeddings=position_embeddings)

    class Lossy(layer):
        def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> Any:
            return super().forward(hidden_states, position_embeddings=kwargs["position_embeddings"])

    class Blind(layer):
        def forward(self, hidden_states: torch.Tensor, attention_mask: Any = None, position_ids: Any = None) -> Any:
            return super().forward(hidden_states, attention_mask, position_ids)

    model = build("llama").eval()
    expected = model(IDS).logits
    model.model.layers[1].__class__ = Keeping
    for each in (model, copy.deepcopy(ringattn.hf.parallelize(model, SingleRank()))):
        torch.testing.assert_close(each(IDS).logits, expected)
    ringattn.hf.restore(model)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    model.model.layers[1].__class__ = Blind
    with pytest.raises(UnsupportedError, match=r"its Blind does not pass \*\*kwargs on"):
        ringattn.hf.parallelize(model, SingleRank())
    model.model.layers[1].__class__ = Lossy
    with pytest.raises(UnsupportedError, match="a layer between the model and its attention does not pass"):
        ringattn.hf.parallelize(model, SingleRank())(IDS)
