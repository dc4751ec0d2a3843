"""`ShardedCache` call by call: the logits of one process, and what it keeps, gives back and refuses."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import ringattn.hf
from adapters.hf import compare
from adapters.hf.models import WINDOW, build
from adapters.hf.test_generate import padded
from ringattn.hf.cache import ARGUMENT, cache_of
from ringattn_comms.backends import threads
from ringattn_comms.communicator import Communicator, SingleRank


def read(model: PreTrainedModel, cache: ringattn.hf.ShardedCache, ids: Tensor, **more: Tensor | int) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(ids, **{ARGUMENT: cache}, **more).logits
    return logits


@pytest.mark.parametrize("name", ["llama", "gpt_oss", "gemma2", "mistral"])
@pytest.mark.parametrize("parts", [[8, 1, 6, 2], [1, 16], [3, 5, 9]], ids=str)
def test_a_text_in_parts(name: str, parts: list[int]) -> None:
    """All logits are those of the whole text, with windows, softcap and sinks, one row or several with padding."""

    alone = build(name).eval()

    def rank(comm: Communicator) -> None:
        model = ringattn.hf.parallelize(copy.deepcopy(alone), comm)
        for prompt in ({"input_ids": compare.tokens(1, 17)}, padded(17)):
            cache, logits, start = ringattn.hf.ShardedCache(comm), [], 0
            for part in prompt["input_ids"].split(parts, dim=1):
                start += part.shape[1]
                mask = {key: x[:, :start] for key, x in prompt.items() if key == "attention_mask"}
                logits.append(read(model, cache, part, **mask))
            real = prompt.get("attention_mask", torch.ones(1, 17)).bool()
            expected = read(alone, None, prompt["input_ids"], attention_mask=real.long(), use_cache=False)
            assert cache.get_seq_length() == 17
            assert compare.relative(torch.cat(logits, dim=1)[real], expected[real]) <= 1e-5

    threads.run(3, rank)


def test_logits_to_keep() -> None:
    """Those that are asked for, with and without a cache, in the first call and in later ones."""

    alone = build("llama").eval()

    def rank(comm: Communicator) -> None:
        model = ringattn.hf.parallelize(copy.deepcopy(alone), comm)
        ids = compare.tokens(2, 13)
        whole = read(alone, None, ids, use_cache=False)
        for keep in (0, 1, 4, 13, 20, torch.tensor([5]), torch.tensor([0, -1, 7, 8, 7])):
            expected = read(alone, None, ids, logits_to_keep=keep, use_cache=False)
            cache = ringattn.hf.ShardedCache(comm)
            found = [read(model, cache, ids, logits_to_keep=keep)]
            if not isinstance(keep, int) or keep:
                found.append(read(model, None, ids, logits_to_keep=keep, use_cache=False))
            cache.crop(4)
            if isinstance(keep, int):
                rest = read(model, cache, ids[:, 4:], logits_to_keep=keep)
                assert compare.relative(rest, whole[:, 4:][:, -keep:]) <= 1e-5
            assert all(compare.relative(logits, expected) <= 1e-5 for logits in found), keep

    threads.run(3, rank)


def test_a_model_that_takes_no_logits_to_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its forward does not name it, generate() does not give it, and the last token's logits are taken here."""
    alone, model = build("llama").eval(), build("llama").eval()
    plain = type(model).forward

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, labels=None, **kwargs):
        assert "logits_to_keep" not in kwargs and self.loss_function is not None
        return plain(self, input_ids, attention_mask, position_ids, labels=labels, **kwargs)

    ids = compare.tokens(1, 11)
    expected = alone.generate(ids, max_new_tokens=4, do_sample=False)
    monkeypatch.setattr(type(model), "forward", forward)

    def rank(comm: Communicator) -> None:
        sharded = ringattn.hf.parallelize(copy.deepcopy(model), comm)
        for cached in (True, False):
            tokens = sharded.generate(ids, max_new_tokens=4, do_sample=False, use_cache=cached)
            assert torch.equal(tokens, expected)

    threads.run(2, rank)


def test_crop_as_often_as_wanted() -> None:
    """One text, several questions, each of which goes after its answer."""

    alone = build("llama").eval()

    def rank(comm: Communicator) -> None:
        model = ringattn.hf.parallelize(copy.deepcopy(alone), comm)
        text, cache = compare.tokens(1, 13), ringattn.hf.ShardedCache(comm)
        read(model, cache, text)
        for number in range(3):
            question = compare.tokens(1, 2 + number, seed=number)
            expected = read(alone, None, torch.cat([text, question], dim=1), use_cache=False)[:, 13:]
            assert compare.relative(read(model, cache, question), expected) <= 1e-5
            cache.crop(13 if number else -2)
            assert cache.get_seq_length() == 13
        # A copy reads on by itself.
        other = copy.deepcopy(cache)
        assert torch.equal(read(model, other, question), read(model, cache, question))
        assert other.get_seq_length() == cache.get_seq_length() == 13 + question.shape[1]

    threads.run(3, rank)


def test_windows_go_back_to_what_they_still_have() -> None:
    alone = build("gpt_oss").eval()

    def rank(comm: Communicator) -> None:
        model = ringattn.hf.parallelize(copy.deepcopy(alone), comm)
        text, cache = compare.tokens(1, 30), ringattn.hf.ShardedCache(comm)
        read(model, cache, text[:, :4])
        cache.crop(-2)  # Nothing is dropped before the window is full.
        read(model, cache, text[:, 2:20])
        before = [cache.positions(layer).tolist() for layer in (0, 1)]
        with pytest.raises(
            ringattn.UnsupportedError, match="of 20 tokens cannot go back to 18: layer 0 sees the last 5"
        ):
            cache.crop(-2)
        assert [cache.positions(layer).tolist() for layer in (0, 1)] == before and cache.get_seq_length() == 20
        cache.activate_past_recording()
        for start, stop, back in ((20, 28, 21), (21, 22, 22), (22, 30, 25), (25, 30, 30)):
            expected = read(alone, None, text[:, :stop], use_cache=False)[:, start:]
            assert compare.relative(read(model, cache, text[:, start:stop]), expected) <= 1e-5
            cache.crop(back)
            held = [len(x) for x in comm_all(comm, cache.positions(0), cache.positions(1))]
            assert held == [WINDOW - 1, back]

    threads.run(3, rank)


def comm_all(comm: Communicator, *positions: Tensor) -> list[set[int]]:
    """What all ranks hold."""
    whole = []
    for own in positions:
        flags = torch.zeros(64, dtype=torch.int64).index_fill(0, own, 1)
        whole.append(set(comm.all_gather(flags).wait().sum(dim=0).nonzero().flatten().tolist()))
    return whole


def test_memory_of_a_window() -> None:
    """The buffers of a layer with a window do not grow with the text."""
    model, cache = (
        ringattn.hf.parallelize(build("mistral").eval(), SingleRank()),
        ringattn.hf.ShardedCache(SingleRank()),
    )
    for _ in range(4):
        read(model, cache, compare.tokens(1, 700))
        assert cache.layers[0].keys.shape[2] == WINDOW - 1
        assert cache.layers[0].keys.untyped_storage().nbytes() < 700 * 2 * 8 * 4


def test_alone() -> None:
    """One rank, no communication: a cache like any other; and what it refuses."""
    model = ringattn.hf.parallelize(build("llama").eval(), SingleRank())
    ids = compare.tokens(2, 10)
    cache = ringattn.hf.ShardedCache(SingleRank())
    read(model, cache, ids)
    cache.crop(-4)
    with pytest.raises(ValueError, match=r"\(rows, tokens\) = \(2, 7\).*got \(2, 4\)"):
        read(model, cache, ids[:, :1], attention_mask=torch.ones(2, 4))
    with pytest.raises(ValueError, match="has 2 rows, and the model got 1"):
        read(model, cache, ids[:1, :1])
    with pytest.raises(ringattn.UnsupportedError, match="labels go with whole texts"):
        read(model, cache, ids[:, :1], labels=ids[:, :1])
    with pytest.raises(ValueError, match=r"crop\(-7\) would forget more than the 6 tokens"):
        cache.crop(-7)
    cache.crop(9)
    assert cache.get_seq_length() == 6
    cache.reset()
    torch.testing.assert_close(read(model, cache, ids), read(ringattn.hf.restore(model), None, ids, use_cache=False))


def test_from_inference_mode_and_back() -> None:
    model, cache = ringattn.hf.parallelize(build("llama").eval(), SingleRank()), ringattn.hf.ShardedCache(SingleRank())
    ids = compare.tokens(1, 12)
    expected = read(model, ringattn.hf.ShardedCache(SingleRank()), ids)
    with torch.inference_mode():
        model(ids[:, :8], **{ARGUMENT: cache})
    read(model, cache, ids[:, 8:10])
    with torch.inference_mode():
        last = model(ids[:, 10:], **{ARGUMENT: cache}).logits
    torch.testing.assert_close(last, expected[:, 10:])


def test_after_a_call_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, cache = ringattn.hf.parallelize(build("llama").eval(), SingleRank()), ringattn.hf.ShardedCache(SingleRank())
    ids = compare.tokens(1, 8)
    expected = read(model, cache, ids)
    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="out of memory"):
        patched.setattr(model.model.layers[1], "forward", lambda *_, **__: exec("raise RuntimeError('out of memory')"))
        read(model, cache, ids[:, :1])
    with pytest.raises(RuntimeError, match="last call with this ShardedCache failed"):
        read(model, cache, ids[:, :1])
    cache.reset()
    assert torch.equal(read(model, cache, ids), expected)


def test_no_gradient_passes_through_a_cache() -> None:
    model, cache = ringattn.hf.parallelize(build("llama").eval(), SingleRank()), ringattn.hf.ShardedCache(SingleRank())
    model(compare.tokens(1, 8), **{ARGUMENT: cache}).logits.sum().backward()
    loss = model(compare.tokens(1, 2), **{ARGUMENT: cache}).logits.sum()
    with pytest.raises(ringattn.UnsupportedError, match="no backward pass through a call that read on from a Sharded"):
        loss.backward()


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_either_name_of_the_argument(name: str) -> None:
    cache = ringattn.hf.ShardedCache(SingleRank())
    assert cache_of({name: cache}) is cache and cache_of({name: None}) is cache_of({}) is None


def test_the_name_that_errors_give_is_no_old_one() -> None:
    model = ringattn.hf.parallelize(build("llama").eval(), SingleRank())
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        model(compare.tokens(1, 4), **{ARGUMENT: ringattn.hf.ShardedCache(SingleRank())})
