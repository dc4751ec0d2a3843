"""Schedules of masks: proved cell by cell, and run over threads against dense attention in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial, reduce
from itertools import accumulate
from operator import or_

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from plans import returning, wound
from ringattn_comms.backends.threads import Threads, ThreadSharedBuffers, run
from ringattn_comms.communicator import Communicator
from ringattn_comms.connect import connect
from ringattn_comms.one_sided import OneSided
from ringattn_comms.ring import Ring
from ringattn_comms.waves import Waves
from ringattn_core.kernels.reference import Reference
from ringattn_core.look.verify import ScheduleError, verify
from ringattn_core.plan import masks
from ringattn_core.plan.layout import Layout, Sharding, balanced, contiguous, striped, zigzag
from ringattn_core.plan.mask import Mask
from ringattn_core.plan.mask_layout import layout_for
from ringattn_core.plan.mask_planner import plan_mask, window_of
from ringattn_core.plan.mask_schedule import schedule_of_mask
from ringattn_core.plan.overlaps import common
from ringattn_core.plan.planner import outgoing_rows, plan
from ringattn_core.plan.route import Route, gather, ring, waves
from ringattn_core.plan.schedule import Launch, Schedule
from ringattn_core.plan.tile import FAR, Tile, Window, chunk
from ringattn_core.run.head_groups import attend_backward_in_groups, attend_in_groups
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
    borders_k: tuple[int, ...] | None
    per_sequence: bool
    batch: int
    num_early_rows: int
    transport: str
    kv_heads: int
    head_groups: int

    def plan(self, num_early_rows: int = 0) -> list[Schedule]:
        return [
            plan_mask(
                *(self.mask, layout_for(self.layout, self.rows), self.route, rank, self.cp_size),
                cu_seqlens=self.borders,
                cu_seqlens_k=self.borders_k,
                per_sequence=self.per_sequence,
                batch=self.batch,
                num_early_rows=num_early_rows,
            )
            for rank in range(self.cp_size)
        ]

    @property
    def rows(self) -> list[Mask]:
        """Masks whose rows see as many keys as those of each row of the batch."""
        n, m, found = self.mask.num_queries // self.batch, self.mask.num_keys, list[Mask]()
        for top in range(0, self.mask.num_queries, n):
            cuts = (common(tile, Tile(range(top, top + n), range(m))) for tile in self.mask.tiles)
            tiles = (Tile(range(t.q.start - top, t.q.stop - top), t.k, t.low + top, t.high + top) for t in cuts if t)
            found.append(Mask(tuple(tiles), n, m))
        return found


def ranges(n: int) -> st.SearchStrategy[range]:
    return st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True).map(lambda ends: range(*sorted(ends)))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    batch = draw(st.sampled_from([1, 1, 1, 2]))
    n = draw(st.integers(1, 40 // batch)) * batch
    m = draw(st.just(n) | st.integers(1, 40 // batch).map(lambda tokens: tokens * batch))
    sides = st.integers(-n, m)
    bands = [
        Tile(draw(ranges(n)), draw(ranges(m)), draw(sides | st.just(-FAR)), draw(sides | st.just(FAR)))
        for _ in range(draw(st.integers(0, 6)))
    ]
    mask = reduce(or_, (Mask((band,), n, m) for band in bands), Mask((), n, m))
    inner = draw(st.none() | st.lists(st.tuples(st.integers(0, n), st.integers(0, m)), max_size=4))
    borders = [(0, *sorted(end[side] for end in inner), (n, m)[side]) if inner else None for side in (0, 1)]
    kv_heads = draw(st.sampled_from([1, 2, 4]))
    return Case(
        mask,
        draw(st.sampled_from([contiguous, zigzag, balanced, striped, wound])),
        draw(st.sampled_from([ring, waves(2), waves(3), gather, returning])),
        draw(st.integers(1, 5)),
        borders[0],
        None if n == m else borders[1],
        draw(st.booleans()),
        batch,
        draw(st.integers(0, 12)),
        draw(st.sampled_from(TRANSPORTS)),
        kv_heads,
        draw(st.sampled_from([each for each in (1, 2, 4) if kv_heads % each == 0])),
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
    forward, backward, options = case.plan(case.num_early_rows), case.plan(), Options(0.4)
    whole = [torch.full_like(x, torch.nan) for x in (q, q, k, v)]

    def main(comm: Communicator) -> None:
        first, second = forward[comm.rank], backward[comm.rank]
        rows, columns = (torch.tensor(x.positions(comm.rank), dtype=torch.long) for x in (first.queries, first.keys))
        kv = KV(k[columns], v[columns])
        asked = case.head_groups, partial(transport, case, comm, first), Reference()
        result = attend_in_groups(*asked, q[rows], kv, options)
        back = case.head_groups, partial(transport, case, comm, second), Reference()
        grads = attend_backward_in_groups(*back, dout[rows], q[rows], kv, result, options)
        parts = (result.out, rows), (grads.dq, rows), (grads.dk, columns), (grads.dv, columns)
        for total, (part, at) in zip(whole, parts, strict=True):
            total[at] = part

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
    verify(case.plan(case.num_early_rows))
    draw = torch.Generator().manual_seed(seed)
    n, m = case.mask.num_queries, case.mask.num_keys
    shapes = (n, 4), (m, case.kv_heads), (m, case.kv_heads), (n, 4)
    q, k, v, dout = (torch.randn(*shape, 4, generator=draw, dtype=torch.float64) for shape in shapes)
    wanted, found = densely(case.mask, q, k, v, dout), in_shards(case, q, k, v, dout)
    for name, a, b in zip(("out", "dq", "dk", "dv"), found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


def parts(schedule: Schedule) -> list[object]:
    """All that a rank does."""
    found: list[object] = []
    for step in schedule.steps:
        found += [step.hop, step.sources, step.destinations, tuple(step.key_slices)]
        found += [tuple(launch.tiles) for launch in step.launches]
    return found


@pytest.mark.parametrize("route", [ring, waves(2), gather])
@pytest.mark.parametrize("window", [(-1, 0), (-1, -1), (5, 0)])
@pytest.mark.parametrize("lengths", [(64,), (32, 0, 64, 96)])
def test_the_tiles_of_windows_take_the_launches_of_the_window_planner(
    route: Route, window: Window, lengths: tuple[int, ...]
) -> None:
    mask, borders = masks.packed(lengths, window=window), (0, *accumulate(lengths))
    for layout in (contiguous, zigzag):
        sharding = Sharding(layout, borders, 4)
        for rank in range(4):
            ours = schedule_of_mask(mask, sharding, sharding, route, rank, 0)
            theirs = plan(layout, route, borders, borders, rank, 4, window=window)
            assert parts(ours) == parts(theirs)
            # And so they are planned as windows, by the very plans: causal=True and its mask are the same.
            assert plan_mask(mask, layout, route, rank, 4, cu_seqlens=borders) is theirs


@pytest.mark.parametrize("window", [(-1, 0), (-1, -1), (5, 0), (3, 4), (0, 0)])
@pytest.mark.parametrize("key_lengths", [(30, 0, 7, 27), (3, 9, 40, 1)])
def test_windows_are_recognized(window: Window, key_lengths: tuple[int, ...]) -> None:
    lengths = (30, 0, 7, 27)
    borders, borders_k = ((0, *accumulate(each)) for each in (lengths, key_lengths))
    mask = masks.packed(lengths, window=window, key_lengths=key_lengths)
    found = window_of(mask, borders, borders_k)
    assert found is not None and masks.packed(lengths, window=found, key_lengths=key_lengths) == mask
    assert window_of(mask - masks.first(64, 1), borders, borders_k) is None
    assert window_of(mask, (0, 64), (0, borders_k[-1])) is None


def test_a_mask_without_the_diagonal_is_no_open_window() -> None:
    """The side of its window would be -1."""
    assert window_of(masks.causal(8) - masks.window(8, 0), (0, 8), (0, 8)) is None
    assert window_of(Mask((), 8, 8), (0, 8), (0, 8)) is None


def test_hops_without_a_live_cell_are_left_out_for_all() -> None:
    mask = masks.packed([8] * 4)
    for rank in range(4):
        assert [step.hop for step in plan_mask(mask, contiguous, ring, rank, 4).steps] == [0]
    middle = masks.packed([8] * 4) | masks.two_way([range(12, 20)], 32)
    for rank in range(4):
        assert [step.hop for step in plan_mask(middle, contiguous, ring, rank, 4).steps] == [0, 1, 3]


@pytest.mark.parametrize("layout", [contiguous, striped])
def test_verify_sees_any_change_of_a_tile(layout: Layout) -> None:
    mask = masks.prefix(16, 6)
    schedules = [plan_mask(mask, layout, ring, rank, 2) for rank in range(2)]
    verify(schedules)
    for rank, index, number in (
        (r, i, n) for r in range(2) for i, s in enumerate(schedules[r].steps) for n in range(len(s.launches))
    ):
        step = schedules[rank].steps[index]
        launch = step.launches[number]
        tile = launch.tiles[0]
        changed = [
            replace(tile, q=range(tile.q.start + 1, tile.q.stop)),
            replace(tile, k=range(tile.k.start, tile.k.stop - 1)),
        ]
        others = [
            Launch((live, *launch.tiles[1:]))
            for other in changed
            if len(other.q) and len(other.k) and (live := other.trim()) and live.window == launch.window
        ]
        for launches in (
            [launch, *step.launches],
            *([each, *step.launches[:number], *step.launches[number + 1 :]] for each in others),
            [x for x in step.launches if x is not launch],
        ):
            steps = list(schedules[rank].steps)
            steps[index] = replace(step, launches=tuple(launches))
            wrong = [replace(s, steps=tuple(steps)) if r == rank else s for r, s in enumerate(schedules)]
            with pytest.raises(ScheduleError, match=r"not computed|overlap"):
                verify(wrong)


def two_strides(extent: range, cp_rank: int, cp_size: int) -> tuple[range, ...]:
    half = extent[: len(extent) // 2]
    return half[cp_rank::cp_size], chunk(extent[len(half) :], cp_rank, cp_size)


def test_what_cannot_be_planned_is_refused() -> None:
    causal, prefix = masks.causal(16), masks.prefix(16, 4)
    with pytest.raises(ValueError, match=r"one positive stride, got \[1, 2\]"):
        plan_mask(prefix, two_strides, ring, 0, 2)
    with pytest.raises(ValueError, match="the mask has 16 tokens"):
        plan_mask(causal, contiguous, ring, 0, 2, cu_seqlens=(0, 8))
    with pytest.raises(ValueError, match="cu_seqlens_k ends with 16, but the mask has 3"):
        plan_mask(Mask((Tile(range(2), range(3)),), 2, 3), contiguous, ring, 0, 2, cu_seqlens_k=(0, 16))
    with pytest.raises(ValueError, match="needs its sequence of keys"):
        plan_mask(Mask((Tile(range(2), range(3)),), 2, 3), contiguous, ring, 0, 2, cu_seqlens=(0, 1, 2))
    with pytest.raises(ValueError, match="cp_rank"):
        plan_mask(causal, contiguous, ring, 2, 2)
    with pytest.raises(ValueError, match="rows of equal length, got 3"):
        plan_mask(causal, contiguous, ring, 0, 2, batch=3)


def test_plans_are_cached() -> None:
    first = plan_mask(masks.prefix(16, 4), contiguous, ring, 0, 2)
    assert plan_mask(masks.prefix(16, 4), contiguous, ring, 0, 2) is first


def test_a_single_source_lends_what_lies_between_the_rows_that_are_needed() -> None:
    mask = Mask((Tile(range(8, 16), range(2)), Tile(range(8, 16), range(4, 6))), 16, 16)
    schedules = [plan_mask(mask, contiguous, ring, rank, 2) for rank in range(2)]
    verify(schedules)
    assert [key_slice.rows for key_slice in outgoing_rows(schedules[0], 1)] == [range(6)]
