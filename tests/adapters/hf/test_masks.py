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
from transformers.models.gemma3 import modeling_gemma3

import ringattn.hf
from adapters.hf.compare import relative, tokens
from adapters.hf.models import COMMON
from ringattn import UnsupportedError
from ringattn.hf.mask_patterns import Band, Blocks, Pattern, Row, blocks
from ringattn.hf.masks import mask, pattern
from ringattn_comms.backends.threads import run
from ringattn_comms.communicator import Communicator

and_masks, or_masks = masking_utils.and_masks, masking_utils.or_masks
CAUSAL = masking_utils.causal_mask_function
WINDOW = masking_utils.sliding_window_causal_mask_function(5)
PACKED = masking_utils.packed_sequence_mask_function(torch.zeros(1, 20))
PADDED = masking_utils.padding_mask_function(torch.ones(1, 20, dtype=torch.bool))


def from_newer(name: str, *arguments: Any) -> list[Callable[..., Any]]:
    """A function of the library, or what it makes of arguments, where this version of transformers has it."""
    make = vars(masking_utils).get(name)
    return [make(*arguments) if arguments else make] if make else []


FULL = from_newer("bidirectional_mask_function")
IDS = torch.tensor([[-1, 0, 0, 0, -1, 1, 1, -1, -1, 2, 2, 2, -1, -1, 3, -1, -1, 0, 0, -1]])
LENGTH = IDS.shape[1]


def two_way_window(size: int) -> Callable[..., Any]:
    """Gemma 3's, whose sides are one token shorter than those of the library."""
    return vars(modeling_gemma3)["_bidirectional_window_overlay"](size)


BANDS = [
    (CAUSAL, (-1, 0)),
    (WINDOW, (4, 0)),
    (and_masks(CAUSAL, PACKED, PADDED), (-1, 0)),
    (and_masks(masking_utils.add_offsets_to_mask_function(WINDOW, 3, 3), PADDED), (4, 0)),
    (and_masks(WINDOW, masking_utils.sliding_window_overlay(3)), (2, 0)),
    (or_masks(CAUSAL, WINDOW), (-1, 0)),
    (or_masks(WINDOW, two_way_window(5)), (4, 4)),
    (or_masks(CAUSAL, two_way_window(5)), (-1, 4)),
    *((function, (-1, -1)) for function in FULL),
    *((each, (5, 5)) for each in from_newer("sliding_window_bidirectional_mask_function", 5)),
    *((each, (4, 0)) for each in from_newer("packed_sequence_compatibility_function", WINDOW, None, None)),
    *((or_masks(WINDOW, each), (4, 0)) for each in from_newer("blockwise_overlay", torch.full((1, 3), -1))),
]
BLOCKS = from_newer("blockwise_overlay", IDS)
BEYOND_BANDS = [
    masking_utils.chunked_causal_mask_function(6, torch.zeros(1, dtype=torch.int64)),
    *(or_masks(CAUSAL, each) for each in BLOCKS),
    *(or_masks(WINDOW, each) for each in BLOCKS),
    *(and_masks(or_masks(CAUSAL, each), masking_utils.sliding_window_overlay(2)) for each in BLOCKS),
    *(and_masks(or_masks(CAUSAL, each), PADDED, masking_utils.sliding_window_overlay(9)) for each in BLOCKS),
]
REFUSED = [
    (or_masks(CAUSAL, lambda *_: torch.tensor(True)), "<lambda>: nothing is known here of what it does"),
    (and_masks(CAUSAL, torch.nn.Identity()), "Identity: nothing is known"),
]


def cells(function: Callable[..., Any]) -> Tensor:
    """What transformers makes of a function, (queries, keys)."""
    places = torch.arange(LENGTH)
    live: Tensor = function(torch.tensor(0), torch.tensor(0), places[:, None], places[None])
    return live.expand(LENGTH, LENGTH)


def dense(asked: Pattern, row: Row) -> Tensor:
    return torch.tensor([list(line) for line in asked.mask(row).dense()]).bool()


@pytest.mark.parametrize(("function", "expected"), BANDS)
def test_bands(function: Callable[..., Any], expected: tuple[int, int]) -> None:
    assert pattern(function) == Band(expected)
    assert mask(mask_function=function, batch_size=1).window == expected


@pytest.mark.parametrize("function", BEYOND_BANDS)
def test_more_than_a_band(function: Callable[..., Any]) -> None:
    """A row of one sequence is what transformers computes; of several each is as if the others were not there."""
    asked, whole = pattern(function), Row(0, (LENGTH,), (0,))
    assert dense(asked, whole).equal(cells(function)) and mask(mask_function=function).window is None
    first, second = 11, LENGTH - 11
    found = dense(asked, Row(0, (first, second), (0, 0)))
    assert not found[:first, first:].any() and not found[first:, :first].any()
    assert found[:first, :first].equal(cells(function)[:first, :first])
    if not list(blocks(asked)):
        assert found[first:, first:].equal(cells(function)[:second, :second])
        # Its first token is at position 4.
        assert dense(asked, Row(0, (first, second), (0, 4)))[first:, first:].equal(cells(function)[4:13, 4:13])
    else:
        assert found[first:, first:].equal(cells(function)[first:, first:])


@pytest.mark.parametrize(("function", "message"), REFUSED)
def test_what_is_not_known(function: Callable[..., Any], message: str) -> None:
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
            pattern(made)
        except UnsupportedError as error:
            assert "legacy" in name, error


def test_a_block_in_many_pieces() -> None:
    ids = torch.arange(200)[None] % 2 - 1
    with pytest.raises(UnsupportedError, match="in 100 pieces, which takes 10,000 tiles, more than 4,096"):
        Blocks(ids).mask(Row(0, (200,), (0,)))


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
    "gemma3_text": (
        AutoModelForCausalLM,
        {"use_bidirectional_attention": True, "layer_types": ["sliding_attention", "full_attention"], "head_dim": 8}
        | {"sliding_window": 8, "query_pre_attn_scalar": 8},
    ),
    "gemma4_text": (
        AutoModelForCausalLM,
        {"use_bidirectional_attention": "all", "layer_types": ["sliding_attention", "full_attention"], "head_dim": 8}
        | {"sliding_window": 8, "global_head_dim": 8, "num_kv_shared_layers": 0, "vocab_size_per_layer_input": 64}
        | {"hidden_size_per_layer_input": 8},
    ),
    "modernbert": (AutoModel, {"local_attention": 8, "global_attn_every_n_layers": 2, "global_rope_theta": 1e4}),
    "bert": (AutoModel, {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}),
}


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str) -> None:
    kind, settings = MODELS[name]
    if version("transformers") < "5" and name not in ("llama", "gemma3_text"):
        pytest.skip("before transformers 5 its attention is code of its own")
    alone, x = model(name, kind, **settings), tokens()
    expected = alone(x)[0]

    def main(comm: Communicator) -> Tensor:
        sharded = ringattn.hf.parallelize(copy.deepcopy(alone), comm)
        whole: Tensor = ringattn.hf.unshard(sharded, sharded(x)[0])
        return whole

    assert max(relative(each, expected) for each in run(2, main)) < 1e-5


def test_a_prefix() -> None:
    """Its tokens see each other in both directions, in each document for itself; tokens that follow on it do not."""
    if "hrm_text" not in CONFIG_MAPPING:
        pytest.skip("this version of transformers does not know hrm_text")
    alone, x = model("hrm_text", head_dim=8, num_hidden_layers=4, prefix_lm=True).double(), tokens()
    kinds = torch.zeros_like(x)
    kinds[0, :12], kinds[1, :17] = 1, 1
    length, how = x.shape[1], {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    with torch.no_grad():
        causal, expected = alone(x).logits, alone(x, token_type_ids=kinds).logits
        generated = alone.generate(x, token_type_ids=kinds, **how)
    assert relative(causal, expected) > 1e-2

    def main(comm: Communicator) -> None:
        sharded = ringattn.hf.parallelize(copy.deepcopy(alone), comm)

        def logits(ids: Tensor, **given: Tensor) -> Tensor:
            return ringattn.hf.unshard(sharded, sharded(ids, **given).logits)

        with torch.no_grad():
            for given in ({}, {"token_type_ids": torch.zeros_like(x)}):
                assert relative(logits(x, **given), causal) < 1e-5
            assert relative(logits(x, token_type_ids=kinds), expected) < 1e-5
            packed = {"token_type_ids": kinds.view(1, -1), "position_ids": torch.arange(length).repeat(2)[None]}
            assert relative(logits(x.view(1, -1), **packed).view(expected.shape), expected) < 1e-5
        assert sharded.generate(x, token_type_ids=kinds, **how).equal(generated)

    run(2, main)
