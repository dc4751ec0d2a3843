"""The fused sums against the eager ones, on a CPU by Triton's interpreter: a program, for it has to be asked for early.

Run as `TRITON_INTERPRET=1 python tests/core/run/fused.py`; tests/gpu/test_fused.py has more, on a GPU.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

from ringattn_core.plan.layout import contiguous, striped, zigzag
from ringattn_core.plan.planner import plan
from ringattn_core.plan.route import gather, ring, waves
from ringattn_core.plan.row_writes import RowWrite
from ringattn_core.plan.schedule import Launch, Schedule
from ringattn_core.run.device_plan import device_plan
from ringattn_core.run.fused import FusedOutAccumulator, fused_columns, fused_rows
from ringattn_core.run.fused_merge import merge_gathered as fused_merge_gathered
from ringattn_core.run.fused_parts import fused_parts
from ringattn_core.run.gradient import GradAccumulator, Part, part_sum
from ringattn_core.run.index import column_index, places, row_index
from ringattn_core.run.kernel import Block
from ringattn_core.run.merge import OutAccumulator, merge_gathered
from ringattn_core.run.row_flags import flags

HEADS, DIM, DTYPE = 2, 12, torch.bfloat16
NAN, INF = torch.nan, torch.inf
# What a kernel may say of a row whose sum of exponentials is not finite: FlashAttention 2, 3 and 4, and plain PyTorch.
UNDEFINED = [(NAN, INF), (0.0, INF), (NAN, -INF), (0.0, -INF), (NAN, NAN)]


def schedules() -> Iterator[Schedule]:
    """One launch and many, rows that are touched once to three times, and rows that are never touched."""
    packed, fewer = (0, 40, 41, 41, 90), (0, 10, 10, 11, 60)
    for layout, route, keys, window in (
        (zigzag, ring, packed, (-1, 0)),
        (contiguous, ring, packed, (-1, -1)),
        (striped, waves(2), packed, (20, 0)),
        (zigzag, gather, fewer, (-1, 0)),
        (contiguous, ring, fewer, (-1, 0)),
    ):
        yield plan(layout, route, packed, keys, 1, 3, window=window)
    yield plan(contiguous, ring, (0, 50), (0, 50), 0, 1)  # its one block is the result itself


def launches(schedule: Schedule) -> list[Launch]:
    return [launch for step in schedule.steps for launch in step.launches]


def tile_rows(launch: Launch) -> Tensor:
    return torch.cat([torch.arange(tile.q.start, tile.q.stop) for tile in launch.tiles])


def add(schedule: Schedule, fault: tuple[float, float] | None, sinks: Tensor | None) -> tuple[list[Tensor], set[int]]:
    """(out and lse, eager and fused), and the rows of head 0 into which a fault was put."""
    q = torch.empty(schedule.query_length, HEADS, DIM, dtype=DTYPE)
    indices = device_plan(schedule, q.device)
    eager, fused, bad = OutAccumulator(indices, q, DIM), FusedOutAccumulator(indices, q, DIM), set[int]()
    for number, launch in enumerate(launches(schedule)):
        out = torch.randn(len(launch.rows), HEADS, DIM).to(DTYPE)
        lse = torch.randn(HEADS, len(launch.rows)) * 3
        inside = tile_rows(launch) - launch.rows.start
        between = torch.ones(len(launch.rows), dtype=torch.bool).index_fill_(0, inside, False)
        out[between], lse[:, between] = NAN, NAN  # What lies between the tiles belongs to others.
        if fault is not None:
            row = int(inside[number % len(inside)])
            bad.add(row + launch.rows.start)
            out[row, 0], lse[0, row] = fault
        eager.add(launch, Block(out.clone(), lse.clone()))
        fused.add(launch, Block(out, lse))
    return [*eager.finish(torch.float32, sinks), *fused.finish(DTYPE, sinks)], bad


def check_row_flags() -> None:
    """The example in the docstring."""
    writes = [(2, 0, True), (3, 0, False), (4, 1, True), (5, 1, False), (6, 2, True)]
    found = [RowWrite(range(row, row + 1), before, last) for row, before, last in writes]
    assert flags(found, range(2, 8), torch.device("cpu")).tolist() == [1, 1, 3, 11, 5, 0]


def check_partial() -> None:
    for schedule in schedules():
        for sinks in (None, torch.tensor([0.5, -1.0])):
            (want, want_lse, got, got_lse), _ = add(schedule, None, sinks)
            torch.testing.assert_close(got_lse, want_lse, rtol=1e-6, atol=1e-5)
            torch.testing.assert_close(got.float(), want, rtol=2e-2, atol=2e-2)
            assert got.isfinite().all()


def check_what_is_not_finite() -> None:
    for schedule in schedules():
        for fault in UNDEFINED:
            (want, want_lse, got, got_lse), bad = add(schedule, fault, None)
            marked, good = sorted(bad), [row for row in range(len(got)) if row not in bad]
            assert got[marked, 0].isnan().all() and got_lse[0, marked].isnan().all()
            for head, rows in ((0, good), (1, range(len(got)))):
                torch.testing.assert_close(got_lse[head, rows], want_lse[head, rows], rtol=1e-6, atol=1e-5)
                torch.testing.assert_close(got[rows, head].float(), want[rows, head], rtol=2e-2, atol=2e-2)


def check_values_that_are_not_finite() -> None:
    """lse is finite, and out is not, in one place: it stays there, however little the block weighs."""
    schedule = plan(contiguous, ring, (0, 60), (0, 60), 1, 3)
    for lse in (0.0, -1e4):
        q = torch.empty(schedule.query_length, HEADS, DIM, dtype=DTYPE)
        fused = FusedOutAccumulator(device_plan(schedule, q.device), q, DIM)
        for number, launch in enumerate(launches(schedule)):
            block = Block(torch.randn(len(launch.rows), HEADS, DIM).to(DTYPE), torch.zeros(HEADS, len(launch.rows)))
            if number == 1:
                block.out[3, 1, 5], block.lse[1, 3] = NAN, lse
            fused.add(launch, block)
        out, total = fused.finish(DTYPE)
        assert total.isfinite().all() and out.isnan().nonzero().tolist() == [[3, 1, 5]]


def check_sums() -> None:
    """Of gradients, some not finite, with NaN between the tiles."""
    for schedule in schedules():
        q = torch.empty(schedule.query_length, HEADS, DIM, dtype=DTYPE)
        indices = device_plan(schedule, q.device)
        eager_rows, rows = GradAccumulator(indices, q, row_index), fused_rows(indices, q, DIM)
        for step in schedule.steps:
            x = torch.empty(schedule.buffer_length(step), HEADS, DIM, dtype=DTYPE)
            eager_columns, columns = GradAccumulator(indices, x, column_index), fused_columns(indices, step, x)
            for launch in step.launches:
                dq = torch.full((len(launch.rows), HEADS, DIM), NAN, dtype=DTYPE)
                dk = torch.full((len(launch.columns), HEADS, DIM), NAN, dtype=DTYPE)
                for tile in launch.tiles:
                    inside = slice(tile.q.start - launch.rows.start, tile.q.stop - launch.rows.start)
                    dq[inside] = torch.randn(len(tile.q), HEADS, DIM).to(DTYPE)
                    inside = slice(tile.k.start - launch.columns.start, tile.k.stop - launch.columns.start)
                    dk[inside] = torch.randn(len(tile.k), HEADS, DIM).to(DTYPE)
                dq[-1, 0, 3], dk[-1, 1, 2] = NAN, INF
                eager_rows.add(launch, dq.clone())
                eager_columns.add(launch, dk.clone())
                rows.add(launch, dq)
                columns.add(launch, dk)
            close(columns.total, eager_columns.total)
        close(rows.total, eager_rows.total)


def check_parts() -> None:
    like, cpu = torch.empty(50, HEADS, DIM, dtype=DTYPE), torch.device("cpu")
    runs = [[(range(50), 0)], [(range(3, 9), 40), (range(20, 40), 0)], []]
    parts = [Part(torch.randn(50, HEADS, DIM).to(DTYPE), places(some, 50, cpu)) for some in runs]
    for part in parts:
        part.found[5], part.found[45, 0] = NAN, INF
    close(fused_parts(like, parts), part_sum(like, parts))


def check_merge_gathered() -> None:
    """One to five sets of keys; lse -inf in one set and in all, with and without a sink; NaN and inf."""
    for sets, tokens, sinks in ((1, 1, None), (2, 3, torch.tensor([0.5, -1.0])), (5, 2, torch.tensor([-INF, 90.0]))):
        gathered = torch.randn(sets, 3, HEADS, tokens, DIM + 1)
        gathered[..., -1] *= 30.0
        gathered[0, 1, 0], gathered[:, 2, :, 0] = (torch.tensor([0.0] * DIM + [-INF]) for _ in range(2))
        for lse in (0.0, NAN, INF):
            gathered[-1, 0, 1, 0, -1] = lse
            for dtype in (torch.float32, torch.bfloat16):
                got, want = (merge(gathered, dtype, sinks) for merge in (fused_merge_gathered, merge_gathered))
                assert got.dtype == want.dtype == dtype and got.shape == (3, tokens, HEADS, DIM)
                assert got[0, 0, 1].isnan().all() == (lse != 0.0)
                has_sink = torch.zeros(HEADS, dtype=torch.bool) if sinks is None else sinks.isfinite()
                assert (got[2, 0, has_sink] == 0).all() and got[2, 0, ~has_sink].isnan().all()
                exact = dtype == torch.float32
                torch.testing.assert_close(
                    got, want, rtol=1e-5 if exact else 1e-2, atol=1e-5 if exact else 1e-2, equal_nan=True
                )


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got.float(), want, rtol=1e-2, atol=2e-2, equal_nan=True)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", "invalid value", RuntimeWarning)  # numpy's, of the interpreter
    torch.manual_seed(0)
    for check in (
        check_row_flags,
        check_partial,
        check_what_is_not_finite,
        check_values_that_are_not_finite,
        check_sums,
        check_parts,
        check_merge_gathered,
    ):
        check()
        print(check.__name__)
