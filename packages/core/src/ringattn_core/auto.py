"""Which route "auto" stands for: the one that is predicted to be the fastest, forward and backward."""

from __future__ import annotations

from collections.abc import Callable

from ringattn_core.layout import Layout
from ringattn_core.machine import Machine
from ringattn_core.planner import plan_all
from ringattn_core.route import Route, gather, ring, waves
from ringattn_core.schedule import Schedule
from ringattn_core.shape import Shape
from ringattn_core.simulate import fastest, predict
from ringattn_core.tile import Window

# In order of preference, where predictions are equal.
CANDIDATES: dict[str, Route] = {"waves": waves(2), "waves(3)": waves(3), "gather": gather, "ring": ring}
_MOST_RANKS = 16  # To plan for all of more ranks takes longer than the choice is worth.


def auto_route(
    layout: Layout,
    tokens: int,
    cp_size: int,
    window: Window,
    shape: Shape,
    machine: Machine,
    *,
    one_sided: bool,
    kernel: Callable[[Schedule], str | None] = lambda schedule: "flash_attn_4",
) -> str:
    """The name of the route for `tokens` on all ranks together; for very many ranks, "waves".

    They count as one sequence of the next power of two, their `magnitude`, so that batches of other lengths and
    packings need no new choice, and all ranks, who see the same number, choose the same. `kernel` names the kernel that
    computes a schedule, or None where there is none that should: not every kernel can do what every route asks of it.
    """
    if cp_size > _MOST_RANKS or tokens == 0:
        return "waves"
    forecasts = {}
    for name, route in CANDIDATES.items():
        planned = plan_all(layout, route, (0, magnitude(tokens)), cp_size, window=window)
        kernels = {kernel(schedule) for schedule in planned}
        if None not in kernels:
            machines = [machine.running(each) for each in kernels if each]
            found = [predict(planned, shape, each, backward=True, one_sided=one_sided) for each in machines]
            forecasts[name] = max(found, key=lambda forecast: forecast.time)
    return fastest(forecasts) if forecasts else "waves"


def magnitude(tokens: int) -> int:
    """The next power of two."""
    return 1 << max(tokens - 1, 0).bit_length()
