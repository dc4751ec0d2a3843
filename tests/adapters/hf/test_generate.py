"""`generate()` with a cache that is spread over ranks: the tokens of one process."""

from __future__ import annotations

import copy
import multiprocessing
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import processes
import ringattn.hf
from adapters.hf import compare
from adapters.hf.models import ARCHITECTURES, WINDOW, build
from ringattn.hf.cache import ARGUMENT, cache_of
from ringattn_comms.communicator import Solo

multiprocessing.get_context("forkserver").set_forkserver_preload(["torch", "adapters.hf.models", "ringattn.hf"])

NEW = 9  # beyond the window, so that layers have to forget


@pytest.mark.parametrize("size", [2, 4])
def test_greedy(size: int) -> None:
    for found in processes.run(size, every_architecture, timeout=180):
        wrong = [name for name, same in found.items() if not same]
        assert found.keys() >= ARCHITECTURES.keys() and not wrong


def every_architecture() -> dict[str, bool]:
    """One row, and three of which two are padded at the left."""
    found = {}
    for name in ARCHITECTURES:
        model = build(name).eval()
        found[name] = same(model, {"input_ids": compare.tokens(1, 13)}) and same(model, padded(13))
    return found


def padded(length: int) -> dict[str, Tensor]:
    ids = compare.tokens(3, length)
    mask = torch.ones_like(ids)
    mask[1, :3], mask[2, :7] = 0, 0
    return {"input_ids": ids.masked_fill(mask == 0, 0), "attention_mask": mask}


def same(model: PreTrainedModel, prompt: dict[str, Tensor], **how: Any) -> bool:
    """Does a sharded copy generate what the model does?"""
    how = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False} | how
    seed = how.pop("seed", 0)
    cached = how.pop("use_cache", True)
    torch.manual_seed(seed)
    expected = model.generate(**prompt, **how)
    sharded = ringattn.hf.parallelize(copy.deepcopy(model))
    cache = ringattn.hf.ShardedCache()
    # Only the first rank has the seed: the others take over its random state.
    torch.manual_seed(seed if cache.comm.rank == 0 else 1234)
    keep: dict[str, Any] = {ARGUMENT: cache} if cached else {"use_cache": False}
    return torch.equal(sharded.generate(**prompt, **keep, **how), expected)


@pytest.mark.parametrize("size", [2, 3])
def test_ways_to_generate(size: int) -> None:
    for found in processes.run(size, ways, timeout=180):
        wrong = [name for name, same in found.items() if not same]
        assert found and not wrong


def ways() -> dict[str, bool]:
    model, windowed = build("llama").eval(), build("gpt_oss").eval()
    prompt = padded(12)
    return {
        "sampled": same(model, prompt, do_sample=True, seed=3, temperature=0.7),
        "beams": same(model, prompt, num_beams=3),
        "two answers": same(model, {"input_ids": compare.tokens(1, 11)}, do_sample=True, num_return_sequences=2),
        "one token": same(windowed, {"input_ids": compare.tokens(1, 1)}),
        "in parts": in_parts(windowed),
        "without a cache": same(windowed, prompt, use_cache=False),
        "without a cache, sampled": same(model, prompt, use_cache=False, do_sample=True, seed=3, temperature=0.7),
        "without a cache, beams": same(model, {"input_ids": compare.tokens(1, 1)}, use_cache=False, num_beams=3),
        "kept": kept(),
    }


def in_parts(model: PreTrainedModel) -> bool:
    """A prompt in three parts, the later ones against the cache of the first, gives the logits of the whole."""
    ids = compare.tokens(2, 17)
    expected = model(ids).logits[:, -1:]
    sharded, cache = ringattn.hf.parallelize(copy.deepcopy(model)), ringattn.hf.ShardedCache()
    for part in ids.split([8, 6, 3], dim=1):
        logits = sharded(part, past_key_values=cache).logits
    assert cache.get_seq_length() == 17
    return compare.relative(logits[:, -1:], expected) <= 1e-5


def kept() -> bool:
    """A layer with a window keeps no more than it; of the others each rank keeps its share."""
    model, cache = ringattn.hf.parallelize(build("gemma2").eval()), ringattn.hf.ShardedCache()
    model.generate(compare.tokens(1, 12), past_key_values=cache, max_new_tokens=NEW, do_sample=False)
    assert cache.get_seq_length() == 12 + NEW - 1
    windowed, full = (cache.positions(layer).tolist() for layer in (0, 1))
    assert all(position > 12 + NEW - 1 - WINDOW for position in windowed)
    assert abs(len(full) - (12 + NEW - 1) / cache.comm.size) <= 2
    return cache.layers[0].keys.shape[2] == len(windowed) < WINDOW


def test_alone() -> None:
    """One rank, no communication: a cache like any other; and what it refuses."""
    model = ringattn.hf.parallelize(build("llama").eval(), Solo())
    ids = compare.tokens(2, 10)
    expected = ringattn.hf.restore(copy.deepcopy(model))(ids).logits
    cache = ringattn.hf.ShardedCache(Solo())
    torch.testing.assert_close(model(ids, past_key_values=cache).logits, expected[:, -1:])
    cache.crop(-4)
    assert cache.get_seq_length() == 6
    torch.testing.assert_close(model(ids[:, 6:], past_key_values=cache).logits, expected[:, 6:])
    with pytest.raises(ValueError, match=r"\(rows, tokens\) = \(2, 11\).*got \(2, 4\)"):
        model(ids[:, :1], past_key_values=cache, attention_mask=torch.ones(2, 4))
    with pytest.raises(ringattn.UnsupportedError, match="labels go with whole texts"):
        model(ids[:, :1], labels=ids[:, :1], past_key_values=cache)
    with pytest.raises(ringattn.UnsupportedError, match=f"DynamicCache as its cache.*pass {ARGUMENT}=.*use_cache=Fal"):
        model.generate(ids, max_new_tokens=2)
    cache.reset()
    torch.testing.assert_close(model(ids, past_key_values=cache).logits, expected[:, -1:])


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_either_name_of_the_argument(name: str) -> None:
    cache = ringattn.hf.ShardedCache(Solo())
    assert cache_of({name: cache}) is cache and cache_of({name: None}) is cache_of({}) is None


def test_the_name_that_errors_give_is_no_old_one() -> None:
    model = ringattn.hf.parallelize(build("llama").eval(), Solo())
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        model(compare.tokens(1, 4), **{ARGUMENT: ringattn.hf.ShardedCache(Solo())})


def test_a_window_cannot_go_back() -> None:
    model, cache = ringattn.hf.parallelize(build("mistral").eval(), Solo()), ringattn.hf.ShardedCache(Solo())
    model(compare.tokens(1, 12), past_key_values=cache)
    with pytest.raises(ringattn.UnsupportedError, match="cannot go back"):
        cache.crop(-2)
