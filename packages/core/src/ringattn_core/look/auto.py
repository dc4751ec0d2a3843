"""Which routes "auto" stands for: those of a forward and of a backward pass that are predicted to be the fastest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate, pairwise
from statistics import fmean
from typing import NamedTuple

from ringattn_core.look.machine import Machine
from ringattn_core.look.shape import Shape, total_bytes
from ringattn_core.look.simulate import fastest, predict
from ringattn_core.plan.layout import Sharding
from ringattn_core.plan.lines import Mask, mask
from ringattn_core.plan.local_rows import default_early_rows
from ringattn_core.plan.planner import plan
from ringattn_core.plan.route import Route, gather, ring, waves
from ringattn_core.plan.schedule import Schedule
from ringattn_core.plan.tile import Window

CANDIDATES: dict[str, Route] = {"waves": waves(2), "waves(3)": waves(3), "gather": gather, "ring": ring}
"""The routes that "auto" chooses among, by name."""
# In order of preference: gather first where predictions are equal, for it adds less up; or, in a backward pass, nearly,
# but only where it needs few keys, as where most sequences lie whole on a rank: it holds the gradients of all of them.
GATHER_FIRST, WAVES_FIRST = ("gather", "waves", "waves(3)", "ring"), ("waves", "waves(3)", "gather", "ring")
EQUAL, NEARLY = 0.001, 0.015
_MOST_RANKS = 16  # To plan for more takes longer than the choice is worth.
# At how many sequences of a row the choice looks: at fewer where each is divided among all ranks, which takes longer.
_SPREAD, _WHOLE = 24, 48


Plans = dict[str, tuple[Schedule, ...]]  # all ranks' schedules, by the name of their route


class Routes(NamedTuple):
    """The names of two routes, which may be one: results do not depend on it."""

    forward: str
    backward: str


UNPREDICTED = Routes("waves", "waves")
"""What "auto" is where nothing is predicted."""


def auto_routes(
    sharding: Sharding,
    window: Window,
    shape: Shape,
    machine: Machine,
    *,
    one_sided: bool,
    speed: Callable[[Schedule], tuple[float, float] | None] = lambda schedule: (1.0, 1.0),
) -> Routes:
    """The names of the routes for sequences that are divided so, among those that fit into the machine's memory.

    Planned and predicted are a few ranks with the sequences of `typical`, which takes milliseconds for any pack.
    Where none fits it is the one that needs the least. For very many ranks nothing is predicted: it is the first of
    "waves", "waves(3)" and "ring" that fits. `speed` is that of the kernel that computes a schedule (`Kernel.speed`),
    or None where no fast one can: not every kernel supports every route. All else is as of `plan` and `predict`.
    """
    if sharding.cu_seqlens[-1] == 0:
        return UNPREDICTED
    if sharding.cp_size > _MOST_RANKS:
        first, second = (_first_that_fits(sharding, window, shape, machine, one_sided, back) for back in (False, True))
        return Routes(first, second)

    def fastest_of(passes: dict[str, tuple[tuple[Schedule, ...], tuple[Schedule, ...]]], alike: float) -> str:
        """By the schedules of a forward pass and, if there are any, of a backward pass, in order of preference."""
        forecasts = {}
        for name, (forward, backward) in passes.items():
            speeds = {speed(schedule) for schedule in (*forward, *backward)}
            if None not in speeds:
                machines = [machine.running(each) for each in speeds if each]
                found = [
                    predict(forward, shape, each, backward=backward, one_sided=one_sided, times=times)
                    for each in machines
                ]
                forecasts[name] = max(found, key=lambda forecast: forecast.time)
        fitting = {name: each for name, each in forecasts.items() if times * each.total_bytes <= machine.capacity}
        if forecasts and not fitting:
            return min(forecasts, key=lambda name: forecasts[name].total_bytes)
        return fastest(fitting, alike=alike) if fitting else "waves"

    some, rows, times = typical(sharding)
    machine = machine.slower(rows)
    forward, backward = candidates(some, window, rows * times, ranks=_decisive(some, window))
    first = fastest_of({name: (forward[name], ()) for name in GATHER_FIRST}, EQUAL)
    order = GATHER_FIRST if _fetches_little(backward["gather"]) else WAVES_FIRST
    return Routes(first, fastest_of({name: (forward[first], backward[name]) for name in order}, NEARLY))


def _first_that_fits(
    sharding: Sharding, window: Window, shape: Shape, machine: Machine, one_sided: bool, backward: bool
) -> str:
    """Of "waves", "waves(3)" and "ring", by the memory of the first and the last rank; "ring" needs the least."""
    for name in ("waves", "waves(3)"):
        ends = [_planned(sharding, window, CANDIDATES[name], rank) for rank in (0, sharding.cp_size - 1)]
        if all(total_bytes(each, shape, backward=backward, one_sided=one_sided) <= machine.capacity for each in ends):
            return name
    return "ring"


def candidates(
    sharding: Sharding, window: Window, times: float = 1.0, ranks: Sequence[int] | None = None
) -> tuple[Plans, Plans]:
    """What `CANDIDATES` plan for a forward and for a backward pass of `times` copies of the sequences.

    For these ranks, or for all.
    """
    chosen = range(sharding.cp_size) if ranks is None else ranks

    def planned(num_early_rows: int) -> Plans:
        return {
            name: tuple(_planned(sharding, window, route, rank, num_early_rows) for rank in chosen)
            for name, route in CANDIDATES.items()
        }

    local = int(times * sharding.cu_seqlens[-1]) // sharding.cp_size
    return planned(int(default_early_rows(local) / times)), planned(0)


def _planned(sharding: Sharding, window: Window, route: Route, rank: int, num_early_rows: int = 0) -> Schedule:
    return plan(
        *(sharding.layout, route, sharding.cu_seqlens, sharding.cu_seqlens, rank, sharding.cp_size),
        window=window,
        per_sequence=sharding.per_sequence,
        batch=sharding.batch,
        num_early_rows=num_early_rows,
    )


def _decisive(sharding: Sharding, window: Window) -> Sequence[int]:
    """The ranks that stand for all: the first, the middle and the last; and, where ranks differ, the busiest."""
    size, whole = sharding.cp_size, mask(sharding, sharding, window)
    ranks = {0, size // 2, size - 1}

    def cells(rank: int) -> int:
        """About two for each live cell."""
        return sum(
            line[1]
            * sum(_seen(whole, sequence, position) for position in (line[0], line[0] + (line[1] - 1) * whole.stride))
            for sequence, lines in whole.keys.held(rank).items()
            for line in lines
        )

    return sorted(ranks if sharding.spreads_sequences else ranks | {max(range(size), key=cells)})


def _seen(whole: Mask, sequence: int, position: int) -> int:
    """How many keys a query sees."""
    start, stop = whole.borders[sequence : sequence + 2]
    return min(stop, position + whole.right + 1) - max(start, position - whole.left)


def _fetches_little(schedules: Sequence[Schedule]) -> bool:
    """Do ranks need less than a quarter of the others' keys, in the mean?"""
    fetched = sum(step.fetched for schedule in schedules for step in schedule.steps if step.hop)
    return 4 * fetched < len(schedules) * (schedules[0].cp_size - 1) * schedules[0].shard_size


class Typical(NamedTuple):
    """The sequences that a choice looks at."""

    sharding: Sharding
    rows: int  # of a batch, all alike, for which it stands
    times: float  # how many sequences of about its length each of them stands for


@lru_cache(64)
def typical(sharding: Sharding) -> Typical:
    """The sequences that the choice looks at: all, where they are few, and one row of a batch of equal ones.

    Of many, sorted by length, each stands for those of about its length. Lengths are never rounded: whether they
    divide by the ranks, and where the stream is cut, decides how many launches there are.
    """
    rows, lengths = sharding.batch, [stop - start for start, stop in pairwise(sharding.cu_seqlens)]
    if sharding.of_sequences:
        rows = 1
    count = len(lengths) // rows
    if lengths != lengths[:count] * rows:
        return Typical(sharding, 1, 1.0)
    found = list(filter(None, lengths[:count]))
    most, times = _SPREAD if sharding.spreads_sequences else _WHOLE, 1.0
    if len(found) > most:
        times, ordered = len(found) / most, sorted(found)
        parts = [ordered[index * len(found) // most : (index + 1) * len(found) // most] for index in range(most)]
        # As much work as in the mean; long and short ones in turn, as they come in a stream.
        means = [round(fmean(length**2 for length in part) ** 0.5) for part in parts]
        found = [length for first in range(5) for length in means[first::5]]
    return Typical(replace(sharding, cu_seqlens=(0, *accumulate(found)), batch=1), rows, times)
