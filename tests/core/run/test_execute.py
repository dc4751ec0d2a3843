"""The two loops: what reaches the kernel, in which order, and what comes out of them."""

from __future__ import annotations

from functools import partial
from itertools import product

import pytest
import torch
from torch import Tensor

from problem import Problem, assemble, assert_exact, assert_fair
from ringattn_comms.backends.threads import run
from ringattn_comms.communicator import Communicator
from ringattn_comms.connect import connect
from ringattn_core.errors import UnsupportedError
from ringattn_core.kernels.reference import Reference
from ringattn_core.kernels.torch_flash_cpu import TorchFlashCpu
from ringattn_core.plan.layout import contiguous, layout_named, zigzag
from ringattn_core.plan.planner import plan
from ringattn_core.plan.route import ring, route_named, waves
from ringattn_core.plan.schedule import Launch, Schedule
from ringattn_core.run.execute import Gradients, Result, attend, attend_backward
from ringattn_core.run.head_groups import attend_in_groups
from ringattn_core.run.kernel import Block, Grads, Kernel, Options, OutGrads, Queries
from ringattn_core.run.transport import KV, LocalTransport

PACKED = (0, 9, 9, 12, 30)
LAYOUTS, ROUTES = ("contiguous", "zigzag", "striped"), ("ring", "waves(2)", "waves(3)", "gather")


class Recorder(Reference):
    """The reference kernel, keeping a record; the state that it draws in a launch is the launch's number."""

    def __init__(self) -> None:
        self.forwards: list[Launch] = []
        self.backwards: list[tuple[Launch, int]] = []
        self.shapes: list[tuple[torch.Size, torch.Size]] = []

    def forward(
        self, q: Tensor, kv: KV, launch: Launch, options: Options, out_block: Block | None = None
    ) -> tuple[Block, Tensor | None]:
        self.forwards.append(launch)
        self.shapes.append((q.shape, kv.k.shape))
        block, _ = super().forward(q, kv, launch, options)
        return block, torch.tensor(len(self.forwards) - 1)

    def backward(
        self, queries: Queries, kv: KV, launch: Launch, options: Options, rng_state: Tensor | None, out_grads: OutGrads
    ) -> Grads:
        assert rng_state is not None
        self.backwards.append((launch, int(rng_state)))
        return super().backward(queries, kv, launch, options, rng_state, out_grads)


def launches(schedule: Schedule) -> list[Launch]:
    return [launch for step in schedule.steps for launch in step.launches]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("route", ROUTES)
def test_every_launch_runs_once_and_gets_its_random_state_back(layout: str, route: str) -> None:
    problem, kernels = Problem(PACKED, window=(-1, 0)), [Recorder() for _ in range(3)]
    parts = run(3, lambda comm: problem.solve_on(comm, layout, route, kernel=kernels[comm.rank], head_groups=2))
    assert_exact(parts, problem.solve())
    for kernel in kernels:
        assert kernel.forwards
        assert kernel.backwards == [(launch, number) for number, launch in enumerate(kernel.forwards)]


def test_a_result_says_what_it_is() -> None:
    schedule = plan(contiguous, ring, (0, 6), (0, 6), 0, 1, window=(-1, 0))
    q, k, v = (torch.randn(6, 2, 8).bfloat16() for _ in range(3))
    result = attend(LocalTransport(schedule, KV(k, v)), Reference(), q, Options(1.0))
    assert (result.out.shape, result.out.dtype) == (q.shape, torch.bfloat16)
    assert (result.lse.shape, result.lse.dtype) == ((2, 6), torch.float32)
    assert len(result.rng_states) == len(launches(schedule))
    grads = attend_backward(LocalTransport(schedule, KV(k, v)), Reference(), result.out, q, result, Options(1.0))
    for grad, x in zip(grads[:3], (q, k, v), strict=True):
        assert (grad.shape, grad.dtype) == (x.shape, torch.float32)
    assert grads.dsinks is None


def test_no_tokens_at_all() -> None:
    """Two ranks without a single token between them: nothing to compute, and nothing breaks."""
    problem = Problem((0, 0, 0), sinks=True)
    assert_exact(run(2, problem.solve_on), problem.solve())


def test_queries_without_keys_see_nothing() -> None:
    problem = Problem((0, 4, 9), (0, 0, 3), window=(-1, 0))
    answer = assemble(run(2, problem.solve_on))
    assert (answer.lse[:, :6] == -torch.inf).all()
    assert (answer.out[:6] == 0).all()
    assert (answer.dq[:6] == 0).all()
    assert answer.lse[:, 6:].isfinite().all()


def test_a_gradient_of_lse_needs_a_kernel_that_takes_delta() -> None:
    class Headstrong(Reference):
        accepts_delta = False

    schedule = plan(contiguous, ring, (0, 4), (0, 4), 0, 1)
    q = torch.randn(4, 1, 2)
    result = Result(q, torch.zeros(1, 4), [None])
    with pytest.raises(
        UnsupportedError, match=r"gradient of lse .* kernel 'reference' has no place for it: choose one"
    ):
        transport = LocalTransport(schedule, KV(q, q))
        attend_backward(transport, Headstrong(), q, q, result, Options(1.0), None, torch.ones(1, 4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("cp_size", [1, 4])
def test_errors_in_16_bits_are_fair(dtype: torch.dtype, cp_size: int) -> None:
    problem = Problem((0, 40, 100), window=(-1, 0), head_dim=32, head_dim_v=32, sinks=True, dtype=dtype)
    for layout, route in product(LAYOUTS, ("ring", "gather")):
        assert_fair(problem, run(cp_size, lambda comm, a=layout, b=route: problem.solve_on(comm, a, b)))


def test_float32_is_float32() -> None:
    problem = Problem((0, 40, 100), window=(-1, 0), head_dim=32, head_dim_v=32, sinks=True, dtype=torch.float32)
    assert_exact(run(4, problem.solve_on), problem.solve(), tolerance=1e-4)


@pytest.mark.parametrize("kernel", [Reference(), TorchFlashCpu()], ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_scales_that_are_not_positive(kernel: Kernel, dtype: torch.dtype) -> None:
    """A negative scale is a positive one for -q, to the last bit; under a scale of 0 every key weighs the same."""
    torch.manual_seed(0)
    schedule = plan(contiguous, ring, (0, 6), (0, 6), 0, 1, window=(-1, 0))
    q, k, v, dout = (torch.randn(6, 2, 8, dtype=dtype) for _ in range(4))

    def solve(q: Tensor, scale: float) -> tuple[Result, Gradients]:
        result = attend(LocalTransport(schedule, KV(k, v)), kernel, q, Options(scale))
        return result, attend_backward(LocalTransport(schedule, KV(k, v)), kernel, dout, q, result, Options(scale))

    (got, grads), (want, wanted) = solve(q, -0.3), solve(-q, 0.3)
    assert torch.equal(got.out, want.out) and torch.equal(got.lse, want.lse)
    assert torch.equal(grads.dq, -wanted.dq) and torch.equal(grads.dk, wanted.dk) and torch.equal(grads.dv, wanted.dv)
    result, grads = solve(q, 0.0)
    mean = v.double().cumsum(0) / torch.arange(1, 7)[:, None, None]
    torch.testing.assert_close(result.out.double(), mean, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-2)
    assert (grads.dq == 0).all() and (grads.dk == 0).all() and grads.dv.isfinite().all()


# Dropout: one mask for a seed, whoever computes it.


def kept(comm: Communicator, layout: str, route: str, head_groups: int, seed: int) -> tuple[list[int], Tensor]:
    """This rank's rows of the mask, and where they stand in the stream: what values that are unit vectors come to."""
    problem = Problem(PACKED, dropout_p=0.4, seed=seed)
    schedule = plan(layout_named(layout), route_named(route), *problem.borders, comm.rank, comm.size)
    queries, keys = (sharding.positions(comm.rank) for sharding in (schedule.queries, schedule.keys))
    q = torch.zeros(len(queries), 4, 1, dtype=torch.float64)
    values = torch.eye(PACKED[-1], dtype=torch.float64)[keys].unsqueeze(1).expand(-1, 2, -1)
    kv = KV(q.new_zeros(len(keys), 2, 1), values)
    result = attend_in_groups(head_groups, partial(connect, comm, schedule), Reference(), q, kv, problem.options(None))
    return queries, result.out > 0


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cp_size", [2, 3, 5])
def test_the_dropout_mask_is_that_of_one_rank(cp_size: int, layout: str) -> None:
    ((order, alone),) = run(1, lambda comm: kept(comm, "contiguous", "ring", 1, seed=3))
    assert order == list(range(PACKED[-1]))
    for route, head_groups in (("ring", 1), ("waves(2)", 2), ("gather", 1)):
        parts = run(cp_size, lambda comm, a=route, b=head_groups: kept(comm, layout, a, b, seed=3))
        for rows, mask in parts:
            assert torch.equal(mask, alone[rows])


def test_positions_of_cross_attention_are_aligned_to_the_bottom_right() -> None:
    """ALiBi sees distance 0 where a causal mask has its diagonal, in every sequence."""
    problem = Problem((0, 3, 10), (0, 7, 9), window=(-1, 0), alibi="head")
    for cp_size, layout in product((1, 3), LAYOUTS):
        assert_exact(run(cp_size, lambda comm, a=layout: problem.solve_on(comm, a)), problem.solve())


def test_schedules_are_walked_step_by_step() -> None:
    """The keys of a step are asked for only when those of the step before have been used: one buffer may serve all."""

    class Reused(LocalTransport):
        def __iter__(self):
            for step, part in super().__iter__():
                buffer = KV(part.k.clone(), part.v.clone())
                yield step, buffer
                buffer.k.fill_(torch.nan)
                buffer.v.fill_(torch.nan)

    schedule = plan(zigzag, waves(2), (0, 12), (0, 12), 0, 1, window=(-1, 0))
    q, k, v = (torch.randn(12, 4, 8, dtype=torch.float64) for _ in range(3))
    expected, result = (attend(to(schedule, KV(k, v)), Reference(), q, Options(1.0)) for to in (LocalTransport, Reused))
    assert torch.equal(expected.out, result.out)
    wanted, grads = (
        attend_backward(to(schedule, KV(k, v)), Reference(), q, q, result, Options(1.0))
        for to in (LocalTransport, Reused)
    )
    for mine, other in zip(grads[:3], wanted[:3], strict=True):
        assert torch.equal(mine, other)
