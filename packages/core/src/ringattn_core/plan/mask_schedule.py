"""The planner of a mask: its tiles, which are in the coordinates of the stream, in those of one rank's schedule.

A tile is cut by the runs of queries and of keys that ranks hold, the cuts move to where the rows lie on the rank and
the columns in the key buffer of a step, and cuts that are one band there become one tile again. Two ranks, 8 tokens,
contiguous, causal | two_way([range(2, 6)]), rank 1:

    keys      0 1 2 3   4 5 6 7
    query 4   1 1 1 1   0 0 . .     hop 0: two tiles on local keys, causal and the upper triangle of what is live
          5   1 1 1 1   0 0 . .            both ways
          6   1 1 1 1   0 0 0 .     hop 1: one full tile, whose columns are all that rank 0 stores
          7   1 1 1 1   0 0 0 0
"""

from __future__ import annotations

from functools import lru_cache

from ringattn_core.plan.columns import KeySlices, Parts
from ringattn_core.plan.layout import Sharding
from ringattn_core.plan.mask import Mask
from ringattn_core.plan.mask_step import Work
from ringattn_core.plan.memo import recent
from ringattn_core.plan.placed import placed
from ringattn_core.plan.route import Route, route_table
from ringattn_core.plan.schedule import Schedule, Step
from ringattn_core.plan.tile import FULL

_BUDGET, _LEAST = 64 << 20, 4  # bytes of plans; plans kept anyway


@recent(_BUDGET, lambda planned: planned.size, least=_LEAST)
def schedule_of_mask(
    mask: Mask, queries: Sharding, keys: Sharding, route: Route, cp_rank: int, num_early_rows: int
) -> Schedule:
    """The plan of a rank; where no row starts early, it is the very plan without."""
    work, table = _work(mask, queries, keys, route, num_early_rows), route_table(route, keys.cp_size)
    if num_early_rows and not (table.again[cp_rank] and work.rows(cp_rank).early.starts):
        return schedule_of_mask(mask, queries, keys, route, cp_rank, 0)
    steps = list[Step]()
    for hop, sources in enumerate(table.sources(cp_rank)):
        key_slices, launches = work.step(cp_rank, hop)
        if hop == 0 or launches or hop in _live_hops(mask, queries, keys, route):
            steps.append(Step(hop, sources, table.destinations(cp_rank, hop), key_slices, launches))
    return Schedule(
        cp_rank,
        keys.cp_size,
        shard_size=placed(mask, queries, keys).keys.longest,
        steps=tuple(steps),
        queries=queries,
        keys=keys,
        shifts=all(table.shifts[step.hop] for step in steps),
        route=route,
        window=FULL,
        mask=mask,
    )


def outgoing_rows_of_mask(schedule: Schedule, hop: int) -> KeySlices:
    """As `planner.outgoing_rows`, for a schedule of a mask."""
    assert schedule.mask is not None, "a schedule of a mask"
    work = _work(schedule.mask, schedule.queries, schedule.keys, schedule.route, 0)
    table, rank = route_table(schedule.route, schedule.cp_size), schedule.cp_rank
    ranks = (other for other in table.destinations(rank, hop) if other != rank)
    found = [(other, start, stop - start) for other in ranks for start, stop in work.outgoing_rows(rank, hop, other)]
    return KeySlices.of(Parts(*map(list, zip(*found, strict=True))) if found else Parts([], [], []))


@lru_cache(4)
def _work(mask: Mask, queries: Sharding, keys: Sharding, route: Route, num_early_rows: int) -> Work:
    return Work(placed(mask, queries, keys), route_table(route, keys.cp_size), num_early_rows)


@lru_cache(16)
def _live_hops(mask: Mask, queries: Sharding, keys: Sharding, route: Route) -> set[int]:
    """Hop 0, and those on which any rank has a live cell."""
    work, hops = _work(mask, queries, keys, route, 0), range(1, len(route_table(route, keys.cp_size).shifts))
    return {0, *filter(work.is_live, hops)}
