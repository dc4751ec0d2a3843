"""What "auto" takes: the same on all ranks, for the sizes where routes differ."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ringattn_core.auto import CANDIDATES, auto_route
from ringattn_core.layout import zigzag
from ringattn_core.machine import H100
from ringattn_core.planner import plan_all
from ringattn_core.shape import Shape
from ringattn_core.simulate import predict

SHAPE = Shape(32, 8, 128, grad_itemsize=2)
CAUSAL = (-1, 0)


def choice(tokens: int, cp_size: int, **changes: object) -> str:
    given = {"window": CAUSAL, "shape": SHAPE, "machine": H100, "one_sided": True} | changes
    return auto_route(zigzag, tokens, cp_size, **given)


@pytest.mark.parametrize(("cp_size", "tokens"), [(2, 1 << 14), (4, 1 << 15), (8, 1 << 16), (8, 1 << 18)])
def test_it_is_the_fastest_by_prediction(cp_size: int, tokens: int) -> None:
    times = {
        name: predict(
            plan_all(zigzag, route, (0, tokens), cp_size, window=CAUSAL), SHAPE, H100, backward=True, one_sided=True
        ).time
        for name, route in CANDIDATES.items()
    }
    assert times[choice(tokens, cp_size)] == min(times.values())


def test_lengths_of_one_magnitude_share_a_choice() -> None:
    assert len({choice(tokens, 8) for tokens in (33_000, 50_001, 65_536)}) == 1


def test_without_anything_to_predict_from_it_is_waves() -> None:
    assert choice(1 << 16, 8, machine=None) == "waves"
    assert choice(1 << 20, 64) == "waves"
    assert choice(0, 2) == "waves"


def test_slow_links_make_another_choice() -> None:
    """A ring hides one shard behind each of its steps; a gather shows all of them."""
    links = {name: replace(getattr(H100, name), bandwidth=10e9) for name in ("two_sided", "collective")}
    assert choice(1 << 16, 8, machine=replace(H100, **links), one_sided=False) != "gather"
