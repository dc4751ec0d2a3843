"""Which route "auto" stands for: the one that is predicted to be the fastest, forward and backward."""

from __future__ import annotations

from functools import lru_cache

from ringattn_core.layout import Layout
from ringattn_core.machine import Machine
from ringattn_core.planner import plan_all
from ringattn_core.route import Route, gather, ring, waves
from ringattn_core.shape import Shape
from ringattn_core.simulate import choose_route
from ringattn_core.tile import Window

# In order of preference, where predictions are equal.
CANDIDATES: dict[str, Route] = {"waves": waves(2), "waves(3)": waves(3), "gather": gather, "ring": ring}
_MOST_RANKS = 16  # To plan for all of more ranks takes longer than the choice is worth.


def auto_route(
    layout: Layout, tokens: int, cp_size: int, window: Window, shape: Shape, machine: Machine | None, *, one_sided: bool
) -> str:
    """The name of the route for `tokens` on all ranks together; without a machine to predict for, "waves".

    They count as one sequence of the next power of two, so that batches of other lengths and packings need no new
    choice, and all ranks, who see the same number, choose the same.
    """
    if machine is None or cp_size > _MOST_RANKS or tokens == 0:
        return "waves"
    return _fastest(layout, 1 << (tokens - 1).bit_length(), cp_size, window, shape, machine, one_sided)


@lru_cache(256)
def _fastest(
    layout: Layout, tokens: int, cp_size: int, window: Window, shape: Shape, machine: Machine, one_sided: bool
) -> str:
    planned = {name: plan_all(layout, route, (0, tokens), cp_size, window=window) for name, route in CANDIDATES.items()}
    return choose_route(planned, shape, machine, one_sided=one_sided)
