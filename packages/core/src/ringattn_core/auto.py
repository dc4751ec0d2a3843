"""Which routes "auto" stands for: those of a forward and of a backward pass that are predicted to be the fastest."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from math import exp, log2
from statistics import NormalDist
from typing import NamedTuple

from ringattn_core.layout import Division, Layout
from ringattn_core.machine import Machine
from ringattn_core.planner import plan_all
from ringattn_core.route import Route, gather, ring, waves
from ringattn_core.schedule import Schedule
from ringattn_core.settled import early_rows
from ringattn_core.shape import Shape
from ringattn_core.simulate import fastest, predict
from ringattn_core.tile import Window

CANDIDATES: dict[str, Route] = {"waves": waves(2), "waves(3)": waves(3), "gather": gather, "ring": ring}
# In order of preference where predictions are equal, or nearly in a backward pass: there a gather holds the gradients
# of more keys.
FORWARD, BACKWARD = ("gather", "waves", "waves(3)", "ring"), ("waves", "waves(3)", "gather", "ring")
EQUAL, NEARLY = 0.001, 0.02
# To plan for all of more ranks, or for more sequences, takes longer than the choice is worth.
_MOST_RANKS, _MOST_SEQUENCES = 16, 32


class Routes(NamedTuple):
    """The names of two routes, which may be one: results do not depend on it."""

    forward: str
    backward: str


def auto_routes(
    layout: Layout,
    cu_seqlens: tuple[int, ...],
    cp_size: int,
    window: Window,
    shape: Shape,
    machine: Machine,
    *,
    per_sequence: bool = True,
    one_sided: bool,
    kernel: Callable[[Schedule], str | None] = lambda schedule: "flash_attn_4",
) -> Routes:
    """The names of the routes for sequences with these borders, over all ranks; for very many ranks, "waves".

    `kernel` names the kernel that computes a schedule, or None where there is none that should: not every kernel can do
    what every route asks of it. All else is as of `plan` and `predict`.
    """
    if cp_size > _MOST_RANKS or cu_seqlens[-1] == 0:
        return Routes("waves", "waves")

    early = early_rows(cu_seqlens[-1] // cp_size)

    def planned(name: str, *, ahead: int) -> tuple[Schedule, ...]:
        route = CANDIDATES[name]
        return plan_all(layout, route, cu_seqlens, cp_size, window=window, per_sequence=per_sequence, ahead=ahead)

    def fastest_of(passes: dict[str, tuple[tuple[Schedule, ...], tuple[Schedule, ...]]], alike: float) -> str:
        """By the schedules of a forward pass and, if there are any, of a backward pass, in order of preference."""
        forecasts = {}
        for name, (forward, backward) in passes.items():
            kernels = {kernel(schedule) for schedule in (*forward, *backward)}
            if None not in kernels:
                machines = [machine.running(each) for each in kernels if each]
                found = [predict(forward, shape, each, backward=backward, one_sided=one_sided) for each in machines]
                forecasts[name] = max(found, key=lambda forecast: forecast.time)
        return fastest(forecasts, alike=alike) if forecasts else "waves"

    first = fastest_of({name: (planned(name, ahead=early), ()) for name in FORWARD}, EQUAL)
    forward = planned(first, ahead=early)
    return Routes(first, fastest_of({name: (forward, planned(name, ahead=0)) for name in BACKWARD}, NEARLY))


def typical(division: Division) -> tuple[int, ...]:
    """Borders that stand for all divisions of about as many tokens and sequences, so that not each needs a new choice.

    The tokens are taken up to the next power of two and the sequences to the nearest, 32 at most. Their lengths are
    spread as those of documents are, log-normal with a sigma of 1.1: see `documents` in benchmarks/peers.py. Where
    every rank has a share of each sequence, one sequence stands for any number of them.
    """
    sequences = 1 if division.of_sequences else len(division.cu_seqlens) - 1
    tokens = 1 << max(division.cu_seqlens[-1] - 1, 0).bit_length()
    count = min(1 << round(log2(max(sequences, 1))), _MOST_SEQUENCES)
    lengths = [exp(1.1 * NormalDist().inv_cdf((index + 0.5) / count)) for index in range(count)]
    ends = list(accumulate(lengths[5 * index % count] for index in range(count)))  # long and short ones mixed
    return (0, *(round(tokens * end / ends[-1]) for end in ends))
