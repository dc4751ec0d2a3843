"""Schedules of masks can be drawn, and what they cost is predicted from the cells that are live."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from ringattn_core.look import draw, svg
from ringattn_core.look.machine import H200
from ringattn_core.look.raster import raster
from ringattn_core.look.shape import Shape
from ringattn_core.look.simulate import predict
from ringattn_core.plan import masks
from ringattn_core.plan.layout import Layout, balanced, contiguous, zigzag
from ringattn_core.plan.mask import Mask
from ringattn_core.plan.mask_layout import layout_for
from ringattn_core.plan.mask_planner import plan_mask
from ringattn_core.plan.route import Route, gather, ring, waves
from ringattn_core.plan.schedule import Schedule

SHAPE = Shape(num_heads=32, num_kv_heads=8, head_dim=128)
MASKS = {
    "images": masks.causal(24) | masks.two_way([range(4, 10), range(12, 19)], 24),
    "prompt and answers": masks.shared_prefix(8, [4] * 4),
    "tree": masks.tree([-1, 0, 0, 2, 2], [5, 4, 6, 4, 5]),
    "chunks": masks.chunked(24, 7),
}


def planned(mask: Mask, layout: Layout, route: Route, cp_size: int) -> list[Schedule]:
    return [plan_mask(mask, layout_for(layout, mask), route, rank, cp_size) for rank in range(cp_size)]


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("route", [ring, waves(2), gather])
@pytest.mark.parametrize("layout", [contiguous, zigzag, balanced])
def test_a_picture_shows_every_live_cell_and_no_other(name: str, layout: Layout, route: Route) -> None:
    mask = MASKS[name]
    schedules = planned(mask, layout, route, 3)
    picture = raster(schedules, 48)
    assert [bytes(hop is not None for hop in row) for row in picture.hops] == mask.dense()
    assert draw.mask(schedules).count("·") == mask.num_queries * mask.num_keys - mask.area
    assert svg.mask(schedules).startswith("<svg")


def test_a_timeline_shows_even_shares() -> None:
    schedules = planned(MASKS["prompt and answers"], balanced, ring, 2)
    assert draw.timeline(schedules).count("50.0 % of the cells") == 2
    assert draw.ownership(schedules[0].queries).count("12 tokens") == 2


def forecast(schedules: Sequence[Schedule], *, one_sided: bool = False) -> tuple[float, float]:
    found = predict(schedules, SHAPE, H200, backward=schedules, one_sided=one_sided)
    return found.ideal, found.time


@pytest.mark.parametrize("one_sided", [False, True])
def test_a_mask_costs_what_its_live_cells_do(one_sided: bool) -> None:
    tokens = 1 << 15
    causal, shared = masks.causal(tokens), masks.shared_prefix(8192, [1024] * 24)
    for route in (ring, waves(2), gather):
        whole, part = (forecast(planned(mask, balanced, route, 4), one_sided=one_sided) for mask in (causal, shared))
        assert part[0] == pytest.approx(whole[0] * shared.area / causal.area)
        assert shared.area / causal.area < part[1] / whole[1] < 1.5 * shared.area / causal.area
