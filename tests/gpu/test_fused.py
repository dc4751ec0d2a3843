"""The fused sums against the eager ones, launch by launch, on schedules of every kind."""

from __future__ import annotations

import pytest
import torch

from ringattn_core.plan.layout import contiguous, striped, zigzag
from ringattn_core.plan.planner import plan
from ringattn_core.plan.route import gather, ring, waves
from ringattn_core.run.device_plan import device_plan
from ringattn_core.run.gradient import GradAccumulator
from ringattn_core.run.index import column_index, row_index
from ringattn_core.run.kernel import Block
from ringattn_core.run.merge import OutAccumulator

HEADS, DIM = 4, 96


def schedules():
    packed = (0, 100, 101, 101, 700, 903)
    for layout in (contiguous, zigzag, striped):
        for route in (ring, waves(2), gather):
            for borders in ((0, 1000), packed):
                for window in ((-1, 0), (130, 0), (-1, -1)):
                    for rank in (0, 3):
                        yield plan(layout, route, borders, borders, rank, 4, window=window)


def block_for(launch, spread: float) -> Block:
    out = torch.randn(len(launch.rows), HEADS, DIM, device="cuda").bfloat16()
    return Block(out, torch.randn(HEADS, len(launch.rows), device="cuda") * spread)


@pytest.mark.gpu
@pytest.mark.parametrize("spread", [1.0, 1e4])
def test_partial(spread: float) -> None:
    from ringattn_core.run.fused import FusedOutAccumulator

    for schedule in schedules():
        q = torch.empty(schedule.query_length, HEADS, DIM, device="cuda", dtype=torch.bfloat16)
        indices = device_plan(schedule, q.device)
        eager, fused = OutAccumulator(indices, q, DIM), FusedOutAccumulator(indices, q, DIM)
        for step in schedule.steps:
            for launch in step.launches:
                block = block_for(launch, spread)
                eager.add(launch, Block(block.out.clone(), block.lse.clone()))
                fused.add(launch, block)
        sinks = torch.randn(HEADS, device="cuda")
        (want, want_lse), (got, got_lse) = eager.finish(torch.float32, sinks), fused.finish(torch.bfloat16, sinks)
        torch.testing.assert_close(got_lse, want_lse, rtol=1e-6, atol=1e-5)
        torch.testing.assert_close(got.float(), want, rtol=2e-2, atol=2e-2)


@pytest.mark.gpu
def test_a_fold_weighs_a_whole_row_by_its_old_lse() -> None:
    """Many rows, over and over: warps that hold the same row read its lse before one of them writes it."""
    from ringattn_core.run.fused import FusedOutAccumulator

    schedule = plan(zigzag, ring, (0, 8192), (0, 8192), 1, 2, window=(-1, 0))
    q = torch.empty(schedule.query_length, HEADS, DIM, device="cuda", dtype=torch.bfloat16)
    for _ in range(30):
        indices = device_plan(schedule, q.device)
        eager, fused = OutAccumulator(indices, q, DIM), FusedOutAccumulator(indices, q, DIM)
        for launch in (launch for step in schedule.steps for launch in step.launches):
            block = block_for(launch, 3.0)
            eager.add(launch, Block(block.out.clone(), block.lse.clone()))
            fused.add(launch, block)
        torch.testing.assert_close(
            fused.finish(torch.bfloat16)[0].float(), eager.finish(torch.float32)[0], rtol=2e-2, atol=2e-2
        )


@pytest.mark.gpu
def test_no_live_key() -> None:
    """A row that no launch touches has out 0 and lse -inf; in a launch every row sees a key, and -inf is no sum."""
    from ringattn_core.run.fused import FusedOutAccumulator

    schedule = plan(contiguous, gather, (0, 8), (0, 4), 0, 1, window=(-1, 0))
    q = torch.empty(8, HEADS, DIM, device="cuda", dtype=torch.bfloat16)
    partial = FusedOutAccumulator(device_plan(schedule, q.device), q, DIM)
    for launch in schedule.steps[0].launches:
        partial.add(launch, block_for(launch, 1.0))
    out, lse = partial.finish(torch.bfloat16)
    assert (out[:4] == 0).all() and (lse[:, :4] == -torch.inf).all() and lse[:, 4:].isfinite().all()

    schedule = plan(contiguous, ring, (0, 64), (0, 64), 1, 2)
    (first,), (second,) = (step.launches for step in schedule.steps)
    partial, block = FusedOutAccumulator(device_plan(schedule, q.device), q, DIM), block_for(first, 1.0)
    nothing = Block(torch.full_like(block.out, torch.nan), torch.full_like(block.lse, -torch.inf))
    partial.add(first, block)
    partial.add(second, nothing)
    out, lse = partial.finish(torch.bfloat16)
    assert out.isnan().all() and lse.isnan().all()


@pytest.mark.gpu
@pytest.mark.parametrize("fault", [(0.0, torch.inf), (torch.nan, torch.inf), (0.0, -torch.inf), (torch.nan, torch.nan)])
def test_what_is_not_finite_stays_in_its_row(fault: tuple[float, float]) -> None:
    """As FlashAttention 2, 3 and 4 tell of a sum that is not finite, whenever the row comes."""
    from ringattn_core.run.fused import FusedOutAccumulator

    for schedule in schedules():
        q = torch.empty(schedule.query_length, HEADS, DIM, device="cuda", dtype=torch.bfloat16)
        indices = device_plan(schedule, q.device)
        eager, fused, bad = OutAccumulator(indices, q, DIM), FusedOutAccumulator(indices, q, DIM), set[int]()
        for number, launch in enumerate(launch for step in schedule.steps for launch in step.launches):
            block, tile = block_for(launch, 1.0), launch.tiles[number % len(launch.tiles)]
            row = tile.q[number % len(tile.q)]
            bad.add(row)
            block.out[row - launch.rows.start, 1], block.lse[1, row - launch.rows.start] = fault
            eager.add(launch, Block(block.out.clone(), block.lse.clone()))
            fused.add(launch, block)
        (want, want_lse), (got, got_lse) = eager.finish(torch.float32), fused.finish(torch.bfloat16)
        marked = torch.zeros(HEADS, len(got), dtype=torch.bool, device="cuda")
        marked[1, sorted(bad)] = True
        assert got_lse[marked].isnan().all() and got[marked.T].isnan().all()
        torch.testing.assert_close(got_lse[~marked], want_lse[~marked], rtol=1e-6, atol=1e-5)
        torch.testing.assert_close(got[~marked.T].float(), want[~marked.T], rtol=2e-2, atol=2e-2)


@pytest.mark.gpu
def test_sums() -> None:
    from ringattn_core.run.fused import fused_columns, fused_rows

    for schedule in schedules():
        q = torch.empty(schedule.query_length, HEADS, DIM, device="cuda", dtype=torch.bfloat16)
        indices = device_plan(schedule, q.device)
        eager_rows, rows = GradAccumulator(indices, q, row_index), fused_rows(indices, q, DIM)
        for step in schedule.steps:
            x = torch.empty(schedule.buffer_length(step), HEADS, DIM, device="cuda", dtype=torch.bfloat16)
            eager_columns, columns = GradAccumulator(indices, x, column_index), fused_columns(indices, step, x)
            for launch in step.launches:
                dq = torch.randn(len(launch.rows), HEADS, DIM, device="cuda").bfloat16()
                dk = torch.randn(len(launch.columns), HEADS, DIM, device="cuda").bfloat16()
                eager_rows.add(launch, dq.clone())
                eager_columns.add(launch, dk.clone())
                rows.add(launch, dq)
                columns.add(launch, dk)
            torch.testing.assert_close(columns.total.float(), eager_columns.total, rtol=1e-2, atol=2e-2)
        torch.testing.assert_close(rows.total.float(), eager_rows.total, rtol=1e-2, atol=2e-2)


@pytest.mark.gpu
def test_parts() -> None:
    """Parts of whatever rows, some of none, in one pass as one after the other."""
    from ringattn_core.run.accumulate import add_parts
    from ringattn_core.run.gradient import Part, part_sum
    from ringattn_core.run.index import places

    device, like = torch.device("cuda"), torch.empty(100, 8, DIM, device="cuda", dtype=torch.bfloat16)[:, :HEADS]
    runs = [[(range(100), 0)], [(range(3, 9), 40), (range(50, 90), 0)], [(range(8, 52), 7)], []]
    parts = [Part(torch.randn(100, HEADS, DIM, device="cuda").bfloat16(), places(some, 100, device)) for some in runs]
    for count in range(len(parts) + 1):
        got, want = add_parts(like, parts[:count]), part_sum(like, parts[:count])
        assert got.dtype == torch.bfloat16 and got.is_contiguous()
        assert torch.equal(got, want.bfloat16())


@pytest.mark.gpu
@pytest.mark.parametrize("sets", [1, 3, 8])
@pytest.mark.parametrize("tokens", [1, 5])
def test_merge_of_gathered_results(sets: int, tokens: int) -> None:
    """Of a decoding step, with a query whose lse is -inf in all sets, and one whose lse is NaN."""
    from ringattn_core.run import merge
    from ringattn_core.run.accumulate import merge_gathered

    gathered = torch.randn(sets, 2, HEADS, tokens, DIM + 1, device="cuda")
    gathered[:, 1, 0, 0], gathered[:, 1, 0, 0, -1] = 0.0, -torch.inf
    gathered[0, 0, 1, 0, -1] = torch.nan
    for sinks in (None, torch.randn(HEADS, device="cuda", dtype=torch.bfloat16)):
        found, expected = (f(gathered, torch.bfloat16, sinks) for f in (merge_gathered, merge.merge_gathered))
        assert (found[1, 0, 0].isnan() if sinks is None else found[1, 0, 0] == 0).all() and found[0, 0, 1].isnan().all()
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2, equal_nan=True)
