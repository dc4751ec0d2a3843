"""Launches of every kind that the planner emits."""

from __future__ import annotations

import random

from ringattn_core.plan.layout import contiguous, striped, zigzag
from ringattn_core.plan.planner import plan
from ringattn_core.plan.route import gather, ring, waves
from ringattn_core.plan.schedule import Launch

WINDOWS = [(-1, -1), (-1, 0), (300, 0), (0, 0), (100, 50), (200, -1)]


def launches(count: int, seed: int) -> list[tuple[Launch, int, int]]:
    """Launches of random schedules, with the lengths of their query and key buffers."""
    rng, found = random.Random(seed), {}
    while len(found) < count:
        lengths = [rng.choice([rng.randint(1, 40), rng.randint(100, 1500)]) for _ in range(rng.choice([1, 1, 2, 5]))]
        borders = tuple(sum(lengths[:i]) for i in range(len(lengths) + 1))
        size = rng.randint(1, 5)
        schedule = plan(
            rng.choice([contiguous, zigzag, striped]),
            rng.choice([ring, waves(2), gather]),
            borders,
            borders,
            rng.randrange(size),
            size,
            window=rng.choice(WINDOWS),
            per_sequence=rng.random() < 0.5,
        )
        for step in schedule.steps:
            for launch in step.launches:
                dense = launch.dense_rows, launch.dense_columns
                kind = (launch.window if max(launch.window) < 1 else min(launch.window), len(launch.tiles) > 1, dense)
                found.setdefault(
                    (kind, rng.randrange(3)), (launch, schedule.query_length, schedule.buffer_length(step))
                )
    return list(found.values())[:count]
