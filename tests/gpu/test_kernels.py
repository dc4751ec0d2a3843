"""Every kernel on every window that the planner emits: error at most twice that of plain PyTorch in the same dtype."""

from __future__ import annotations

from itertools import product

import pytest
import torch

import oracle
from gpu.plain import plain
from launches import launches
from ringattn_core.kernels.cudnn import CuDnn
from ringattn_core.kernels.flash_attn_4 import FlashAttn4
from ringattn_core.kernels.torch_flash_cuda import TorchFlashCuda
from ringattn_core.plan.layout import contiguous, zigzag
from ringattn_core.plan.planner import plan
from ringattn_core.plan.route import gather, ring
from ringattn_core.run.execute import attend, attend_backward
from ringattn_core.run.kernel import NO_OUT_GRADS, Block, Kernel, Options, OutGrads, Queries
from ringattn_core.run.transport import KV, LocalTransport


def made(kind: type[Kernel]) -> Kernel:
    try:
        return kind()
    except ImportError as why:
        pytest.skip(str(why))


@pytest.fixture(params=[TorchFlashCuda, CuDnn, FlashAttn4], ids=lambda kind: kind.name)
def kernel(request: pytest.FixtureRequest) -> Kernel:
    return made(request.param)


def check(kernel, launch, tokens_q, tokens_k, heads=(4, 2), dims=(128, 128), dtype=torch.bfloat16, softcap=0.0):
    def draw(tokens: int, count: int, dim: int) -> torch.Tensor:
        return torch.randn(tokens, count, dim, device="cuda").to(dtype)

    q, k, v = draw(tokens_q, heads[0], dims[0]), draw(tokens_k, heads[1], dims[0]), draw(tokens_k, heads[1], dims[1])
    dout = draw(tokens_q, heads[0], dims[1])
    options = Options(dims[0] ** -0.5, softcap=softcap)
    reason = kernel.supports(launch, q, KV(k, v), options)
    if reason:
        return reason
    exact = plain(launch, *(x.double() for x in (q, k, v, dout)), options.softmax_scale, softcap)
    rough = plain(launch, q, k, v, dout, options.softmax_scale, softcap)
    block, rng_state = kernel.forward(q, KV(k, v), launch, options)
    queries = Queries(q, exact[0].to(dtype), dout, exact[1].float(), None)
    grads = kernel.backward(queries, KV(k, v), launch, options, rng_state, NO_OUT_GRADS)
    rows = torch.cat([torch.arange(tile.q.start, tile.q.stop) for tile in launch.tiles]).cuda()
    columns = torch.cat([torch.arange(tile.k.start, tile.k.stop) for tile in launch.tiles]).cuda()
    in_rows, in_columns = rows - launch.rows.start, columns - launch.columns.start
    for name, got, want, other in (
        ("out", block.out[in_rows], exact[0][rows], rough[0][rows]),
        ("lse", block.lse[:, in_rows], exact[1][:, rows], rough[1][:, rows]),
        ("dq", grads.dq[in_rows], exact[2][rows], rough[2][rows]),
        ("dk", grads.dk[in_columns], exact[3][columns], rough[3][columns]),
        ("dv", grads.dv[in_columns], exact[4][columns], rough[4][columns]),
    ):
        error, allowed = (got - want).abs().max().item(), 2 * (other - want).abs().max().item()
        allowed += torch.finfo(dtype).eps * want.abs().max().item() + 1e-4
        assert error <= allowed, f"{kernel.name} {name} {launch}: {error} > {allowed}"
    return None


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(3))
def test_random_launches(kernel, seed: int) -> None:
    ran = [check(kernel, *case) for case in launches(14, seed)]
    assert ran.count(None) >= 3, ran


SHAPES = [
    ((4, 4), (64, 64)),
    ((8, 1), (96, 96)),
    ((8, 2), (128, 128)),
    ((4, 4), (192, 128)),
    ((2, 1), (256, 256)),
    ((6, 2), (64, 64)),
]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("heads", "dims"), SHAPES)
def test_shapes(kernel, dtype: torch.dtype, heads: tuple[int, int], dims: tuple[int, int]) -> None:
    schedule = plan(zigzag, ring, (0, 1024), (0, 1024), 0, 2, window=(-1, 0))
    for step in schedule.steps:
        for launch in step.launches:
            reason = check(kernel, launch, schedule.query_length, schedule.buffer_length(step), heads, dims, dtype)
            if reason:
                pytest.skip(f"{kernel.name}: {reason}")


@pytest.mark.gpu
def test_what_lies_between_the_tiles_of_a_launch_is_left_alone() -> None:
    """A kernel that fills may be given a place with gaps, into which another stream may be writing."""
    kernel, borders = made(FlashAttn4), (0, 300, 1000, 1800, 2048)
    schedule, options = plan(zigzag, gather, borders, borders, 0, 2, window=(-1, 0)), Options(128**-0.5)
    lengths = schedule.query_length, schedule.query_length, *[max(map(schedule.buffer_length, schedule.steps))] * 2
    q, dout, k, v = (
        torch.randn(length, count, 128, device="cuda").bfloat16()
        for length, count in zip(lengths, (8, 8, 2, 2), strict=True)
    )
    launches = [launch for step in schedule.steps for launch in step.launches]
    assert any(not launch.dense_rows for launch in launches) and any(not each.dense_columns for each in launches)
    for launch in launches:
        if reason := kernel.supports(launch, q, KV(k, v), options):
            pytest.skip(reason)
        block, _ = kernel.forward(q, KV(k, v), launch, options)
        out, lse = torch.full_like(block.out, 7.0), torch.full_like(block.lse, 7.0)
        kernel.forward(q, KV(k, v), launch, options, Block(out, lse))
        rows = torch.cat([torch.arange(tile.q.start, tile.q.stop) for tile in launch.tiles]).cuda() - launch.rows.start
        columns = torch.cat([torch.arange(tile.k.start, tile.k.stop) for tile in launch.tiles]).cuda()
        columns -= launch.columns.start
        whole = torch.zeros(len(q), 8, 128, device="cuda", dtype=torch.bfloat16), torch.zeros(8, len(q), device="cuda")
        box = slice(launch.rows.start, launch.rows.stop)
        whole[0][box][rows], whole[1][:, box][:, rows] = block.out[rows], block.lse[:, rows]
        queries = Queries(q, whole[0], dout, whole[1], None)
        want = kernel.backward(queries, KV(k, v), launch, options, None, NO_OUT_GRADS)
        out_grads = OutGrads(*(torch.full_like(grad, 7.0) for grad in want))
        kernel.backward(queries, KV(k, v), launch, options, None, out_grads)
        for name, got, wanted, inside in (
            ("out", out, block.out, rows),
            ("lse", lse.T, block.lse.T, rows),
            ("dq", out_grads.dq, want.dq, rows),
            ("dk", out_grads.dk, want.dk, columns),
            ("dv", out_grads.dv, want.dv, columns),
        ):
            assert got is not None
            gaps = torch.ones(len(got), dtype=torch.bool, device="cuda").index_fill(0, inside, False)
            torch.testing.assert_close(got[inside], wanted[inside], msg=lambda why, name=name: f"{name}: {why}")
            assert got[gaps].eq(7.0).all(), f"{name} of {launch} has its gaps overwritten"


@pytest.mark.gpu
@pytest.mark.parametrize("odd", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", range(3), ids=["q", "k", "v"])
def test_what_is_not_finite_is_not_hidden(kernel, where: int, odd: float) -> None:
    """Not finite where the oracle has it, and the document without a fault is as without one in the other."""
    tokens, options = 400, Options(128**-0.5)
    good = [torch.randn(tokens, heads, 128, device="cuda").bfloat16() for heads in (4, 2, 2, 4)]
    bad = [x.clone() for x in good]
    bad[where][77, 1, 5] = odd
    for borders, window in product(((0, 400), (0, 150, 400), (0, 200, 400)), ((-1, 0), (-1, -1))):
        schedule = plan(contiguous, ring, borders, borders, 0, 1, window=window)
        if any(kernel.supports(launch, good[0], KV(*good[1:3]), options) for launch in schedule.steps[0].launches):
            continue
        found, clean = (_both_passes(schedule, kernel, *x, options) for x in (bad, good))
        leaves = [x.double().requires_grad_() for x in bad[:3]]
        with torch.device("cuda"):
            out, lse = oracle.attention(
                *leaves, borders, borders, window=window, softmax_scale=options.softmax_scale, apart=True
            )
        grads = torch.autograd.grad((out * bad[3].double()).sum(), leaves)
        for name, got, want in zip(("out", "lse", "dq", "dk", "dv"), found, (out, lse, *grads), strict=True):
            hidden = got.isfinite() & ~want.isfinite()
            assert not hidden.any(), f"{kernel.name} {borders} {window}: {name} hides {int(hidden.sum())}"
        for name, got, want in zip(
            ("out", "dq", "dk", "dv"), found[:1] + found[2:], clean[:1] + clean[2:], strict=True
        ):
            torch.testing.assert_close(got[borders[1] :], want[borders[1] :], msg=f"{kernel.name} {borders}: {name}")


def _both_passes(schedule, kernel, q, k, v, dout, options) -> list[torch.Tensor]:
    """out, lse, dq, dk, dv of a group of one rank."""
    result = attend(LocalTransport(schedule, KV(k, v)), kernel, q, options)
    grads = attend_backward(LocalTransport(schedule, KV(k, v)), kernel, dout, q, result, options)
    return [result.out, result.lse, grads.dq, grads.dk, grads.dv]


@pytest.mark.gpu
def test_softcap() -> None:
    schedule = plan(zigzag, ring, (0, 1024), (0, 1024), 0, 2, window=(-1, 0))
    launch = schedule.steps[0].launches[0]
    reason = check(made(FlashAttn4), launch, schedule.query_length, schedule.query_length, softcap=5.0)
    if reason:
        pytest.skip(reason)
    assert "softcap" in (
        check(TorchFlashCuda(), launch, schedule.query_length, schedule.query_length, softcap=5.0) or ""
    )


@pytest.mark.gpu
def test_dropout_is_replayed() -> None:
    """With v = 1 and dropout, out's rows are the kept weights; the gradient of v by ones repeats them, column-wise."""
    launch = plan(contiguous, ring, (0, 512), (0, 512), 0, 1).steps[0].launches[0]
    q, k, v = (torch.randn(512, 2, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    v = torch.ones_like(v)
    options, kernel = Options(0.125, dropout_p=0.3), TorchFlashCuda()
    block, rng_state = kernel.forward(q, KV(k, v), launch, options)
    queries = Queries(q, block.out, torch.ones_like(q), block.lse, None)
    first, second = (kernel.backward(queries, KV(k, v), launch, options, rng_state, NO_OUT_GRADS) for _ in range(2))
    assert torch.equal(first.dv, second.dv)
    torch.testing.assert_close(first.dv.double().sum(0), block.out.double().sum(0), rtol=2e-2, atol=2.0)
