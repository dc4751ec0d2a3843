"""Schedules of masks: proved cell by cell, and run over threads against dense attention in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce
from operator import or_

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ringattn_comms.backends.threads import Threads, ThreadSharedBuffers, run
from ringattn_comms.communicator import Communicator
from ringattn_comms.connect import connect
from ringattn_comms.one_sided import OneSided
from ringattn_comms.ring import Ring
from ringattn_comms.waves import Waves
from ringattn_core.kernels.reference import Reference
from ringattn_core.look.verify import ScheduleError, verify
from ringattn_core.plan import masks
from ringattn_core.plan.layout import Layout, balanced, contiguous, striped, zigzag
from ringattn_core.plan.mask import Mask
from ringattn_core.plan.mask_planner import plan_mask
from ringattn_core.plan.planner import outgoing_rows, plan
from ringattn_core.plan.route import Route, gather, ring, waves
from ringattn_core.plan.schedule import Schedule
from ringattn_core.plan.tile import FAR, Tile
from ringattn_core.run.execute import attend, attend_backward
from ringattn_core.run.kernel import Options
from ringattn_core.run.transport import KV, Transport

TRANSPORTS = ("connect", "one_sided", "ring", "waves")


@dataclass(frozen=True)
class Case:
    """A mask and how it is planned."""

    mask: Mask
    layout: Layout
    route: Route
    cp_size: int
    borders: tuple[int, ...] | None
    per_sequence: bool
    transport: str
    kv_heads: int

    def plan(self) -> list[Schedule]:
        return [
            plan_mask(
                *(self.mask, self.layout, self.route, rank, self.cp_size),
                cu_seqlens=self.borders,
                per_sequence=self.per_sequence,
            )
            for rank in range(self.cp_size)
        ]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    n = draw(st.integers(1, 40))
    parts = st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True).map(lambda ends: range(*sorted(ends)))
    sides = st.integers(-n, n)
    bands = [
        Tile(draw(parts), draw(parts), draw(sides | st.just(-FAR)), draw(sides | st.just(FAR)))
        for _ in range(draw(st.integers(0, 6)))
    ]
    mask = reduce(or_, (Mask((band,), n, n) for band in bands), Mask((), n, n))
    inner = draw(st.none() | st.lists(st.integers(0, n), max_size=4))
    return Case(
        mask,
        draw(st.sampled_from([contiguous, zigzag, balanced])),
        draw(st.sampled_from([ring, waves(2), waves(3), gather])),
        draw(st.integers(1, 5)),
        None if inner is None else (0, *sorted(inner), n),
        draw(st.booleans()),
        draw(st.sampled_from(TRANSPORTS)),
        draw(st.sampled_from([1, 2, 4])),
    )


def transport(case: Case, comm: Communicator, schedule: Schedule, kv: KV) -> Transport:
    if comm.size > 1 and case.transport == "one_sided":
        assert isinstance(comm, Threads)
        return OneSided(schedule, kv, ThreadSharedBuffers(comm))
    if comm.size > 1 and case.transport == "waves":
        return Waves(schedule, kv, comm, comm.second_communicator(kv.k.device))
    if comm.size > 1 and case.transport == "ring" and schedule.shifts:
        return Ring(schedule, kv, comm, comm.second_communicator(kv.k.device))
    return connect(comm, schedule, kv)


def in_shards(case: Case, q: Tensor, k: Tensor, v: Tensor, dout: Tensor) -> list[Tensor]:
    """out, dq, dk and dv of all ranks, in the order of the stream."""
    schedules, options = case.plan(), Options(0.4)
    whole = [torch.full_like(x, torch.nan) for x in (q, q, k, v)]

    def main(comm: Communicator) -> None:
        schedule = schedules[comm.rank]
        rows = torch.tensor(schedule.queries.positions(comm.rank), dtype=torch.long)
        kv = KV(k[rows], v[rows])
        result = attend(transport(case, comm, schedule, kv), Reference(), q[rows], options)
        back = transport(case, comm, schedule, kv)
        grads = attend_backward(back, Reference(), dout[rows], q[rows], result, options)
        for total, part in zip(whole, (result.out, grads.dq, grads.dk, grads.dv), strict=True):
            total[rows] = part

    run(case.cp_size, main)
    return whole


def densely(mask: Mask, q: Tensor, k: Tensor, v: Tensor, dout: Tensor) -> list[Tensor]:
    live = torch.tensor([list(row) for row in mask.dense()], dtype=torch.bool)
    inputs = [x.clone().requires_grad_() for x in (q, k, v)]
    keys, values = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in inputs[1:])
    scores = 0.4 * torch.einsum("ihd,jhd->hij", inputs[0], keys)
    weights = torch.where(live, scores, -1e300).softmax(-1) * live
    out = torch.einsum("hij,jhd->ihd", weights, values)
    return [out.detach(), *torch.autograd.grad(out, inputs, dout)]


@settings(max_examples=150, deadline=None)
@given(cases(), st.integers(0, 1 << 30))
def test_random_masks_are_exact(case: Case, seed: int) -> None:
    verify(case.plan())
    draw = torch.Generator().manual_seed(seed)
    heads = (4, case.kv_heads, case.kv_heads, 4)
    q, k, v, dout = (
        torch.randn(case.mask.num_queries, count, 4, generator=draw, dtype=torch.float64) for count in heads
    )
    wanted, found = densely(case.mask, q, k, v, dout), in_shards(case, q, k, v, dout)
    for name, a, b in zip(("out", "dq", "dk", "dv"), found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("route", [ring, waves(2), gather])
def test_a_causal_mask_takes_the_launches_of_the_causal_planner(route: Route) -> None:
    for layout in (contiguous, zigzag):
        for rank in range(4):
            ours = plan_mask(masks.causal(64), layout, route, rank, 4)
            theirs = plan(layout, route, (0, 64), (0, 64), rank, 4, window=(-1, 0))
            assert [step.hop for step in ours.steps] == [step.hop for step in theirs.steps]
            for a, b in zip(ours.steps, theirs.steps, strict=True):
                assert [tuple(x.tiles) for x in a.launches] == [tuple(x.tiles) for x in b.launches]
                assert tuple(a.key_slices) == tuple(b.key_slices)


def test_hops_without_a_live_cell_are_left_out_for_all() -> None:
    mask = masks.packed([8] * 4)
    for rank in range(4):
        assert [step.hop for step in plan_mask(mask, contiguous, ring, rank, 4).steps] == [0]


def test_verify_sees_a_missing_tile_and_one_that_is_computed_twice() -> None:
    schedules = [plan_mask(masks.causal(16), contiguous, ring, rank, 2) for rank in range(2)]
    step = schedules[1].steps[0]
    for launches in ((), step.launches * 2):
        wrong = replace(schedules[1], steps=(replace(step, launches=launches), *schedules[1].steps[1:]))
        with pytest.raises(ScheduleError, match=r"not computed|overlap"):
            verify([schedules[0], wrong])


def test_what_cannot_be_planned_is_refused() -> None:
    causal = masks.causal(16)
    with pytest.raises(ValueError, match="every 2th token"):
        plan_mask(causal, striped, ring, 0, 2)
    with pytest.raises(ValueError, match="the mask has 16 tokens"):
        plan_mask(causal, contiguous, ring, 0, 2, cu_seqlens=(0, 8))
    with pytest.raises(ValueError, match="same number of both"):
        plan_mask(Mask((Tile(range(2), range(3)),), 2, 3), contiguous, ring, 0, 2)
    with pytest.raises(ValueError, match="got 3 for 16 tokens"):
        plan_mask(causal, contiguous, ring, 0, 2, batch=3)
    with pytest.raises(ValueError, match="cp_rank"):
        plan_mask(causal, contiguous, ring, 2, 2)


@pytest.mark.parametrize("layout", [contiguous, zigzag, balanced])
def test_a_batch_is_divided_row_by_row(layout: Layout) -> None:
    rows = masks.end_to_end([masks.prefix(16, 5), masks.causal(16)])
    schedules = [plan_mask(rows, layout, ring, rank, 2, per_sequence=False, batch=2) for rank in range(2)]
    verify(schedules)
    for rank, schedule in enumerate(schedules):
        one = plan_mask(masks.causal(16), layout, ring, rank, 2, per_sequence=False).queries.positions(rank)
        assert schedule.queries.positions(rank) == [*one, *(16 + position for position in one)]


def test_plans_are_cached() -> None:
    first = plan_mask(masks.causal(16), contiguous, ring, 0, 2)
    assert plan_mask(masks.causal(16), contiguous, ring, 0, 2) is first


def test_a_single_source_lends_what_lies_between_the_rows_that_are_needed() -> None:
    mask = Mask((Tile(range(8, 16), range(2)), Tile(range(8, 16), range(4, 6))), 16, 16)
    schedules = [plan_mask(mask, contiguous, ring, rank, 2) for rank in range(2)]
    verify(schedules)
    assert [key_slice.rows for key_slice in outgoing_rows(schedules[0], 1)] == [range(6)]
