"""A mask that a model asks transformers for is computed or refused, and never dropped."""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel, masking_utils

import ringattn.hf
from adapters.hf.compare import relative, tokens
from adapters.hf.models import COMMON
from ringattn import UnsupportedError
from ringattn.hf.masks import band, mask
from ringattn_comms.backends.threads import run
from ringattn_comms.communicator import Communicator, SingleRank

and_masks, or_masks = masking_utils.and_masks, masking_utils.or_masks
CAUSAL = masking_utils.causal_mask_function
WINDOW = masking_utils.sliding_window_causal_mask_function(5)
PACKED = masking_utils.packed_sequence_mask_function(torch.tensor([[0, 0, 1]]))
PADDED = masking_utils.padding_mask_function(torch.ones(1, 3, dtype=torch.bool))


def from_newer(name: str, *arguments: Any) -> list[Callable[..., Any]]:
    """What a function of the library makes, where this version of transformers has it."""
    make = vars(masking_utils).get(name)
    return [make(*arguments)] if make else []


TWO_WAY = [vars(masking_utils)[name] for name in ("bidirectional_mask_function",) if name in vars(masking_utils)]
BANDS = [
    (CAUSAL, (-1, 0)),
    (WINDOW, (4, 0)),
    (and_masks(CAUSAL, PACKED, PADDED), (-1, 0)),
    (and_masks(masking_utils.add_offsets_to_mask_function(WINDOW, 3, 3), PADDED), (4, 0)),
    (and_masks(WINDOW, masking_utils.sliding_window_overlay(3)), (2, 0)),
    *((function, (-1, -1)) for function in TWO_WAY),
    *((each, (5, 5)) for each in from_newer("sliding_window_bidirectional_mask_function", 5)),
    *((each, (4, 0)) for each in from_newer("packed_sequence_compatibility_function", WINDOW, None, None)),
    *((or_masks(WINDOW, each), (4, 0)) for each in from_newer("blockwise_overlay", torch.full((1, 3), -1))),
]
REFUSED = [
    (masking_utils.chunked_causal_mask_function(4, torch.zeros(1)), "chunked_overlay: where its chunks end"),
    (or_masks(CAUSAL, WINDOW), "sliding_window_causal_mask_function|and_masks: nothing is known"),
    (or_masks(CAUSAL, lambda *_: torch.tensor(True)), "<lambda>: nothing is known here of what it does"),
    (and_masks(CAUSAL, torch.nn.Identity()), "Identity: nothing is known"),
    *(
        (or_masks(WINDOW, each), "blockwise_overlay: its blocks see each other in both directions")
        for each in from_newer("blockwise_overlay", torch.tensor([[-1, 0, 0]]))
    ),
]


@pytest.mark.parametrize(("function", "expected"), BANDS)
def test_bands(function: Callable[..., Any], expected: tuple[int, int]) -> None:
    assert band(function) == expected
    assert mask(mask_function=function, batch_size=1).window == expected


@pytest.mark.parametrize(("function", "message"), REFUSED)
def test_more_than_a_band(function: Callable[..., Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=f"asks for the mask function .*({message})"):
        mask(mask_function=function)


def test_every_function_of_the_library_has_an_answer() -> None:
    """A function that a new version of transformers brings is refused until something is known of it."""
    overlays = [name for name in vars(masking_utils) if name.endswith(("_overlay", "_mask_function"))]
    assert len(overlays) >= 6
    for name in overlays:
        function = vars(masking_utils)[name]
        arguments = {"sliding_window": 4, "chunk_size": 4} | dict.fromkeys(
            ("left_padding", "packed_sequence_mask", "padding_mask"), torch.zeros(1, 3)
        )
        arguments |= {"block_sequence_ids": torch.zeros(1, 3), "mask_function": CAUSAL, "q_offset": 0, "kv_offset": 0}
        needed = function.__code__.co_varnames[: function.__code__.co_argcount]
        made = function if "q_idx" in needed else function(**{each: arguments[each] for each in needed})
        try:
            band(made)
        except UnsupportedError as error:
            assert "chunk" in name or "block" in name, error


def model(name: str, kind: Any = AutoModelForCausalLM, **settings: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **(COMMON | settings))
    made: PreTrainedModel = kind.from_config(config, attn_implementation="eager").eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3) if parameter.dim() > 1 else None
    return made


_EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_WINDOWS = {"layer_types": ["sliding_attention"] * 2, "sliding_window": 5, "use_sliding_window": True}
MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    # These ask for windows as masks alone: their layers do not tell the attention function.
    "qwen2_moe": (AutoModelForCausalLM, _EXPERTS | _WINDOWS | {"shared_expert_intermediate_size": 16}),
    "phimoe": (AutoModelForCausalLM, {"sliding_window": 5, "num_local_experts": 4}),
    # Decoders that see both ways by their configuration, and encoders.
    "llama": (AutoModelForCausalLM, {"is_causal": False}),
    "modernbert": (AutoModel, {"local_attention": 8, "global_attn_every_n_layers": 2, "global_rope_theta": 1e4}),
    "bert": (AutoModel, {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}),
}


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str) -> None:
    kind, settings = MODELS[name]
    if version("transformers") < "5" and name != "llama":
        pytest.skip("before transformers 5 its attention is code of its own")
    alone, x = model(name, kind, **settings), tokens()
    expected = alone(x)[0]

    def main(comm: Communicator) -> Tensor:
        sharded = ringattn.hf.parallelize(copy.deepcopy(alone), comm)
        whole: Tensor = ringattn.hf.unshard(sharded, sharded(x)[0])
        return whole

    assert max(relative(each, expected) for each in run(2, main)) < 1e-5


def test_a_prefix() -> None:
    """Its tokens see each other in both directions; without one the same model is causal."""
    if "hrm_text" not in CONFIG_MAPPING:
        pytest.skip("this version of transformers does not know hrm_text")
    alone = model("hrm_text", head_dim=8, num_hidden_layers=4, prefix_lm=True).double()
    expected, sharded = alone(tokens()).logits, ringattn.hf.parallelize(copy.deepcopy(alone), SingleRank())
    kinds = torch.zeros_like(tokens())
    for given in ({}, {"token_type_ids": kinds}):
        assert relative(ringattn.hf.unshard(sharded, sharded(tokens(), **given).logits), expected) < 1e-5
    kinds[:, :20] = 1
    with pytest.raises(UnsupportedError, match="asks for the mask function blockwise_overlay: its blocks see each"):
        sharded(tokens(), token_type_ids=kinds)
