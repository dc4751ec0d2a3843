"""The reference kernel, launch by launch, against the oracle."""

from __future__ import annotations

from itertools import pairwise, product
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import oracle
from ringattn_core.kernels import reference
from ringattn_core.kernels.reference import Reference
from ringattn_core.plan.schedule import Launch
from ringattn_core.plan.tile import FAR, Tile
from ringattn_core.run.device_plan import DevicePlan
from ringattn_core.run.kernel import NO_OUT_GRADS, Options, Positions, Queries
from ringattn_core.run.merge import OutAccumulator, finite_or_nan
from ringattn_core.run.transport import KV

SCALE = 0.4


class Found(NamedTuple):
    out: Tensor
    lse: Tensor
    dq: Tensor
    dk: Tensor
    dv: Tensor


def draw(rows: int, columns: int, heads: int = 4, kv_heads: int = 2, dim: int = 5, dim_v: int = 3) -> list[Tensor]:
    """q, k, v and dout."""
    torch.manual_seed(0)
    shapes = (rows, heads, dim), (columns, kv_heads, dim), (columns, kv_heads, dim_v), (rows, heads, dim_v)
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


def solve(launch: Launch, inputs: list[Tensor], options: Options, found: Found | None = None) -> Found:
    """Forward and backward of one launch; the whole answer may be given, if the launch is only a part of it."""
    q, k, v, dout = inputs
    block, rng_state = Reference().forward(q, KV(k, v), launch, options)
    total = OutAccumulator(DevicePlan(q.device), q, v.shape[2])
    total.add(launch, block)
    out, lse = total.finish(block.out.dtype)
    whole_out, whole_lse = (out, lse) if found is None else found[:2]
    queries = Queries(q, whole_out, dout, finite_or_nan(whole_lse), (dout * whole_out).sum(-1).T)
    rows = slice(launch.rows.start, launch.rows.stop)
    grads = Reference().backward(queries, KV(k, v), launch, options, rng_state, NO_OUT_GRADS)
    return Found(out[rows], lse[:, rows], *grads)


def expected(tile: Tile, inputs: list[Tensor], **options: object) -> Found:
    """The oracle's answer for one tile."""
    rows, columns = slice(tile.q.start, tile.q.stop), slice(tile.k.start, tile.k.stop)
    q, k, v = (x.detach().requires_grad_() for x in (inputs[0][rows], inputs[1][columns], inputs[2][columns]))
    borders = (0, len(tile.q)), (0, len(tile.k))
    out, lse = oracle.attention(q, k, v, *borders, window=tile.window, softmax_scale=SCALE, **options)
    return Found(out.detach(), lse.detach(), *torch.autograd.grad((out * inputs[3][rows]).sum(), (q, k, v)))


def assert_same(found: Found, truth: Found) -> None:
    """What is NaN in one has to be NaN in the other."""
    for name, mine, other in zip(Found._fields, found, truth, strict=True):
        torch.testing.assert_close(
            mine, other, rtol=0, atol=1e-12, equal_nan=True, msg=lambda text, name=name: f"{name}: {text}"
        )


BANDS = {
    "full": Tile(range(2, 9), range(1, 12)),
    "causal": Tile(range(3, 10), range(3, 10), -FAR, 0),
    "causal, more keys": Tile(range(0, 5), range(2, 12), -FAR, 7),
    "window": Tile(range(2, 11), range(2, 12), -1, 2),
    "open to the right": Tile(range(0, 8), range(1, 9), 1, FAR),
    "diagonal": Tile(range(1, 7), range(2, 8), 1, 1),
    "one cell": Tile(range(4, 5), range(7, 8)),
}


@pytest.mark.parametrize("scores", [reference.SCORES, 40, 1], ids=["at once", "by rows", "row by row"])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)], ids=["MHA", "GQA", "MQA"])
@pytest.mark.parametrize("band", BANDS)
def test_bands(band: str, heads: tuple[int, int], scores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "SCORES", scores)
    inputs = draw(12, 12, *heads)
    assert_same(solve(Launch((BANDS[band],)), inputs, Options(SCALE)), expected(BANDS[band], inputs))


# Not an inf in dout: dense attention subtracts it from itself, key by key.
@pytest.mark.parametrize(
    ("where", "odd"), [*product(("q", "k", "v"), [torch.nan, torch.inf, -torch.inf, 5e-324]), ("dout", torch.nan)]
)
@pytest.mark.parametrize("band", BANDS)
def test_what_is_not_finite_reaches_the_rows_that_see_it_and_no_others(band: str, where: str, odd: float) -> None:
    """One number in the middle of a tile, then a whole token: the oracle computes every row over its own keys alone."""
    tile, names = BANDS[band], ["q", "k", "v", "dout"]
    part = tile.k if where in ("k", "v") else tile.q
    for options, softcap in ((Options(SCALE), 0.0), (Options(SCALE, 0.7), 0.7)):
        for place in ((part[len(part) // 2], 0, 1), (part[len(part) // 2],)):
            inputs = draw(12, 12)
            inputs[names.index(where)][place] = odd
            given = dict(softcap=softcap, apart=True)
            assert_same(solve(Launch((tile,)), inputs, options), expected(tile, inputs, **given))


def test_scores_beyond_the_range_of_float_are_infinite() -> None:
    """The inputs are finite; the products, in one direction, are not."""
    tile, inputs = BANDS["causal"], draw(12, 12)
    inputs[0][6], inputs[1][5] = 1e200, 1e200
    assert_same(solve(Launch((tile,)), inputs, Options(SCALE)), expected(tile, inputs, apart=True))


def test_memory_is_bounded_by_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "SCORES", 4 * 30 * 7)
    seen: list[int] = []
    scores = reference._scores
    monkeypatch.setattr(reference, "_scores", lambda *given: seen.append(scores(*given)[0].numel()) or scores(*given))
    solve(Launch((Tile(range(100), range(30)),)), draw(100, 30), Options(SCALE))
    assert max(seen) <= reference.SCORES
    assert len(seen) == 2 * 15


@pytest.mark.parametrize("scores", [reference.SCORES, 50])
@pytest.mark.parametrize("softcap", [0.5, 3.0])
def test_softcap(softcap: float, scores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "SCORES", scores)
    tile, inputs = BANDS["causal"], draw(12, 12)
    assert_same(solve(Launch((tile,)), inputs, Options(SCALE, softcap)), expected(tile, inputs, softcap=softcap))


@pytest.mark.parametrize("scores", [reference.SCORES, 50])
@pytest.mark.parametrize("kind", ["head", "token"])
def test_alibi_measures_distance_in_the_stream(kind: str, scores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tile's corner is nowhere near the diagonal of the stream, and its rows are every third token."""
    monkeypatch.setattr(reference, "SCORES", scores)
    inputs, tile = draw(8, 9), Tile(range(1, 8), range(2, 9))
    positions = Positions(torch.arange(8) * 3 + 1000, torch.arange(9) * 3 + 400)
    slopes = torch.rand((4,) if kind == "head" else (8, 4), dtype=torch.float64) * 0.01
    found = solve(Launch((tile,)), inputs, Options(SCALE, alibi_slopes=slopes, positions=positions))

    q, k, v = (x.clone().requires_grad_() for x in inputs[:3])
    keys, values = (x[2:9].repeat_interleave(2, dim=1) for x in (k, v))
    distance = (positions.q[1:8, None] - positions.k[None, 2:9]).abs()
    bias = slopes.expand(8, 4)[1:8].T[:, :, None] * distance
    scored = torch.einsum("ihd,jhd->hij", q[1:8], keys) * SCALE - bias
    out = torch.einsum("hij,jhd->ihd", scored.softmax(-1), values)
    grads = torch.autograd.grad((out * inputs[3][1:8]).sum(), (q, k, v))
    truth = Found(out.detach(), scored.logsumexp(-1).detach(), grads[0][1:8], grads[1][2:9], grads[2][2:9])
    assert_same(found, truth)


def test_slopes_of_few_bits_are_multiplied_in_many() -> None:
    """1000 tokens away, a product in bfloat16 would be off by 2."""
    inputs, positions = draw(1, 4), Positions(torch.tensor([1003]), torch.arange(4))
    slopes = torch.tensor([1.0, 0.5, 0.25, 0.125])
    wide, narrow = (
        solve(Launch((Tile(range(1), range(4)),)), inputs, Options(SCALE, alibi_slopes=x, positions=positions))
        for x in (slopes, slopes.bfloat16())
    )
    assert_same(narrow, wide)


@pytest.mark.parametrize("scores", [reference.SCORES, 30])
def test_launches_with_gaps(scores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three sequences, of which rows and columns lie apart; what a box holds besides them is nobody's."""
    monkeypatch.setattr(reference, "SCORES", scores)
    starts = [(2, 4, 0, 3), (7, 9, 5, 8), (9, 12, 13, 17)]
    tiles = tuple(Tile(range(a, b), range(c, d), -FAR, d - b) for a, b, c, d in starts)
    launch, inputs = Launch(tiles), draw(14, 20)
    found = solve(launch, inputs, Options(SCALE))
    for tile in tiles:
        rows, columns = (
            slice(part.start - box.start, part.stop - box.start)
            for part, box in ((tile.q, launch.rows), (tile.k, launch.columns))
        )
        mine = Found(found.out[rows], found.lse[:, rows], found.dq[rows], found.dk[columns], found.dv[columns])
        assert_same(mine, expected(tile, inputs))


def test_gradients_of_parts_add_up_to_those_of_the_whole() -> None:
    """Backward is given the out and lse of all keys, so every launch finds its share of the gradients."""
    inputs, borders = draw(6, 20), (0, 7, 8, 20)
    truth = expected(Tile(range(6), range(20)), inputs)
    parts = [
        solve(Launch((Tile(range(6), range(*part)),)), inputs, Options(SCALE), truth) for part in pairwise(borders)
    ]
    torch.testing.assert_close(sum(part.dq for part in parts), truth.dq, rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.cat([part.dk for part in parts]), truth.dk, rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.cat([part.dv for part in parts]), truth.dv, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_narrow_inputs_are_computed_with_in_float32(dtype: torch.dtype) -> None:
    inputs = [x.to(dtype) for x in draw(12, 12)]
    found = solve(Launch((BANDS["causal"],)), inputs, Options(SCALE))
    truth = expected(BANDS["causal"], [x.double() for x in inputs])
    assert {x.dtype for x in found} == {torch.float32}
    torch.testing.assert_close(found.lse.double(), truth.lse, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.out.double(), truth.out, rtol=1e-5, atol=1e-5)


# Dropout: the mask of a launch whose every probability is 1 / (number of keys), read off values that are unit vectors.


def mask(positions: Positions, *, seed: int = 0, heads: int = 2, first_head: int = 0, p: float = 0.25) -> Tensor:
    """(heads, rows, columns): which cells dropout keeps."""
    rows, columns = len(positions.q), len(positions.k)
    q, k = torch.zeros(rows, heads, 1, dtype=torch.float64), torch.zeros(columns, 1, 1, dtype=torch.float64)
    options = Options(1.0, dropout_p=p, seed=seed, positions=positions, first_head=first_head)
    launch = Launch((Tile(range(rows), range(columns)),))
    block, _ = Reference().forward(q, KV(k, torch.eye(columns, dtype=q.dtype)[:, None]), launch, options)
    kept = block.out.transpose(0, 1) * columns
    assert ((kept == 0) | ((kept - 1 / (1 - p)).abs() < 1e-9)).all()
    return kept > 0


def stream(rows: int, columns: int) -> Positions:
    return Positions(torch.arange(rows), torch.arange(columns))


def test_a_cell_is_dropped_by_where_it_is_in_the_stream() -> None:
    whole = mask(stream(20, 30), heads=4)
    rows, columns = torch.tensor([3, 17, 4]), torch.tensor([29, 0, 11, 12])
    assert torch.equal(mask(Positions(rows, columns), heads=4), whole[:, rows][:, :, columns])
    assert torch.equal(mask(stream(20, 30), heads=2, first_head=1), whole[1:3])


def test_dropout_is_the_same_in_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = mask(stream(20, 30))
    monkeypatch.setattr(reference, "SCORES", 100)
    assert torch.equal(mask(stream(20, 30)), whole)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_as_many_cells_are_kept_as_asked(p: float) -> None:
    """Overall, and in every row, column and head, within five standard deviations."""
    kept = mask(stream(200, 300), heads=3, p=p).double()
    for dims in ((0, 1, 2), (0, 1), (0, 2), (1, 2)):
        rates = kept.mean(dim=dims)
        deviation = (p * (1 - p) / (kept.numel() / rates.numel())) ** 0.5
        assert (rates - (1 - p)).abs().max() < 5 * deviation


def test_masks_of_heads_seeds_and_neighbours_are_independent() -> None:
    """Of two independent masks with p = 1/2 half of the cells agree."""
    kept = torch.stack([mask(stream(100, 100), seed=seed, heads=3, p=0.5) for seed in range(3)]).flatten(0, 1)
    others = [kept[0].roll((i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j] + [kept[0].T]
    for i, mine in enumerate(kept):
        for other in [*kept[i + 1 :], *(others if i == 0 else [])]:
            assert abs((mine == other).double().mean() - 0.5) < 5 * 0.5 / 100


def test_seeds_of_62_bits_are_fine() -> None:
    assert not torch.equal(mask(stream(9, 9), seed=2**62 - 1), mask(stream(9, 9), seed=2**61))


def test_dropout_backward_is_that_of_autograd() -> None:
    inputs, positions = draw(12, 12), stream(12, 12)
    tile, options = BANDS["causal"], Options(SCALE, dropout_p=0.3, seed=5, positions=positions)
    factors = mask(positions, seed=5, heads=4, p=0.3)[:, 3:10, 3:10].double() / 0.7
    assert_same(solve(Launch((tile,)), inputs, options), expected(tile, inputs, kept=factors))
