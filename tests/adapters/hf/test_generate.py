"""`generate()` on a parallelized model, with a cache that is spread over ranks: the tokens of one process."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast, pipeline

import processes
import ringattn.hf
from adapters.hf import compare
from adapters.hf.models import ARCHITECTURES, COMMON, VOCABULARY, WINDOW, build, build_from
from ringattn.hf.cache import ARGUMENT
from ringattn_comms.backends.threads import run
from ringattn_comms.communicator import Communicator, SingleRank

OLD = transformers.__version__.startswith("4.")
NEW = 9  # beyond the window, so that layers have to forget

_SHARED = {
    "num_hidden_layers": 6,
    "num_kv_shared_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"] * 3,
    "sliding_window": WINDOW,
    "head_dim": 8,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCABULARY,
}
# Layers that take the keys of others, and layers that are run, and cached, several times.
OTHERWISE_CACHED: dict[str, dict[str, Any]] = {
    "gemma3n_text": {
        **_SHARED,
        "intermediate_size": [48] * 6,
        "activation_sparsity_pattern": [0.0] * 6,
        "laurel_rank": 4,
    },
    "gemma4_text": {**_SHARED, "global_head_dim": 8, "num_global_key_value_heads": 2},
    "dory": {
        "num_hidden_layers": 4,
        "head_dim": 8,
        "layer_types": ["full_attention", "sliding_attention"] * 2,
        "sliding_window": WINDOW,
        "n_input_layers": 1,
        "n_output_layers": 1,
    },
}


def test_greedy() -> None:
    """One row, and three of which two are padded at the left; and candidates, most of them wrong, in a row alone.

    On ranks that are threads, which read the prompts and the tokens of one process: `test_ways_to_generate` has
    processes.
    """
    repeated = {"input_ids": compare.tokens(1, 6).repeat(1, 2)}
    for name in (*ARCHITECTURES, *(known() & OTHERWISE_CACHED.keys())):
        model = build_from(name, COMMON | (ARCHITECTURES | OTHERWISE_CACHED)[name]).eval()
        for prompt, how in ((padded(13), {}), (repeated, {"prompt_lookup_num_tokens": 3})):
            expected = greedy(model, prompt, **how)
            copies = [copy.deepcopy(model) for _ in range(3)]
            for found in run(3, partial(greedy_on, copies, prompt, **how)):
                assert torch.equal(found, expected), (name, how)


def greedy(model: PreTrainedModel, prompt: dict[str, Tensor], **how: Any) -> Tensor:
    model.generation_config.eos_token_id = VOCABULARY  # never drawn, so that all texts are of one length
    found: Tensor = model.generate(**prompt, max_new_tokens=NEW, do_sample=False, **how)
    return found


def greedy_on(copies: list[PreTrainedModel], prompt: dict[str, Tensor], comm: Communicator, **how: Any) -> Tensor:
    return greedy(ringattn.hf.parallelize(copies[comm.rank], comm), prompt, **how)


def known() -> set[str]:
    """The types of models that this version of transformers knows."""
    return set(transformers.CONFIG_MAPPING)


def padded(length: int) -> dict[str, Tensor]:
    ids = compare.tokens(3, length)
    mask = torch.ones_like(ids)
    mask[1, :3], mask[2, :7] = 0, 0
    return {"input_ids": ids.masked_fill(mask == 0, 0), "attention_mask": mask}


def same(model: PreTrainedModel, prompt: dict[str, Tensor], **how: Any) -> bool:
    """Does a sharded copy generate what the model does?"""
    how = {"max_new_tokens": NEW, "do_sample": False} | how
    model.generation_config.eos_token_id = VOCABULARY  # never drawn, so that all texts are of one length
    seed = how.pop("seed", 0)
    given = {ARGUMENT: ringattn.hf.ShardedCache()} if how.pop("cache_given", False) else {}
    torch.manual_seed(seed)
    expected = model.generate(**prompt, **how)
    sharded = ringattn.hf.parallelize(copy.deepcopy(model))
    # Only the first rank has the seed: the others take over its random state.
    torch.manual_seed(seed if torch.distributed.get_rank() == 0 else 1234)
    return torch.equal(sharded.generate(**prompt, **given, **how), expected)


def test_ways_to_generate() -> None:
    for found in processes.run(2, ways, timeout=300):
        wrong = [name for name, same in found.items() if not same]
        assert found and not wrong


def ways() -> dict[str, bool]:
    model, windowed = build("llama").eval(), build("gpt_oss").eval()
    small = build("llama", seed=1, num_hidden_layers=1).eval()
    prompt, row = padded(12), {"input_ids": compare.tokens(1, 11)}
    sampled = {"do_sample": True, "seed": 3, "temperature": 0.7}
    return {
        "sampled": same(model, prompt, **sampled, cache_given=True),
        "beams": same(model, prompt, num_beams=3),
        "two answers": same(model, row, num_return_sequences=2, **sampled),
        "one token": same(windowed, {"input_ids": compare.tokens(1, 1)}),
        "assisted": same(windowed, row, assistant_model=small, cache_given=True),
        "assisted, sampled": same(model, row, assistant_model=small, **sampled),
        "assisted by a sharded model": same(model, row, assistant_model=ringattn.hf.parallelize(copy.deepcopy(small))),
        "one candidate": same(model, {"input_ids": row["input_ids"].repeat(1, 2)}, prompt_lookup_num_tokens=1),
        # transformers 4.57 calls model.forward for chunks, past all hooks.
        "prompt in chunks": OLD or same(windowed, prompt, prefill_chunk_size=5),
        "prompt in chunks, for layers that share keys": OLD or same(shared(), prompt, prefill_chunk_size=5),
        "the kind of cache that a config names": same(windowed, row, cache_implementation="static"),
        "without a cache": same(windowed, prompt, use_cache=False),
        "without a cache, sampled": same(model, prompt, use_cache=False, **sampled),
        "without a cache, beams": same(model, {"input_ids": compare.tokens(1, 1)}, use_cache=False, num_beams=3),
        "pipeline": through_a_pipeline(model),
        "kept": kept(),
    }


def shared() -> PreTrainedModel:
    return build_from("gemma4_text", COMMON | OTHERWISE_CACHED["gemma4_text"]).eval()


def through_a_pipeline(model: PreTrainedModel) -> bool:
    words = {f"w{number}": number for number in range(VOCABULARY)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")))
    text = "w5", {"max_new_tokens": NEW, "do_sample": False, "return_full_text": False}
    tokenizer.pad_token = "w0"
    expected = pipeline("text-generation", model, tokenizer=tokenizer)(text[0], **text[1])
    sharded = ringattn.hf.parallelize(copy.deepcopy(model))
    return bool(pipeline("text-generation", sharded, tokenizer=tokenizer)(text[0], **text[1]) == expected)


def kept() -> bool:
    """A layer with a window keeps no more than it; of the others each rank keeps its share."""
    model, cache = ringattn.hf.parallelize(build("gemma2").eval()), ringattn.hf.ShardedCache()
    model.generate(compare.tokens(1, 12), **{ARGUMENT: cache}, max_new_tokens=NEW, do_sample=False)
    assert cache.get_seq_length() == 12 + NEW - 1
    windowed, full = (cache.positions(layer).tolist() for layer in (0, 1))
    assert all(position > 12 + NEW - 1 - WINDOW for position in windowed)
    assert abs(len(full) - (12 + NEW - 1) / cache.comm.size) <= 2
    return cache.layers[0].keys.shape[2] == len(windowed) < WINDOW


def test_caches_that_cannot_be_spread() -> None:
    model = ringattn.hf.parallelize(build("llama").eval(), SingleRank())
    with pytest.raises(ringattn.UnsupportedError, match="cache_implementation='offloaded' cannot be spread over ranks"):
        model.generate(compare.tokens(1, 4), max_new_tokens=2, cache_implementation="offloaded")
    with pytest.raises(ringattn.UnsupportedError, match=f"DynamicCache as its cache.*pass {ARGUMENT}=.*use_cache=Fal"):
        model.generate(compare.tokens(1, 4), max_new_tokens=2, **{ARGUMENT: transformers.DynamicCache()})


def test_restored_models_make_caches_of_transformers() -> None:
    model = ringattn.hf.restore(ringattn.hf.parallelize(build("llama").eval(), SingleRank()), "eager")
    output = model.generate(compare.tokens(1, 4), max_new_tokens=2, return_dict_in_generate=True)
    assert type(getattr(output, ARGUMENT)) is transformers.DynamicCache


@pytest.mark.skipif("dory" not in transformers.CONFIG_MAPPING, reason="this version of transformers has no dory")
def test_keys_that_a_layer_puts_together_by_itself_are_refused() -> None:
    settings = COMMON | OTHERWISE_CACHED["dory"] | {"recurrent_kv_cache_mode": "last_loop"}
    model = ringattn.hf.parallelize(build_from("dory", settings).eval(), SingleRank())
    with pytest.raises(ringattn.UnsupportedError, match="DoryAttention attends to 1 keys that are not those of its Sh"):
        model.generate(compare.tokens(1, 9), max_new_tokens=3)


def test_a_cache_that_gradient_checkpointing_drops_is_missed() -> None:
    model = ringattn.hf.parallelize(build("llama"), SingleRank())
    model.gradient_checkpointing_enable()
    cache = ringattn.hf.ShardedCache(SingleRank())
    model(compare.tokens(1, 4), **{ARGUMENT: cache})
    with pytest.raises(ringattn.UnsupportedError, match=r"gradient checkpointing: call model.eval\(\)"):
        model(compare.tokens(1, 1), **{ARGUMENT: cache})
