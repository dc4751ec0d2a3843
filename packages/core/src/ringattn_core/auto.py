"""Which routes "auto" stands for: those of a forward and of a backward pass that are predicted to be the fastest."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ringattn_core.layout import Layout
from ringattn_core.machine import Machine
from ringattn_core.planner import plan_all
from ringattn_core.route import Route, gather, ring, waves
from ringattn_core.schedule import Schedule
from ringattn_core.settled import early_rows
from ringattn_core.shape import Shape
from ringattn_core.simulate import fastest, predict
from ringattn_core.tile import Window

CANDIDATES: dict[str, Route] = {"waves": waves(2), "waves(3)": waves(3), "gather": gather, "ring": ring}
# In order of preference, where predictions are equal: a gather adds less up, and holds the gradients of more keys.
FORWARD, BACKWARD = ("gather", "waves", "waves(3)", "ring"), ("waves", "waves(3)", "gather", "ring")
_MOST_RANKS = 16  # To plan for all of more ranks takes longer than the choice is worth.


class Routes(NamedTuple):
    """The names of two routes, which may be one: results do not depend on it."""

    forward: str
    backward: str


def auto_routes(
    layout: Layout,
    tokens: int,
    cp_size: int,
    window: Window,
    shape: Shape,
    machine: Machine,
    *,
    one_sided: bool,
    kernel: Callable[[Schedule], str | None] = lambda schedule: "flash_attn_4",
) -> Routes:
    """The names of the routes for `tokens` on all ranks together; for very many ranks, "waves".

    They count as one sequence of the next power of two, their `magnitude`, so that batches of other lengths and
    packings need no new choice, and all ranks, who see the same number, choose the same. `kernel` names the kernel that
    computes a schedule, or None where there is none that should: not every kernel can do what every route asks of it.
    """
    if cp_size > _MOST_RANKS or tokens == 0:
        return Routes("waves", "waves")

    length = magnitude(tokens)
    early = early_rows(length // cp_size)

    def planned(name: str, *, ahead: int) -> tuple[Schedule, ...]:
        return plan_all(layout, CANDIDATES[name], (0, length), cp_size, window=window, ahead=ahead)

    def fastest_of(passes: dict[str, tuple[tuple[Schedule, ...], tuple[Schedule, ...]]]) -> str:
        """By the schedules of a forward pass and, if there are any, of a backward pass, in order of preference."""
        forecasts = {}
        for name, (forward, backward) in passes.items():
            kernels = {kernel(schedule) for schedule in (*forward, *backward)}
            if None not in kernels:
                machines = [machine.running(each) for each in kernels if each]
                found = [predict(forward, shape, each, backward=backward, one_sided=one_sided) for each in machines]
                forecasts[name] = max(found, key=lambda forecast: forecast.time)
        return fastest(forecasts) if forecasts else "waves"

    first = fastest_of({name: (planned(name, ahead=early), ()) for name in FORWARD})
    forward = planned(first, ahead=early)
    return Routes(first, fastest_of({name: (forward, planned(name, ahead=0)) for name in BACKWARD}))


def magnitude(tokens: int) -> int:
    """The next power of two."""
    return 1 << max(tokens - 1, 0).bit_length()
