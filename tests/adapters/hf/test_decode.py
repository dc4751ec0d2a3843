"""New tokens against keys that are spread over ranks, beside dense attention in float64."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

import ringattn.hf
from ringattn.hf import decode
from ringattn.hf.cache_layer import SPARE
from ringattn.hf.decode import Decoding, Reach
from ringattn.hf.partial import fused, plain
from ringattn.tensors import distance
from ringattn_comms.backends import threads
from ringattn_comms.communicator import Communicator, SingleRank

ROWS, HEADS, KV_HEADS, DIM = 2, 4, 2, 8
REACHES = (Reach(), Reach(5), Reach(2), Reach(5, chunked=True), Reach(8, chunked=True))


def dense(
    q: Tensor, k: Tensor, v: Tensor, reach: Reach, softcap: float, sinks: Tensor | None, mask: Tensor | None
) -> Tensor:
    """All of it at once: (rows, tokens, heads, dim)."""
    k, v = (x.repeat_interleave(HEADS // KV_HEADS, dim=1) for x in (k, v))
    scores = q @ k.mT * 0.3
    scores = scores if not softcap else softcap * torch.tanh(scores / softcap)
    key = torch.arange(k.shape[2])
    query, size = key[-q.shape[2] :, None], reach.size or 10**9
    dead = ((query < key) | (query - key >= size))[None]
    if reach.chunked:
        # As in transformers, the first chunk of a row begins with its first real token.
        left = torch.zeros(1, 1, 1) if mask is None else mask.long().argmax(dim=1)[:, None, None]
        dead = dead | ((query - left) // size != (key - left) // size)
    dead = dead[:, None] if mask is None else dead[:, None] | ~mask[:, None, None, :]
    scores = scores.masked_fill(dead, -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks[None, :, None, None].expand(*scores.shape[:3], 1)], dim=-1)
    weights = scores.softmax(dim=-1).masked_fill(dead.all(dim=-1, keepdim=True), 0.0)[..., : k.shape[2]]
    return (weights @ v).transpose(1, 2)


def spread(comm: Communicator, k: Tensor, v: Tensor, old: int) -> tuple[ringattn.hf.ShardedCache, Tensor, Tensor]:
    """A cache of `old` tokens in no order that a layout would have, within a call that brings the others."""
    cache = ringattn.hf.ShardedCache(comm)
    owners = torch.randint(comm.size, (k.shape[2],), generator=torch.Generator().manual_seed(old))
    for start, stop in ((0, old), (old, k.shape[2])):
        rows = (owners[start:stop] == comm.rank).nonzero().flatten()
        cache.expect(stop - start, rows, (rows + start).tolist())
        stored = cache.update(k[:, :, start:stop], v[:, :, start:stop], 0)
        if start == 0:
            cache.finish()
    return cache, *stored


@pytest.mark.parametrize("tokens", [1, 3, 9])
@pytest.mark.parametrize("size", [1, 3])
def test_exact(size: int, tokens: int) -> None:
    """Every mix of windows or chunks, softcap, sinks and padding, to 1e-10 in float64."""
    draw = torch.Generator().manual_seed(tokens)
    length = 21 + tokens
    q = torch.randn(ROWS, HEADS, tokens, DIM, generator=draw, dtype=torch.float64)
    k, v = (torch.randn(ROWS, KV_HEADS, length, DIM, generator=draw, dtype=torch.float64) for _ in range(2))
    sink = torch.randn(HEADS, generator=draw, dtype=torch.float64)
    padding = torch.ones(ROWS, length, dtype=torch.bool)
    padding[1, :7] = False

    def rank(comm: Communicator) -> None:
        for reach, softcap, sinks, mask in product(REACHES, (0.0, 1.5), (None, sink), (None, padding)):
            cache, keys, values = spread(comm, k, v, 21)
            step = Decoding(cache, tokens, mask, q.device)
            found = decode.attend(q, keys, values, step, scale=0.3, reach=reach, softcap=softcap, sinks=sinks)
            expected = dense(q, k, v, reach, softcap, sinks, mask)
            assert (found - expected).abs().max() <= 1e-10, (reach, softcap, sinks, mask)

    threads.run(size, rank)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_errors_are_no_larger_than_those_of_plain_pytorch(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    q = torch.randn(ROWS, HEADS, 1, DIM, generator=draw, dtype=torch.float64).to(dtype)
    k, v = (torch.randn(ROWS, KV_HEADS, 300, DIM, generator=draw, dtype=torch.float64).to(dtype) for _ in range(2))
    expected = dense(q.double(), k.double(), v.double(), Reach(), 0.0, None, None)

    def rank(comm: Communicator) -> float:
        cache, keys, values = spread(comm, k, v, 299)
        step = Decoding(cache, 1, None, q.device)
        found = decode.attend(q, keys, values, step, scale=0.3, reach=Reach(), softcap=0.0, sinks=None)
        assert found.dtype == dtype
        return distance(found, expected)

    error = (dense(q, k, v, Reach(), 0.0, None, None).double() - expected).abs().max().item()
    assert max(threads.run(4, rank)) <= 2 * error


def test_one_message_a_layer() -> None:
    """Out and lse travel together."""

    class Counting(SingleRank):
        calls = 0

        def all_gather(self, x: Tensor):
            self.calls += 1
            return super().all_gather(x)

    comm = Counting()
    k = torch.randn(ROWS, KV_HEADS, 9, DIM)
    cache, keys, values = spread(comm, k, k, 6)
    q, step = torch.randn(ROWS, HEADS, 3, DIM), Decoding(cache, 3, None, k.device)
    decode.attend(q, keys, values, step, scale=0.3, reach=Reach(4), softcap=0.0, sinks=torch.zeros(HEADS))
    assert comm.calls == 1


@pytest.mark.parametrize("lse", [-torch.inf, torch.inf, torch.nan])
def test_scores_that_are_not_finite_are_seen(lse: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fast kernels answer them with out 0 and any of these lse: that is no rank without keys, whose part weighs 0."""

    def answered(q: Tensor, k: Tensor, v: Tensor, *_: float) -> tuple[Tensor, Tensor]:
        found = fused(q, k, v, 0.3, 0.0)
        assert found is not None
        for each, value in zip(found, (0.0, lse), strict=True):
            each[0, 1] = value
        return found

    def rank(comm: Communicator) -> None:
        cache, keys, values = spread(comm, k, k, 9)
        step = Decoding(cache, 1, None, q.device)
        found = decode.attend(q, keys, values, step, scale=0.3, reach=Reach(), softcap=0.0, sinks=None)
        assert found[0, :, 1].isnan().all() and found.isnan().sum() == DIM

    q, k = torch.randn(ROWS, HEADS, 1, DIM), torch.randn(ROWS, KV_HEADS, 10, DIM)
    monkeypatch.setattr(decode, "fused", answered)
    threads.run(3, rank)


FAULTS = {
    "a query": ("q", (0, 1, 0, 3), torch.nan),
    "one key": ("k", (0, 0, 4, 2), torch.nan),
    "one infinite key": ("k", (0, 0, 4, 2), torch.inf),
    "one value": ("v", (0, 0, 4, 2), torch.nan),
    "one infinite value": ("v", (0, 0, 4, 2), -torch.inf),
    "all keys": ("k", (0, 0), torch.nan),
    "all keys infinite": ("k", (0, 0), torch.inf),
    "all scores -inf": ("k", (0, 0), -torch.inf),
    "the keys of the first rank": ("k", (0, 0, slice(0, None, 3)), torch.nan),
    "the scores of the first rank -inf": ("k", (0, 0, slice(0, None, 3)), -torch.inf),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("keys", [30, 300])
@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_not_finite(fault: str, keys: int, dtype: torch.dtype) -> None:
    """As in a softmax over all keys, and nowhere else: on one rank or on all; also where a row is padding alone."""
    name, place, number = FAULTS[fault]
    x = {"q": torch.rand(ROWS, HEADS, 1, DIM) + 0.1, **{kv: torch.randn(ROWS, KV_HEADS, keys, DIM) for kv in "kv"}}
    x = {each: tensor.to(dtype) for each, tensor in x.items()}
    x[name][place] = number
    padding = torch.ones(ROWS, keys, dtype=torch.bool)
    padding[1, : keys - 10] = False
    only_padding = padding & torch.tensor([[True], [False]])
    sink = torch.zeros(HEADS, dtype=dtype)

    def rank(comm: Communicator) -> None:
        for mask, reach, sinks in product((None, padding, only_padding), (Reach(), Reach(keys - 1)), (None, sink)):
            cache = ringattn.hf.ShardedCache(comm)
            for first, end in ((0, keys - 1), (keys - 1, keys)):
                held = torch.tensor([at for at in range(first, end) if at % comm.size == comm.rank], dtype=torch.int64)
                cache.expect(end - first, held - first, held.tolist())
                k, v = cache.update(x["k"][:, :, first:end], x["v"][:, :, first:end], 0)
                if first == 0:
                    cache.finish()
            step = Decoding(cache, 1, mask, x["q"].device)
            found = decode.attend(x["q"], k, v, step, scale=0.3, reach=reach, softcap=0.0, sinks=sinks)
            wide = (x[name].double() for name in "qkv")
            expected = dense(*wide, reach, 0.0, None if sinks is None else sinks.double(), mask)
            torch.testing.assert_close(found, expected.to(dtype), equal_nan=True, rtol=3e-2, atol=1e-2)

    threads.run(3, rank)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "number"), [("q", torch.nan), ("k", torch.nan), ("v", torch.nan), ("v", torch.inf)])
def test_numbers_that_are_not_finite_are_seen_with_few_keys(name: str, number: float, dtype: torch.dtype) -> None:
    for keys in (1, 2, 3, 5, 15, 33):
        x = {
            "q": torch.randn(1, 2, 1, 8, dtype=dtype),
            "k": torch.randn(1, 1, keys, 8, dtype=dtype),
            "v": torch.randn(1, 1, keys, 8, dtype=dtype),
        }
        x[name][0, 0, 0, 0] = number
        cache, k, v = spread(SingleRank(), x["k"], x["v"], keys - 1)
        step = Decoding(cache, 1, None, x["q"].device)
        found = decode.attend(x["q"], k, v, step, scale=0.3, reach=Reach(), softcap=0.0, sinks=None)
        q, k, v = (each.double() for each in x.values())
        expected = ((q @ k.mT * 0.3).softmax(-1) @ v).transpose(1, 2)
        assert torch.equal(found.isfinite(), expected.isfinite()), f"{keys} keys"


def test_spans() -> None:
    """The example of the docstring; no key is in two spans, and those in the middle are seen by all."""
    cache = ringattn.hf.ShardedCache(SingleRank())
    cache.length, cache.held = 8, [3, 5, 7, 9]
    assert Decoding(cache, 3, None, torch.device("cpu")).spans(Reach(4)) == (3, 2, 1)
    sizes = [Reach(), *(Reach(size, chunked) for size in (1, 2, 3, 4, 20) for chunked in (False, True))]
    for tokens, reach in product((1, 2, 5), sizes):
        step = Decoding(cache, tokens, None, torch.device("cpu"))
        first, shared, later = step.spans(reach)
        assert len(cache.held) >= first >= shared >= later >= 0
        alive = step.alive(slice(0, tokens), slice(0, 4), reach)[0, 0]
        assert alive[:, 4 - shared : 4 - later].all() and not alive[:, : 4 - first].any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_fused_and_plain(dtype: torch.dtype) -> None:
    """Two ways to one result, on keys in the middle of a larger buffer."""
    draw = torch.Generator().manual_seed(0)
    q = torch.randn(ROWS, 3, HEADS, DIM, generator=draw).to(dtype).transpose(1, 2)
    k, v = (torch.randn(ROWS, KV_HEADS, 40, DIM, generator=draw).to(dtype)[:, :, 5:35] for _ in range(2))
    found = fused(q, k, v, 0.3, 0.0)
    assert found is not None
    every = torch.ones(1, 1, 3, 30, dtype=torch.bool)
    expected = plain(q, k, v, lambda queries: every[:, :, queries], 0.3, 0.0)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(
            one.to(other.dtype), other, **({"rtol": 1e-2, "atol": 1e-2} if dtype.itemsize == 2 else {})
        )
    assert fused(q, k, v, 0.3, 2.0) is None and fused(q, k, v[..., :4], 0.3, 0.0) is None


def test_plain_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    k = torch.randn(ROWS, KV_HEADS, 9, DIM)
    cache, keys, values = spread(SingleRank(), k, k, 2)
    q, step = torch.randn(ROWS, HEADS, 7, DIM), Decoding(cache, 7, None, k.device)
    options = {"scale": 0.3, "reach": Reach(4), "softcap": 1.0, "sinks": None}
    whole = decode.attend(q, keys, values, step, **options)
    monkeypatch.setattr("ringattn.hf.partial.SCORES", 2 * ROWS * HEADS * 9)
    torch.testing.assert_close(decode.attend(q, keys, values, step, **options), whole)


def test_buffers_grow_by_steps() -> None:
    """A token is written where there is room; it does not copy those before it."""
    cache = ringattn.hf.ShardedCache(SingleRank())
    places = set()
    for position in range(2 * SPARE):
        cache.expect(1, torch.tensor([0]), [position])
        state = torch.full((1, 1, 1, 2), float(position))
        cache.update(state, -state, 0)
        cache.finish()
        places.add(cache.layers[0].keys.untyped_storage().data_ptr())
    assert len(places) <= 3
    everything = torch.arange(2.0 * SPARE)[None, None, :, None].expand(1, 1, -1, 2)
    assert torch.equal(cache.layers[0].keys, everything) and torch.equal(cache.layers[0].values, -everything)
