"""Adding up blocks: exact however far apart they are, and as a softmax over all keys where they are not finite."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ringattn_core.plan.schedule import Launch
from ringattn_core.plan.tile import Tile
from ringattn_core.run.device_plan import DevicePlan
from ringattn_core.run.kernel import Block
from ringattn_core.run.merge import OutAccumulator, sink_gradient, with_sinks

ROWS, HEADS, DIM = 6, 2, 3


def rows(*parts: range) -> Launch:
    """A launch over these rows, one tile each."""
    return Launch(tuple(Tile(part, part) for part in parts))


def partial(dtype: torch.dtype = torch.float64) -> OutAccumulator:
    return OutAccumulator(DevicePlan(torch.device("cpu")), torch.empty(ROWS, HEADS, DIM, dtype=dtype), DIM)


def block(lse: float | Tensor, count: int = ROWS, dtype: torch.dtype = torch.float64) -> Block:
    out = torch.randn(count, HEADS, DIM, dtype=dtype)
    return Block(out, torch.zeros(HEADS, count, dtype=dtype) + lse)


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("spread", [1.0, 50.0])
def test_the_parts_of_a_softmax_add_up_to_the_whole(count: int, spread: float) -> None:
    torch.manual_seed(count)
    scores = torch.randn(HEADS, ROWS, 5 * count, dtype=torch.float64) * spread
    values = torch.randn(HEADS, 5 * count, DIM, dtype=torch.float64)
    whole = partial()
    for keys, part in zip(scores.chunk(count, dim=2), values.chunk(count, dim=1), strict=True):
        whole.add(rows(range(ROWS)), Block((keys.softmax(-1) @ part).transpose(0, 1), keys.logsumexp(-1)))
    out, lse = whole.finish(torch.float64)
    torch.testing.assert_close(out, (scores.softmax(-1) @ values).transpose(0, 1), rtol=0, atol=1e-12)
    torch.testing.assert_close(lse, scores.logsumexp(-1), rtol=1e-14, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("offset", [0.0, 5e4, -5e4])
def test_a_block_that_weighs_nothing_changes_nothing(dtype: torch.dtype, order: int, offset: float) -> None:
    heavy, light = block(offset + 1e4, dtype=dtype), block(offset, dtype=dtype)
    whole = partial(dtype)
    for part in (heavy, light)[::order]:
        whole.add(rows(range(ROWS)), part)
    out, lse = whole.finish(dtype)
    assert torch.equal(out, heavy.out)
    assert torch.equal(lse, heavy.lse)


def test_rows_that_no_launch_touches_see_no_key() -> None:
    whole, part = partial(), block(3.0, count=2)
    whole.add(rows(range(1, 3)), part)
    out, lse = whole.finish(torch.float64)
    assert torch.equal(out[1:3], part.out)
    for row in (0, 3, 4, 5):
        assert (out[row] == 0).all()
        assert (lse[:, row] == -torch.inf).all()


def block_of(scores: Tensor, values: Tensor) -> Block:
    """What a kernel finds for some keys, as `Block` says it; scores (heads, rows, keys), values (heads, keys, dim)."""
    lse = scores.logsumexp(-1)
    weights = torch.exp(scores - lse.masked_fill(lse == -torch.inf, 0.0).unsqueeze(-1))
    return Block((weights @ values).transpose(0, 1), lse)


@pytest.mark.parametrize("sinks", [None, 0.5, -torch.inf, torch.inf, torch.nan])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_parts_that_are_not_finite_add_up_to_what_softmax_makes_of_the_whole(count: int, sinks: float | None) -> None:
    odd = torch.tensor([torch.nan, torch.inf, -torch.inf, -torch.inf, -torch.inf], dtype=torch.float64)
    given = None if sinks is None else torch.tensor([sinks, 0.3], dtype=torch.float64)
    for seed in range(40):
        torch.manual_seed(seed)
        scores, values = torch.randn(HEADS, ROWS, 2 * count).double(), torch.randn(HEADS, 2 * count, DIM).double()
        scores = torch.where(torch.rand(scores.shape) < 0.3, odd[torch.randint(5, scores.shape)], scores)
        scores[0, 0] = -torch.inf  # nothing but -inf in all parts
        values = torch.where(torch.rand(values.shape) < 0.05, odd[torch.randint(3, values.shape)], values)
        whole = partial()
        for keys, part in zip(scores.chunk(count, dim=2), values.chunk(count, dim=1), strict=True):
            whole.add(rows(range(ROWS)), block_of(keys, part))
        out, lse = whole.finish(torch.float64, given)
        if given is not None:
            scores = torch.cat([scores, given[:, None, None].expand(-1, ROWS, 1)], dim=-1)
        want = (scores.softmax(-1)[..., : 2 * count] @ values).transpose(0, 1)
        torch.testing.assert_close(out, want, rtol=0, atol=1e-12, equal_nan=True)
        torch.testing.assert_close(lse, scores.logsumexp(-1), rtol=0, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("lse", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_stays_so_and_leaves_the_others_alone(lse: float) -> None:
    """Before and after a block that is finite; of -inf alone nothing remains beside it, unless the values are NaN."""
    good, bad = block(2.0), block(3.0)
    bad.lse[:, 1], bad.out[1] = lse, torch.nan
    for parts in ((good, bad), (bad, good), (bad,)):
        whole = partial()
        for part in parts:
            whole.add(rows(range(ROWS)), part)
        out, total = whole.finish(torch.float64)
        assert out[1].isnan().all()
        assert out[[0, *range(2, ROWS)]].isfinite().all() and total[:, [0, *range(2, ROWS)]].isfinite().all()
        assert not total[:, 1].isfinite().any() or (lse == -torch.inf and len(parts) == 2)


@pytest.mark.parametrize("odd", [torch.nan, torch.inf])
def test_rows_that_see_no_key_stay_0_beside_rows_that_are_not_finite(odd: float) -> None:
    for sinks in (None, torch.tensor([0.5, -torch.inf], dtype=torch.float64)):
        whole = partial()
        whole.add(rows(range(1, 3)), block(odd, count=2))
        out, lse = whole.finish(torch.float64, sinks)
        assert (out[[0, 3, 4, 5]] == 0).all() and out[1:3].isnan().all()
        assert (lse[1, [0, 3, 4, 5]] == -torch.inf).all()


def test_rows_in_the_gaps_of_a_launch_are_left_alone() -> None:
    """A block covers the box around the launch's rows; what lies between its tiles belongs to none."""
    whole, first, second = partial(), block(1.0), block(2.0, count=5)
    whole.add(rows(range(ROWS)), first)
    second.out[2:4], second.lse[:, 2:4] = torch.nan, torch.nan
    whole.add(rows(range(1, 3), range(5, 6)), second)
    out, lse = whole.finish(torch.float64)
    for row in (0, 3, 4):
        assert torch.equal(out[row], first.out[row])
        assert torch.equal(lse[:, row], first.lse[:, row])
    weight = torch.sigmoid(torch.tensor(1.0, dtype=torch.float64))
    for row in (1, 2, 5):
        torch.testing.assert_close(out[row], first.out[row] * (1 - weight) + second.out[row - 1] * weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_what_is_narrow_adds_up_in_float32(dtype: torch.dtype) -> None:
    whole = partial(dtype)
    whole.add(rows(range(ROWS)), block(1.0, dtype=dtype))
    out, lse = whole.finish(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert whole.out.dtype == lse.dtype == wide
    assert out.dtype == dtype


@pytest.mark.parametrize("sink", [0.5, 1e4, -1e4])
def test_a_sink_is_one_more_key_with_value_0(sink: float) -> None:
    part, sinks = block(2.0), torch.tensor([sink, -sink], dtype=torch.float64)
    out, lse = with_sinks(part.out, part.lse, sinks)
    scores = torch.stack([part.lse, sinks[:, None].expand(-1, ROWS)], dim=-1)
    torch.testing.assert_close(lse, scores.logsumexp(-1), rtol=0, atol=1e-12)
    weight = scores.softmax(-1)[..., 0].T.unsqueeze(-1)
    torch.testing.assert_close(out, part.out * weight, rtol=0, atol=1e-12)


def test_a_sink_that_is_not_finite_makes_a_head_nan_unless_it_is_off() -> None:
    """Of one head: all rows, those without a key too, for they see the sink."""
    part = block(2.0)
    part.out[3], part.lse[:, 3] = 0.0, -torch.inf
    for sink in (torch.nan, torch.inf):
        out, lse = with_sinks(part.out, part.lse, torch.tensor([sink, 0.5], dtype=torch.float64))
        assert out[:, 0].isnan().all() and not lse[0].isfinite().any()
        assert out[:, 1].isfinite().all() and lse[1].isfinite().all()
    off = torch.full((HEADS,), -torch.inf, dtype=torch.float64)
    for found, expected in zip(with_sinks(part.out, part.lse, off), part, strict=True):
        assert torch.equal(found, expected)


def test_a_sink_that_is_off_has_no_gradient() -> None:
    """-inf: in rows without a live key, whose lse is -inf too, and in others."""
    lse, delta = torch.tensor([[-torch.inf, 1.0]]), torch.tensor([[0.0, 0.5]])
    assert sink_gradient(torch.tensor([-torch.inf]), lse, delta).tolist() == [0.0]


def test_sinks_weigh_in_float32_what_is_narrow() -> None:
    """Out is rounded once: not the weight, and then its product."""
    part, sinks = block(torch.randn(HEADS, ROWS).double()), torch.randn(HEADS)
    narrow, lse = part.out.bfloat16(), part.lse.float()
    out, total = with_sinks(narrow, lse, sinks)
    assert (out.dtype, total.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(out, with_sinks(narrow.float(), lse, sinks)[0].bfloat16())


def test_a_sink_is_all_that_a_row_without_keys_sees() -> None:
    sinks = torch.tensor([3.0, -4.0], dtype=torch.float64)
    out, lse = partial().finish(torch.float64, sinks)
    assert (out == 0).all()
    assert torch.equal(lse, sinks[:, None].expand(-1, ROWS))


def test_the_gradient_of_sinks_is_that_of_autograd() -> None:
    part, dout = block(torch.randn(HEADS, ROWS).double()), torch.randn(ROWS, HEADS, DIM, dtype=torch.float64)
    dlse = torch.randn(HEADS, ROWS, dtype=torch.float64)
    sinks = torch.randn(HEADS, dtype=torch.float64, requires_grad=True)
    lse = torch.logaddexp(part.lse, sinks[:, None])
    out = part.out * torch.exp(part.lse - lse).T.unsqueeze(-1)
    (expected,) = torch.autograd.grad((out * dout).sum() + (lse * dlse).sum(), sinks)
    delta = (dout * out.detach()).sum(-1).T - dlse
    torch.testing.assert_close(sink_gradient(sinks.detach(), lse.detach(), delta), expected)
