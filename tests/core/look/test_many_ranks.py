"""Work for many ranks: twice as many have four times as many pairs, so it may take four times as long.

Counted in executed lines, a loop's once a turn, so that no other load of the machine counts.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from types import FrameType
from typing import Any

import pytest

from plans import causal
from ringattn_core import draw
from ringattn_core.look.machine import H200
from ringattn_core.look.shape import Shape
from ringattn_core.look.simulate import predict
from ringattn_core.look.verify import verify
from ringattn_core.plan.layout import Layout, contiguous, zigzag
from ringattn_core.plan.planner import plan
from ringattn_core.plan.route import Route, gather, ring, waves
from ringattn_core.plan.schedule import Schedule

SHAPE = Shape(num_heads=32, num_kv_heads=8, head_dim=128)


def lines(work: Callable[[], object]) -> int:
    """How many lines of Python are executed."""
    count, before = 0, sys.gettrace()

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def planned(layout: Layout, route: Route, cp_size: int, window: tuple[int, int] = (-1, 0)) -> list[Schedule]:
    """The schedules of all ranks, by functions that no cache knows."""
    return causal(partial(layout), partial(route), cp_size, 64 * cp_size, window=window)


@pytest.mark.parametrize("window", [(-1, 0), (3, 0)], ids=["causal", "window"])
@pytest.mark.parametrize("layout", [contiguous, zigzag])
@pytest.mark.parametrize("route", [ring, waves(2), gather], ids=["ring", "waves", "gather"])
def test_planning(layout: Layout, route: Route, window: tuple[int, int]) -> None:
    few, many = lines(lambda: planned(layout, route, 16, window)), lines(lambda: planned(layout, route, 32, window))
    assert many <= 4 * few


@pytest.mark.parametrize("route", [ring, waves(2), gather], ids=["ring", "waves", "gather"])
@pytest.mark.parametrize(
    "look",
    [
        verify,
        draw.mask,
        draw.timeline,
        lambda schedules: predict(schedules, SHAPE, H200, backward=schedules, one_sided=False),
        lambda schedules: predict(schedules, SHAPE, H200, backward=schedules, one_sided=True),
    ],
    ids=["verify", "mask", "timeline", "two-sided", "one-sided"],
)
def test_looking(route: Route, look: Callable[[Sequence[Schedule]], object]) -> None:
    few, many = planned(zigzag, route, 16), planned(zigzag, route, 32)
    assert lines(lambda: look(many)) <= 4 * lines(lambda: look(few))


def test_hops_that_are_dead_for_all_ranks() -> None:
    borders = tuple(range(0, 64 * 256 + 1, 256))

    def alone(cp_size: int) -> int:
        return lines(lambda: plan(partial(contiguous), ring, borders, borders, 0, cp_size, window=(3, 0)))

    assert alone(32) < 3 * alone(16), "one rank looks at what twice as many hold, not at twice as many hops of theirs"
