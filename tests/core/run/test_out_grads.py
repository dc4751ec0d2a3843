"""Blocks and gradients that are written where they belong, so that there is nothing left to add."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import torch

from ringattn_core.plan.layout import zigzag
from ringattn_core.plan.planner import plan
from ringattn_core.plan.route import gather, waves
from ringattn_core.plan.schedule import Schedule
from ringattn_core.run.device_plan import device_plan
from ringattn_core.run.kernel import Block

HEADS, DIM, TOKENS = 4, 3, 16
CPU = torch.device("cpu")


class Idle:
    """A kernel that does nothing on any grid: what is here is finite, and nothing has to be marked."""

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return lambda *arguments, **options: None


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module of the fused sums without their kernels, for which there is no compiler here."""
    stand_ins = {name: ModuleType(name) for name in ("triton", "triton.language")}
    stand_ins["triton"].jit = lambda function: Idle()  # type: ignore[attr-defined]
    stand_ins["triton"].cdiv = stand_ins["triton"].next_power_of_2 = lambda *numbers: 1  # type: ignore[attr-defined]
    stand_ins["triton"].language = stand_ins["triton.language"]  # type: ignore[attr-defined]
    stand_ins["triton.language"].constexpr = int  # type: ignore[attr-defined]
    for name, module in stand_ins.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "ringattn_core.run.fused", raising=False)
    yield importlib.import_module("ringattn_core.run.fused")
    sys.modules.pop("ringattn_core.run.fused", None)


def schedule(route, window: tuple[int, int] = (-1, 0)) -> Schedule:
    borders = (0, 2 * TOKENS)
    return plan(zigzag, route, borders, borders, 0, 2, window=window)


def test_all_of_a_gather_is_written_in_place(fused: ModuleType) -> None:
    """Rank 0 of zigzag has two launches over a gather, and neither touches a row of the other."""
    mine, q = schedule(gather), torch.zeros(TOKENS, HEADS, DIM)
    partial = fused.FusedOutAccumulator(device_plan(mine, CPU), q, DIM, supports_out=True)
    want, want_lse = torch.full((TOKENS, HEADS, DIM), torch.nan), torch.full((HEADS, TOKENS), torch.nan)
    launches = [launch for step in mine.steps for launch in step.launches]
    assert len(launches) == 2
    for number, launch in enumerate(launches):
        rows = slice(launch.rows.start, launch.rows.stop)
        place = partial.out_for(launch)
        assert place is not None and place.out.shape == (len(launch.rows), HEADS, DIM)
        place.out[:], place.lse[:] = number + 1.0, number - 1.0
        want[rows], want_lse[:, rows] = number + 1.0, number - 1.0
        partial.add(launch, place)
    out, lse = partial.finish(q.dtype)
    assert torch.equal(out, want) and torch.equal(lse, want_lse)


def test_what_is_not_first_has_no_place(fused: ModuleType) -> None:
    mine = schedule(waves(2))
    dq = fused.fused_rows(device_plan(mine, CPU), torch.zeros(TOKENS, HEADS, DIM), DIM, supports_out=True)
    for step in mine.steps:
        for launch in step.launches:
            place = dq.out_for(launch)
            assert (place is None) == (step.hop > 0), "the own keys come first"
            if place is not None:
                place.fill_(1.0)
                dq.add(launch, place)
    assert dq.total.eq(1.0).all()


def test_rows_that_nothing_touches_are_empty(fused: ModuleType) -> None:
    """There are no keys at all."""
    mine, q = schedule(waves(2), window=(3, -1)), torch.ones(TOKENS, HEADS, DIM)
    nothing = plan(zigzag, gather, (0, 2 * TOKENS), (0, 0), 0, 2)
    out, lse = fused.FusedOutAccumulator(device_plan(nothing, CPU), q, DIM, supports_out=True).finish(q.dtype)
    assert out.eq(0.0).all() and lse.eq(-torch.inf).all()
    total = fused.FusedOutAccumulator(device_plan(mine, CPU), q, DIM, supports_out=False)
    assert total.out_for(mine.steps[0].launches[0]) is None


def test_a_kernel_that_ignores_places_is_adopted(fused: ModuleType) -> None:
    mine, q = schedule(waves(2)), torch.zeros(TOKENS, HEADS, DIM)
    partial, launch = fused.FusedOutAccumulator(device_plan(mine, CPU), q, DIM), mine.steps[0].launches[0]
    assert partial.out_for(launch) is None
    block = Block(torch.ones(TOKENS, HEADS, DIM), torch.ones(HEADS, TOKENS))
    partial.add(launch, block)
    out, lse = partial.finish(q.dtype)
    assert out is block.out and lse is block.lse
