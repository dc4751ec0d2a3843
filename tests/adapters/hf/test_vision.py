"""Vision-language models: their text tower is sharded, and loss, gradients and tokens are those of one process."""

from __future__ import annotations

import copy
import multiprocessing
from importlib.metadata import version
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

import processes
import ringattn.hf
from adapters.hf import compare
from adapters.hf.models import COMMON, WINDOW
from ringattn import UnsupportedError
from ringattn_comms.communicator import Solo

multiprocessing.get_context("forkserver").set_forkserver_preload(["torch", "adapters.hf.models", "ringattn.hf"])

IMAGE, START, END = 60, 61, 62
_TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
_CLIP = {"model_type": "clip_vision_model", **_TOWER, "image_size": 8, "patch_size": 4}
_SIGLIP = {"model_type": "siglip_vision_model", **_TOWER, "image_size": 8, "patch_size": 4}
_QWEN = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32, "patch_size": 4}
_MROPE = {"rope_type": "default", "type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
_TEXT = COMMON | {"model_type": "llama"}

MODELS: dict[str, dict[str, Any]] = {
    "llava": {"vision_config": _CLIP, "text_config": _TEXT, "image_token_index": IMAGE, "image_seq_length": 4},
    "qwen2_5_vl": {
        "vision_config": _QWEN | {"window_size": 16, "fullatt_block_indexes": [1], "spatial_merge_size": 2},
        "text_config": COMMON | {"rope_scaling": _MROPE, "rope_parameters": _MROPE},
        "image_token_id": IMAGE,
        "vision_start_token_id": START,
        "vision_end_token_id": END,
    },
    "gemma3": {
        "vision_config": _SIGLIP,
        "text_config": COMMON
        | {"head_dim": 8, "query_pre_attn_scalar": 8, "layer_types": ["sliding_attention", "full_attention"]}
        | {"sliding_window": WINDOW},
        "mm_tokens_per_image": 4,
        "image_token_index": IMAGE,
    },
}


def build(name: str) -> PreTrainedModel:
    """A tiny model with random weights, all of them large enough to matter."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **copy.deepcopy(MODELS[name]))
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="eager")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3) if parameter.dim() > 1 else torch.nn.init.normal_(parameter, 1.0, 0.3)
    return model.eval()


def prompt(name: str) -> dict[str, Tensor]:
    """Two rows with an image each, at different places: its tokens lie on several ranks."""
    ids = torch.randint(3, IMAGE, (2, 19), generator=torch.Generator().manual_seed(0))
    pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    places = torch.zeros_like(ids)
    for row, first in enumerate((3, 9)):
        ids[row, first - 1], ids[row, first + 4] = START, END
        places[row, first : first + 4] = 1
    ids[places == 1] = IMAGE
    if name == "llava":
        return {"input_ids": ids, "pixel_values": pixels}
    # 4 x 4 patches of 2 frames of 3 colours; four of them make a token.
    patches = torch.randn(2 * 16, 2 * 3 * 4 * 4, generator=torch.Generator().manual_seed(1))
    grid = torch.tensor([[1, 4, 4]] * 2)
    inputs = {"input_ids": ids, "pixel_values": patches, "image_grid_thw": grid}
    # Before version 5 transformers finds the places of images by itself.
    return inputs if version("transformers") < "5" else inputs | {"mm_token_type_ids": places}


def labelled(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return inputs | {"labels": inputs["input_ids"].masked_fill(inputs["input_ids"] >= IMAGE, -100)}


@pytest.mark.parametrize("size", [2, 4])
def test_images(size: int) -> None:
    for found in processes.run(size, images, timeout=180):
        wrong = {name: errors for name, errors in found.items() if max(errors.values()) > 1e-5}
        assert found and not wrong


def images() -> dict[str, compare.Errors]:
    found = {}
    for name in ("llava", "qwen2_5_vl"):
        inputs = labelled(prompt(name))
        found[name] = compare.errors(build(name), inputs)
        mask = torch.ones_like(inputs["input_ids"])
        mask[1, 15:] = 0
        labels = inputs["labels"].masked_fill(mask == 0, -100)
        padded = inputs | {"attention_mask": mask, "labels": labels}
        found[f"{name} padded"] = compare.errors(build(name), padded, real=mask.bool())
        ids = inputs["input_ids"].clamp(max=IMAGE - 1)
        found[f"{name} without images"] = compare.errors(build(name), {"input_ids": ids, "labels": ids})
    return found


@pytest.mark.parametrize("size", [2])
def test_generation(size: int) -> None:
    for found in processes.run(size, generation, timeout=180):
        assert found == {"llava": True, "qwen2_5_vl": True}


def generation() -> dict[str, bool]:
    """The tokens that follow on images are those of one process."""
    found = {}
    for name in ("llava", "qwen2_5_vl"):
        model, how = build(name), {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
        expected = model.generate(**prompt(name), **how)
        sharded = ringattn.hf.parallelize(copy.deepcopy(model))
        cache = ringattn.hf.ShardedCache()
        found[name] = torch.equal(sharded.generate(**prompt(name), past_key_values=cache, **how), expected)
    return found


def test_the_vision_tower_stays_as_it_is() -> None:
    model = build("llava")
    expected = model(**labelled(prompt("llava")))
    ringattn.hf.parallelize(model, Solo())
    assert model.config.text_config._attn_implementation == ringattn.hf.NAME
    assert model.config.vision_config._attn_implementation == model.config._attn_implementation == "eager"
    torch.testing.assert_close(model(**labelled(prompt("llava"))).loss, expected.loss)
    ringattn.hf.restore(model, "eager")
    assert model.config.text_config._attn_implementation == "eager"
    assert not any(module._forward_pre_hooks for module in model.modules())
    torch.testing.assert_close(model(**labelled(prompt("llava"))).loss, expected.loss)


def test_images_that_see_both_ways() -> None:
    """Gemma 3 takes text; an image would need a mask that is no band."""
    ids = compare.tokens(2, 17)
    model = build("gemma3")
    if version("transformers") < "5":
        with pytest.raises(UnsupportedError, match="computes its loss in its own code"):
            ringattn.hf.parallelize(model, Solo())
        return
    expected = model(input_ids=ids, labels=ids).loss
    ringattn.hf.parallelize(model, Solo())
    torch.testing.assert_close(model(input_ids=ids, labels=ids).loss, expected)
    for image in ({"pixel_values": torch.zeros(1, 3, 8, 8)}, {"token_type_ids": torch.ones_like(ids)}):
        with pytest.raises(UnsupportedError, match="got an image, whose tokens see each other in both directions"):
            model(input_ids=ids, **image)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("mllama", "'mllama'.*cross attention to images"),
        ("phi4_multimodal", "'phi4_multimodal'.*lays images and sounds into the sequence itself"),
        ("paligemma", "'paligemma'.*a prefix"),
        ("qwen3_vl", "'qwen3_vl'.*added to tokens within its decoder"),
        ("idefics3", "'idefics3'.*nothing is known.*parallelize the decoder alone"),
    ],
)
def test_other_families(name: str, reason: str) -> None:
    model = build("llava")
    model.config.model_type = name  # which is all that is asked for
    with pytest.raises(UnsupportedError, match=f"cannot run on a sharded sequence: .*{reason}"):
        ringattn.hf.parallelize(model, Solo())
