"""Vision-language models: their text tower is sharded, and loss, gradients and tokens are those of one process."""

from __future__ import annotations

import copy
from importlib.metadata import version
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

import processes
import ringattn.hf
from adapters.comms import Mute
from adapters.hf import compare
from adapters.hf.models import COMMON, WINDOW
from ringattn import UnsupportedError
from ringattn.hf import towers
from ringattn.hf.batch import KEYWORD, divide
from ringattn.hf.cache import ARGUMENT
from ringattn_comms.communicator import SingleRank

IMAGE, START, END = 60, 61, 62
_TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
_CLIP = {"model_type": "clip_vision_model", **_TOWER, "image_size": 8, "patch_size": 4}
_SIGLIP = {"model_type": "siglip_vision_model", **_TOWER, "image_size": 8, "patch_size": 4}
_QWEN = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32, "patch_size": 4}
_MROPE = {"rope_type": "default", "type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
_TEXT = COMMON | {"model_type": "llama"}
_PIXTRAL = {"model_type": "pixtral", **_TOWER, "image_size": 16, "patch_size": 4}
_INTERN = _TOWER | {"image_size": [16, 16], "patch_size": [4, 4]}
_TOKENS = {"image_token_id": IMAGE, "vision_start_token_id": START, "vision_end_token_id": END}

MODELS: dict[str, dict[str, Any]] = {
    "llava": {"vision_config": _CLIP, "text_config": _TEXT, "image_token_index": IMAGE, "image_seq_length": 4},
    "qwen2_5_vl": {
        "vision_config": _QWEN | {"window_size": 16, "fullatt_block_indexes": [1], "spatial_merge_size": 2},
        "text_config": COMMON | {"rope_scaling": _MROPE, "rope_parameters": _MROPE},
        **_TOKENS,
    },
    "gemma3": {
        "vision_config": _SIGLIP | {"image_size": 16},
        "text_config": COMMON
        | {"head_dim": 8, "query_pre_attn_scalar": 8, "layer_types": ["sliding_attention", "full_attention"]}
        | {"sliding_window": WINDOW},
        "mm_tokens_per_image": 16,
        "image_token_index": IMAGE,
    },
}
_PREFIX = {"vision_config": _SIGLIP | {"projection_dim": 32}, "projection_dim": 32, "image_token_index": IMAGE}
# Before version 5 transformers computes the loss of some of these in their own code.
NEWER: dict[str, dict[str, Any]] = {
    "internvl": {"vision_config": _INTERN, "text_config": COMMON | {"model_type": "qwen2"}, "image_token_id": IMAGE},
    "mistral3": {
        "vision_config": _PIXTRAL,
        "text_config": COMMON | {"model_type": "mistral", "sliding_window": WINDOW},
        "image_token_index": IMAGE,
    },
    "qwen2_vl": {
        "vision_config": _QWEN | {"embed_dim": 32, "mlp_ratio": 2},
        "text_config": COMMON | {"rope_parameters": _MROPE},
        **_TOKENS,
    },
    # Features of images are added to tokens within its decoder.
    "qwen3_vl": {
        "vision_config": _QWEN | {"num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]},
        "text_config": COMMON | {"head_dim": 8, "rope_parameters": _MROPE},
        **_TOKENS,
    },
    # The prompt sees both ways: beyond the windows of PaliGemma 2, whose images do.
    "paligemma": _PREFIX | {"text_config": COMMON | {"model_type": "gemma", "head_dim": 8}},
    "paligemma 2": _PREFIX
    | {
        "text_config": COMMON
        | {"model_type": "gemma2", "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": WINDOW}
        | {"layer_types": ["sliding_attention", "full_attention"]}
    },
    # Embeddings for each layer, and layers that share keys.
    "gemma4": {
        "vision_config": _TOWER
        | {"num_key_value_heads": 2, "head_dim": 16, "patch_size": 4}
        | {"pooling_kernel_size": 2, "position_embedding_size": 8},
        "audio_config": None,
        "text_config": COMMON
        | {"layer_types": ["sliding_attention", "full_attention"] * 2, "num_hidden_layers": 4, "head_dim": 8}
        | {"global_head_dim": 8, "num_kv_shared_layers": 2, "vocab_size_per_layer_input": 64}
        | {"hidden_size_per_layer_input": 8, "sliding_window": WINDOW, "use_bidirectional_attention": "vision"},
        "image_token_id": IMAGE,
    },
}
WITH_IMAGES = ["llava", "qwen2_5_vl"]
if version("transformers") >= "5":
    MODELS |= NEWER
    WITH_IMAGES += ["internvl", "mistral3", "qwen2_vl", "qwen3_vl", "gemma3", "gemma4", "paligemma", "paligemma 2"]


def build(name: str) -> PreTrainedModel:
    """A tiny model with random weights, all of them large enough to matter."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(name.split(maxsplit=1)[0], **copy.deepcopy(MODELS[name]))
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="eager")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3) if parameter.dim() > 1 else torch.nn.init.normal_(parameter, 1.0, 0.3)
    return model.eval()


def prompt(name: str) -> dict[str, Tensor]:
    """Two rows with an image each, at different places: its tokens lie on several ranks."""
    size = 16 if name in ("gemma3", "gemma4") else 4  # more than a window
    ids = torch.randint(3, IMAGE, (2, 15 + size), generator=torch.Generator().manual_seed(0))
    pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    places = torch.zeros_like(ids)
    for row, first in enumerate((3, 9)):
        ids[row, first - 1], ids[row, first + size] = START, END
        places[row, first : first + size] = 1
    ids[places == 1] = IMAGE
    if name == "llava":
        return {"input_ids": ids, "pixel_values": pixels}
    if name.startswith("paligemma"):
        return {"input_ids": ids, "pixel_values": pixels, "token_type_ids": answers((12, 17), ids)}
    if name == "gemma4":
        patches = torch.rand(2, 64, 3 * 4 * 4, generator=torch.Generator().manual_seed(1))
        at = torch.cartesian_prod(torch.arange(8), torch.arange(8)).expand(2, -1, -1)
        return {"input_ids": ids, "pixel_values": patches, "image_position_ids": at, "mm_token_type_ids": places}
    if name in ("internvl", "mistral3", "gemma3"):
        pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
        sizes = {"image_sizes": torch.tensor([[16, 16]] * 2)} if name == "mistral3" else {}
        kinds = {"token_type_ids": places} if name == "gemma3" else {}
        return {"input_ids": ids, "pixel_values": pixels, **sizes, **kinds}
    # 4 x 4 patches of 2 frames of 3 colours; four of them make a token.
    patches = torch.randn(2 * 16, 2 * 3 * 4 * 4, generator=torch.Generator().manual_seed(1))
    grid = torch.tensor([[1, 4, 4]] * 2)
    inputs = {"input_ids": ids, "pixel_values": patches, "image_grid_thw": grid}
    # Before version 5 transformers finds the places of images by itself.
    return inputs if version("transformers") < "5" else inputs | {"mm_token_type_ids": places}


def answers(prefixes: tuple[int, ...], ids: Tensor) -> Tensor:
    """1 at the tokens of each row behind so many of its prefix, whose tokens see each other."""
    kinds = torch.zeros_like(ids)
    for row, prefix in enumerate(prefixes):
        kinds[row, prefix:] = 1
    return kinds


def labelled(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return inputs | {"labels": inputs["input_ids"].masked_fill(inputs["input_ids"] >= IMAGE, -100)}


@pytest.mark.parametrize("size", [2, 4])
def test_images(size: int) -> None:
    for found in processes.run(size, images, timeout=180):
        wrong = {name: errors for name, errors in found.items() if max(errors.values()) > 3e-5}
        assert found and not wrong


def images() -> dict[str, compare.Errors]:
    found = {}
    for name in WITH_IMAGES:
        inputs = labelled(prompt(name))
        found[name] = compare.errors(build(name), inputs)
        mask = torch.ones_like(inputs["input_ids"])
        mask[1, -4:] = 0
        labels = inputs["labels"].masked_fill(mask == 0, -100)
        padded = inputs | {"attention_mask": mask, "labels": labels}
        found[f"{name} padded"] = compare.errors(build(name), padded, real=mask.bool())
        ids = inputs["input_ids"].clamp(max=IMAGE - 1)
        text = {"input_ids": ids, "labels": ids}
        if name.startswith("paligemma"):
            text["token_type_ids"] = inputs["token_type_ids"]
        found[f"{name} without images"] = compare.errors(build(name), text)
        if "gemma" in name:
            found[f"{name} padded left"], found[f"{name} packed"] = padded_left(name), packed(name)
    return found


def padded_left(name: str) -> compare.Errors:
    """Padding of a prefix, which says of itself that it is one, is none."""
    inputs = {key: x.roll(3, dims=1) if x.dim() == 2 else x for key, x in prompt(name).items()}
    assert (inputs["input_ids"][:, :3] < IMAGE).all(), "no image is parted"
    mask = torch.ones_like(inputs["input_ids"])
    mask[:, :3] = 0
    inputs["input_ids"] = inputs["input_ids"].masked_fill(mask == 0, 0)
    labels = labelled(inputs)["labels"].masked_fill(mask == 0, -100)
    labels[:, 3] = -100  # what padding predicts is for each implementation another
    if name.startswith("paligemma"):
        inputs["token_type_ids"][:, :3] = 0
    return compare.errors(build(name), inputs | {"attention_mask": mask, "labels": labels}, real=mask.bool())


def packed(name: str) -> compare.Errors:
    """Two documents in one row, beside the same as two rows: transformers would mix up their images."""
    alone = labelled(prompt(name))
    row = {key: x.flatten()[None] if x.dim() == 2 else x for key, x in alone.items()}
    length = alone["input_ids"].shape[1]
    row["labels"][0, length] = -100
    first = 1 if name.startswith("paligemma") else 0
    row["position_ids"] = (torch.arange(length).repeat(2) + first)[None]
    return compare.errors(build(name), row, alone)


@pytest.mark.parametrize("size", [2])
def test_generation(size: int) -> None:
    for found in processes.run(size, generation, timeout=180):
        assert found and all(found.values()), found


def generation() -> dict[str, bool]:
    """The tokens that follow on images are those of one process."""
    found = {}
    prompts = {name: prompt(name) for name in WITH_IMAGES}
    for name, given in prompts.items():
        model, how = build(name), {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
        expected = model.generate(**given, **how)
        sharded = ringattn.hf.parallelize(copy.deepcopy(model))
        cache = {ARGUMENT: ringattn.hf.ShardedCache()}
        found[name] = torch.equal(sharded.generate(**given, **cache, **how), expected)
    return found


def test_the_vision_tower_stays_as_it_is() -> None:
    model = build("llava")
    expected = model(**labelled(prompt("llava")))
    ringattn.hf.parallelize(model, SingleRank())
    assert model.config.text_config._attn_implementation == ringattn.hf.NAME
    assert model.config.vision_config._attn_implementation == model.config._attn_implementation == "eager"
    torch.testing.assert_close(model(**labelled(prompt("llava"))).loss, expected.loss)
    ringattn.hf.restore(model, "eager")
    assert model.config.text_config._attn_implementation == "eager"
    assert not any(module._forward_pre_hooks for module in model.modules())
    torch.testing.assert_close(model(**labelled(prompt("llava"))).loss, expected.loss)


def test_images_that_see_both_ways() -> None:
    """Those of Gemma 3 do in the first call alone: a later one with such tokens is refused."""
    model, inputs = build("gemma3"), prompt("gemma3")
    if version("transformers") < "5":
        with pytest.raises(UnsupportedError, match="computes its loss without its loss function"):
            ringattn.hf.parallelize(model, SingleRank())
        return
    ringattn.hf.parallelize(model, SingleRank())
    cache = ringattn.hf.ShardedCache(SingleRank())
    text = {"input_ids": inputs["input_ids"][:, -4:], "token_type_ids": torch.zeros(2, 4, dtype=torch.int64)}
    with torch.no_grad():
        for given in (inputs, text):
            model(**given, **{ARGUMENT: cache})
        text["token_type_ids"][1, 2:] = 1
        with pytest.raises(UnsupportedError, match="reads on from a ShardedCache with tokens that see each other"):
            model(**text, **{ARGUMENT: cache})


@pytest.mark.parametrize(
    ("name", "reason"),
    [("mllama", "'mllama'.*cross attention to images")],
)
def test_other_families(name: str, reason: str) -> None:
    model = build("llava")
    model.config.model_type = name  # which is all that is asked for
    with pytest.raises(UnsupportedError, match=f"cannot run on a sharded sequence: .*{reason}"):
        ringattn.hf.parallelize(model, SingleRank())


@pytest.mark.parametrize(
    ("name", "reason"),
    [("phi4_multimodal", "puts images and sounds into the sequence"), ("idefics3", "not known here.*Supported with")],
)
def test_families_that_get_text_alone(name: str, reason: str) -> None:
    model, inputs = build("llava"), labelled(prompt("llava"))
    text = {"input_ids": inputs["input_ids"].clamp(max=IMAGE - 1), "token_type_ids": None}
    expected = model(**text).logits
    ringattn.hf.parallelize(model, SingleRank())
    model.config.model_type = name
    torch.testing.assert_close(model(**text).logits, expected)
    with pytest.raises(UnsupportedError, match=f"got pixel_values.*{name!r} are not supported: .*{reason}"):
        model(**inputs)


def test_what_a_tower_gets() -> None:
    """All tokens, and beside them only what is said of each."""
    batch = divide(ringattn.ContextParallel(Mute(0, 2), "contiguous"), [(0, 6)] * 2, 6, 6)
    said = {"inputs_embeds": torch.zeros(2, 6, 4), KEYWORD: batch}
    places = torch.tensor([[0, 1, 1, 0, 1, 0], [0, 0, 1, 1, 1, 0]]).bool()
    features = [torch.arange(6.0)[:, None]]
    local = towers.local(said | {"visual_pos_masks": places, "deepstack_visual_embeds": features, "per": places.int()})
    assert local["visual_pos_masks"].equal(places[:, :3]) and local["per"].equal(places[:, :3].int())
    assert local["deepstack_visual_embeds"][0].flatten().tolist() == [0, 1, 3]
    for wrong, reason in (
        ({"image_sizes": torch.ones(2, 2)}, "got image_sizes, and how that belongs to tokens"),
        ({"inputs_embeds": torch.zeros(2, 5, 4)}, r"got \(rows, tokens\) = \(2, 5\) of a batch of \(2, 6\)"),
    ):
        with pytest.raises(UnsupportedError, match=reason):
            towers.local(said | wrong)
