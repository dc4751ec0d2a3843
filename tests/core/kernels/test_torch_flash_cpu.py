"""PyTorch's CPU flash attention behind the kernel's interface: what it takes, and that it is right about that."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch

from problem import Fault, Problem, assert_exact, assert_fair
from ringattn_comms.backends.threads import run
from ringattn_core.kernels.reference import Reference
from ringattn_core.kernels.torch_flash_cpu import TorchFlashCpu
from ringattn_core.plan.schedule import Launch
from ringattn_core.plan.tile import FAR, Tile
from ringattn_core.run.kernel import NO_OUT_GRADS, Grads, Options, Queries
from ringattn_core.run.merge import finite_or_nan
from ringattn_core.run.transport import KV

FLASH, REFERENCE = TorchFlashCpu(), Reference()
LAUNCHES = {
    "full": Launch((Tile(range(3, 80), range(1, 40)),)),
    "causal": Launch((Tile(range(2, 72), range(5, 75), -FAR, 3),)),
    "causal, more keys": Launch((Tile(range(0, 40), range(2, 77), -FAR, 37),)),
    "causal, one query": Launch((Tile(range(7, 8), range(2, 77)),)),
    "full, with gaps": Launch((Tile(range(2, 9), range(0, 5)), Tile(range(20, 60), range(6, 70)))),
    "causal, with gaps": Launch(
        (
            Tile(range(0, 33), range(0, 33), -FAR, 0),
            Tile(range(33, 40), range(40, 48), -FAR, 8),
            Tile(range(50, 80), range(48, 78), -FAR, -2),
        )
    ),
}
PROBLEM = Problem((0, 50, 50, 51, 160), window=(-1, 0), head_dim=16, head_dim_v=16, lse_gradient=False)


def draw(dtype: torch.dtype, heads: tuple[int, int], dim: int) -> list[torch.Tensor]:
    """q, k, v and dout, each a part of something larger, as the executor and the transports hand them in."""
    torch.manual_seed(0)
    wide = [torch.randn(80, count + 1, 2 * dim, dtype=torch.float64) for count in (heads[0], *2 * [heads[1]], heads[0])]
    return [x.to(dtype)[:, 1:, dim:] for x in wide]


def both(launch: Launch, inputs: list[torch.Tensor]) -> list[list[torch.Tensor]]:
    """out, lse, dq, dk, dv by this kernel and by the reference kernel, for the rows and columns of the launch."""
    q, k, v, dout = inputs
    options = Options(0.3)
    rows, columns = (
        torch.cat([torch.arange(*part) for part in parts]) - parts[0][0]
        for parts in zip(*(((t.q.start, t.q.stop), (t.k.start, t.k.stop)) for t in launch.tiles), strict=True)
    )
    found, out, lse = [], torch.zeros_like(q), q.new_zeros(q.shape[1], len(q), dtype=torch.float64)
    for kernel in (REFERENCE, FLASH):
        assert kernel.supports(launch, q, KV(k, v), options) is None
        block, state = kernel.forward(q, KV(k, v), launch, options)
        if kernel is REFERENCE:
            box = slice(launch.rows.start, launch.rows.stop)
            out[box], lse[:, box] = block.out.to(q.dtype), block.lse.double()
            delta = (dout.double() * out.double()).sum(-1).T
        wide = torch.float64 if q.dtype == torch.float64 else torch.float32
        queries = Queries(q, out, dout, finite_or_nan(lse.to(wide)), delta.to(wide))
        grads: Grads = kernel.backward(queries, KV(k, v), launch, options, state, NO_OUT_GRADS)
        found.append([block.out[rows], block.lse[:, rows], grads.dq[rows], grads.dk[columns], grads.dv[columns]])
    return found


@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (3, 1)], ids=["MHA", "GQA", "MQA"])
@pytest.mark.parametrize("launch", LAUNCHES)
def test_launches(launch: str, heads: tuple[int, int]) -> None:
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-5), (torch.bfloat16, 0.05)):
        for expected, found in zip(*both(LAUNCHES[launch], draw(dtype, heads, 16)), strict=True):
            torch.testing.assert_close(found.double(), expected.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dim", [1, 7, 64, 256])
def test_head_dims(dim: int) -> None:
    for expected, found in zip(*both(LAUNCHES["causal"], draw(torch.float64, (4, 2), dim)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_tensors_whose_last_dimension_is_not_contiguous(dtype: torch.dtype) -> None:
    """The operator would compute something else from them, without a word."""
    plain = draw(dtype, (4, 2), 16)
    twisted = [x.transpose(0, 2).contiguous().transpose(0, 2) for x in plain]
    assert twisted[0].stride(-1) != 1
    launch = LAUNCHES["causal"]
    for expected, found in zip(both(launch, plain)[1], both(launch, twisted)[1], strict=True):
        # On some CPUs the last bit of float64 depends on where a tensor lies in memory.
        bits = 1e-12 if dtype == torch.float64 else 0.0
        torch.testing.assert_close(found, expected, rtol=bits, atol=bits)


def test_an_expanded_gradient() -> None:
    """What `out.sum().backward()` brings: one number with strides of 0."""
    inputs = draw(torch.float64, (4, 2), 16)
    expanded = [*inputs[:3], torch.ones((), dtype=torch.float64).expand_as(inputs[3])]
    for expected, found in zip(*both(LAUNCHES["causal, more keys"], expanded), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("odd", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", range(4), ids=["q", "k", "v", "dout"])
@pytest.mark.parametrize("launch", LAUNCHES)
def test_what_is_not_finite_comes_out_as_from_the_reference_kernel(launch: str, where: int, odd: float) -> None:
    """The operator makes 0 of a query of NaN that sees few keys, and spreads a value of NaN to rows that do not."""
    tile = LAUNCHES[launch].tiles[-1]
    for dtype in (torch.float64, torch.bfloat16):
        inputs = draw(dtype, (4, 2), 16)
        inputs[where][(tile.k if where in (1, 2) else tile.q)[0]] = odd
        for expected, found in zip(*both(LAUNCHES[launch], inputs), strict=True):
            torch.testing.assert_close(found.double(), expected.double(), rtol=0.05, atol=0.05, equal_nan=True)


def test_scores_beyond_the_range_of_float() -> None:
    """The first row sees one key, with a score of -inf: the operator makes out 0 and lse 0 of it."""
    inputs = draw(torch.float32, (4, 2), 16)
    inputs[0][2], inputs[1][5] = 1e30, -1e30
    for expected, found in zip(*both(LAUNCHES["causal"], inputs), strict=True):
        torch.testing.assert_close(found.double(), expected.double(), rtol=1e-4, atol=1e-4, equal_nan=True)


def test_what_is_not_finite_in_some_layouts_and_routes() -> None:
    for layout, route in (("zigzag", "ring"), ("striped", "waves"), ("contiguous", "gather")):
        for name, value in product("qkv", (torch.nan, torch.inf, -torch.inf)):
            for window in ((-1, 0), (-1, -1)):
                faults = Fault(name, 40 * 64 + 5, value), Fault(name, 3 * 64, value)
                problem = replace(PROBLEM, window=window, sinks=name == "q", faults=faults)
                parts = run(3, lambda comm, a=layout, b=route, c=problem: c.solve_on(comm, a, b, kernel=FLASH))
                assert_exact(parts, problem.solve())


@pytest.mark.parametrize("route", ["ring", "waves", "gather"])
@pytest.mark.parametrize("layout", ["contiguous", "zigzag", "striped"])
def test_it_runs_causal_attention_in_every_layout_and_route(layout: str, route: str) -> None:
    """From the global out and lse its gradients are this rank's share of the whole."""
    for problem in (PROBLEM, replace(PROBLEM, window=(-1, -1)), replace(PROBLEM, sinks=True)):
        parts = run(3, lambda comm, problem=problem: problem.solve_on(comm, layout, route, kernel=FLASH))
        assert_exact(parts, problem.solve())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("cp_size", [1, 4])
def test_errors_in_16_bits_are_fair(dtype: torch.dtype, cp_size: int) -> None:
    problem = replace(PROBLEM, dtype=dtype, head_dim=32, head_dim_v=32)
    for layout, route in (("zigzag", "ring"), ("contiguous", "gather"), ("striped", "waves")):
        parts = run(cp_size, lambda comm, a=layout, b=route: problem.solve_on(comm, a, b, kernel=FLASH))
        assert_fair(problem, parts)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"softcap": 1.0}, "it has no softcap"),
        ({"alibi_slopes": torch.ones(4), "dropout_p": 0.1}, "it has no ALiBi and no dropout"),
    ],
)
def test_options_that_it_has_not(changes: dict[str, object], why: str) -> None:
    q, k, v, _ = draw(torch.float32, (4, 2), 16)
    assert FLASH.supports(LAUNCHES["causal"], q, KV(k, v), Options(1.0, **changes)) == why


def test_tensors_that_it_does_not_take() -> None:
    q, k, v, _ = draw(torch.float32, (4, 2), 16)
    launch, options = LAUNCHES["causal"], Options(1.0)
    window = Launch((Tile(range(9), range(9), -2, 1),))
    for why, refused in (
        ("it takes one head dim for keys and values, not 16/8", (launch, q, KV(k, v[..., :8]))),
        (
            "it takes float64, float32, bfloat16 and float16, not torch.float8_e5m2",
            (launch, q.to(torch.float8_e5m2), KV(k, v)),
        ),
        ("it runs on a CPU and the tensors are on meta", (launch, q.to("meta"), KV(k, v))),
        ("it has causal and full masks only and a launch needs the window (2, 1)", (window, q, KV(k, v))),
    ):
        assert FLASH.supports(*refused, options) == why
