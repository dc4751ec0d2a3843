"""Which routes "auto" stands for: those of a forward and of a backward pass that are predicted to be the fastest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate, pairwise
from math import log2
from statistics import fmean
from typing import NamedTuple

from ringattn_core.look.machine import Machine
from ringattn_core.look.shape import Shape, total_bytes
from ringattn_core.look.simulate import fastest, predict
from ringattn_core.plan.layout import Sharding
from ringattn_core.plan.local_rows import default_early_rows
from ringattn_core.plan.planner import plan, plan_all
from ringattn_core.plan.route import Route, gather, ring, waves
from ringattn_core.plan.schedule import Schedule
from ringattn_core.plan.tile import Window

CANDIDATES: dict[str, Route] = {"waves": waves(2), "waves(3)": waves(3), "gather": gather, "ring": ring}
"""The routes that "auto" chooses among, by name."""
# In order of preference: gather first where predictions are equal, for it adds less up; or, in a backward pass, nearly,
# but only where it needs few keys, as where most sequences lie whole on a rank: it holds the gradients of all of them.
GATHER_FIRST, WAVES_FIRST = ("gather", "waves", "waves(3)", "ring"), ("waves", "waves(3)", "gather", "ring")
EQUAL, NEARLY = 0.001, 0.015
_MOST_RANKS = 16  # To plan for all of more takes longer than the choice is worth.


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
                found = [predict(forward, shape, each, backward=backward, one_sided=one_sided) for each in machines]
                forecasts[name] = max(found, key=lambda forecast: forecast.time)
        fitting = {name: each for name, each in forecasts.items() if each.total_bytes <= machine.capacity}
        if forecasts and not fitting:
            return min(forecasts, key=lambda name: forecasts[name].total_bytes)
        return fastest(fitting, alike=alike) if fitting else "waves"

    once, times = _sampled(sharding)
    machine = machine.slower(times)
    forward, backward = candidates(once, window, times)
    first = fastest_of({name: (forward[name], ()) for name in GATHER_FIRST}, EQUAL)
    order = GATHER_FIRST if _fetches_little(backward["gather"]) else WAVES_FIRST
    return Routes(first, fastest_of({name: (forward[first], backward[name]) for name in order}, NEARLY))


def _first_that_fits(
    sharding: Sharding, window: Window, shape: Shape, machine: Machine, one_sided: bool, backward: bool
) -> str:
    """Of "waves", "waves(3)" and "ring", by the memory of the first and the last rank; "ring" needs the least."""
    for name in ("waves", "waves(3)"):
        ends = [
            plan(
                *(sharding.layout, CANDIDATES[name], sharding.cu_seqlens, sharding.cu_seqlens, rank, sharding.cp_size),
                window=window,
                per_sequence=sharding.per_sequence,
                batch=sharding.batch,
            )
            for rank in (0, sharding.cp_size - 1)
        ]
        if all(total_bytes(each, shape, backward=backward, one_sided=one_sided) <= machine.capacity for each in ends):
            return name
    return "ring"


def candidates(sharding: Sharding, window: Window, times: int = 1) -> tuple[Plans, Plans]:
    """What each of `CANDIDATES` plans for a forward and for a backward pass of `times` copies of the sequences."""
    forward, backward = (
        {
            name: plan_all(
                *(sharding.layout, route, sharding.cu_seqlens, sharding.cp_size),
                window=window,
                per_sequence=sharding.per_sequence,
                batch=sharding.batch,
                num_early_rows=num_early_rows,
            )
            for name, route in CANDIDATES.items()
        }
        for num_early_rows in (default_early_rows(times * sharding.cu_seqlens[-1] // sharding.cp_size) // times, 0)
    )
    return forward, backward


def _fetches_little(schedules: Sequence[Schedule]) -> bool:
    """Do ranks need less than a quarter of the others' keys, in the mean?"""
    fetched = sum(step.fetched for schedule in schedules for step in schedule.steps if step.hop)
    return 4 * fetched < len(schedules) * (len(schedules) - 1) * schedules[0].shard_size


@lru_cache(64)
def typical(sharding: Sharding) -> Sharding:
    """One that stands for all like it, so that not each needs a new choice: of fewer different lengths, and rounder.

    Of many sequences, sorted by length, each stands for those of about its length, and all come the same number of
    times over; lengths are rounded to powers of the fourth root of two.
    """
    rows, lengths = sharding.batch, [stop - start for start, stop in pairwise(sharding.cu_seqlens)]
    if sharding.of_sequences:
        rows = 1
    found = list(filter(None, lengths[: len(lengths) // rows]))
    most, times = _most_sequences(sharding), 1
    if len(found) > most:
        times = len(found) // most
        count, ordered = len(found) // times, sorted(found)
        parts = [ordered[index * len(found) // count : (index + 1) * len(found) // count] for index in range(count)]
        # As much work as in the mean; long and short ones in turn, as they come in a stream.
        typical = [_round(fmean(length**2 for length in part) ** 0.5) for part in parts]
        found = [length for first in range(5) for length in typical[first::5]]
    else:
        found = list(map(_round, found))
    return replace(sharding, cu_seqlens=(0, *accumulate(found * (times * rows))), batch=rows)


def _round(length: float) -> int:
    return round(2 ** (round(4 * log2(length)) / 4))


def _most_sequences(sharding: Sharding) -> int:
    """At how many sequences the choice looks; of those that lie whole on a rank at more, for each is another's."""
    return 12 if sharding.spreads_sequences else 24


def _sampled(sharding: Sharding) -> tuple[Sharding, int]:
    """One period of a sharding whose sequences repeat, as those of `typical` do, and the number of repetitions."""
    rows = 1 if sharding.of_sequences else sharding.batch
    lengths = [stop - start for start, stop in pairwise(sharding.cu_seqlens)]
    count = len(lengths) // rows
    if any(lengths[row * count : (row + 1) * count] != lengths[:count] for row in range(rows)):
        return sharding, 1
    # Fewer would travel piece by piece where many travel in boxes, and be divided otherwise where the stream is.
    least = _most_sequences(sharding)
    periods = (
        each for each in range(least, count) if count % each == 0 and lengths[each:count] == lengths[: count - each]
    )
    once = next(periods, count)
    return replace(sharding, cu_seqlens=(0, *accumulate(lengths[:once])), batch=1), rows * (count // (once or 1))
