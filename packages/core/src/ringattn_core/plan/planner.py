"""The planner: from a layout, a route and a mask to one rank's schedule.

For every pair of a query span and a key span the mask is a band; a band without a live cell is skipped, neighbouring
tiles that one band describes become one tile, and tiles of one window become one launch. What other libraries write by
hand for each algorithm (ring's causal/full/skip, zigzag's halves, stripe's shifted mask, llama 3's cut of cu_seqlens)
falls out of this.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from operator import add
from typing import NamedTuple

from ringattn_core.errors import check_cu_seqlens, check_ranks_and_sequences
from ringattn_core.plan.alive import alive as _alive
from ringattn_core.plan.arrange import arranged, merged
from ringattn_core.plan.columns import KeySlices, Parts
from ringattn_core.plan.join import joined_tiles
from ringattn_core.plan.launches import batched, only_slice
from ringattn_core.plan.layout import Layout, Sharding
from ringattn_core.plan.lines import Mask, Shard, mask
from ringattn_core.plan.local_rows import split, with_early_rows
from ringattn_core.plan.many import full_tiles, gathered, lending
from ringattn_core.plan.mask_schedule import outgoing_rows_of_mask
from ringattn_core.plan.memo import by_owner, recent, shared
from ringattn_core.plan.route import Route, RouteTable, route_table
from ringattn_core.plan.schedule import KeySlice, Launch, Schedule, Step
from ringattn_core.plan.tile import FULL, Tile, Window

# The plans of the last batches, because every layer of a model looks up those of its batch: up to `_BUDGET` bytes, and
# at least `_LEAST` plans, which are those of two masks, forward and backward.
_BUDGET, _LEAST = 64 << 20, 4


@shared
def plan(
    layout: Layout,
    route: Route,
    cu_seqlens_q: tuple[int, ...],
    cu_seqlens_k: tuple[int, ...],
    cp_rank: int,
    cp_size: int,
    *,
    window: Window = FULL,
    per_sequence: bool = True,
    batch: int = 1,
    num_early_rows: int = 0,
) -> Schedule:
    """What rank `cp_rank` of `cp_size` computes; hops on which no rank has a live cell are left out for all.

    `cu_seqlens_q` and `cu_seqlens_k` are the global borders of the packed sequences (the same number of sequences).
    `window` is FlashAttention's (left, right), aligned to the bottom-right corner of each sequence; -1 is an open
    side, (-1, 0) is causal. `batch`: the number of equal rows in the stream; it matters only without `per_sequence`.
    `num_early_rows`: where own keys come again (see `Route`), a rank that has fewer rows than this for hop 0 fills up
    to it with rows that wait for others' keys, which are computed in two parts: the last of its longest sequence, and
    none if that has too few. `local_rows.default_early_rows` says how many are worth it in a forward pass; in a
    backward pass none are. Raises ValueError for borders that are no cumulative lengths, or whose number differs, and
    for a rank or a batch that cannot be.
    """
    check_cu_seqlens(cu_seqlens_q, "cu_seqlens_q")
    check_cu_seqlens(cu_seqlens_k, "cu_seqlens_k")
    check_ranks_and_sequences(cp_rank, cp_size, cu_seqlens_q, cu_seqlens_k, ("cu_seqlens_q", "cu_seqlens_k"))
    if batch < 1 or cu_seqlens_q[-1] % batch or cu_seqlens_k[-1] % batch:
        raise ValueError(
            f"batch must be a number of rows of equal length, got {batch} for {cu_seqlens_q[-1]} queries and "
            f"{cu_seqlens_k[-1]} keys."
        )
    queries = Sharding(layout, cu_seqlens_q, cp_size, per_sequence, batch)
    keys = Sharding(layout, cu_seqlens_k, cp_size, per_sequence, batch)
    return _planned(queries, keys, route, cp_rank, window, num_early_rows)


@recent(_BUDGET, lambda planned: planned.size, least=_LEAST)
def _planned(
    queries: Sharding, keys: Sharding, route: Route, cp_rank: int, window: Window, num_early_rows: int
) -> Schedule:
    """The plan of a rank; where no row starts early, it is the very plan without."""
    whole, everyone = mask(queries, keys, window), route_table(route, keys.cp_size)
    rows, hops = _rows(whole, everyone, cp_rank, num_early_rows), []
    if num_early_rows and not rows[1].early_rows:
        return _planned(queries, keys, route, cp_rank, window, 0)
    for hop, sources in enumerate(everyone.sources(cp_rank)):
        key_slices, launches = _hop(whole, rows[hop > 0], cp_rank, sources)
        if hop == 0 or launches or hop in _alive(queries, keys, window, route):
            hops.append((hop, sources, everyone.destinations(cp_rank, hop), key_slices, launches))
    return Schedule(
        cp_rank,
        keys.cp_size,
        shard_size=whole.keys.longest,
        steps=tuple(Step(*hop) for hop in hops),
        queries=queries,
        keys=keys,
        shifts=all(everyone.shifts[hop] for hop, *_ in hops),
        route=route,
        window=window,
    )


def plan_all(
    layout: Layout,
    route: Route,
    cu_seqlens: tuple[int, ...],
    cp_size: int,
    *,
    cu_seqlens_k: tuple[int, ...] | None = None,
    window: Window = FULL,
    per_sequence: bool = True,
    batch: int = 1,
    num_early_rows: int = 0,
) -> tuple[Schedule, ...]:
    """Every rank's schedule, in rank order: what `verify`, `draw` and `simulate` look at. As `plan` otherwise."""
    keys = cu_seqlens if cu_seqlens_k is None else cu_seqlens_k
    return tuple(
        plan(
            layout,
            route,
            cu_seqlens,
            keys,
            rank,
            cp_size,
            window=window,
            per_sequence=per_sequence,
            batch=batch,
            num_early_rows=num_early_rows,
        )
        for rank in range(cp_size)
    )


@by_owner
def outgoing_rows(schedule: Schedule, hop: int) -> KeySlices:
    """The rows of a rank's own shard that others fetch on a hop; `source` is here the rank that fetches them.

    Where the rows lie there is for that rank to say: the offsets here mean nothing.
    """
    if schedule.mask is not None:
        return outgoing_rows_of_mask(schedule, hop)
    whole = mask(schedule.queries, schedule.keys, schedule.window)
    everyone = route_table(schedule.route, schedule.cp_size)
    ranks, begins, counts = list[int](), list[int](), list[int]()
    seen = lending(whole, schedule.cp_rank)
    for rank in everyone.destinations(schedule.cp_rank, hop):
        if rank != schedule.cp_rank:
            starts, sizes = seen(rank) if seen else _needed(whole, everyone, hop, rank, schedule.cp_rank)
            if everyone.count(rank, hop) == 1:
                # The shard is the buffer, and what lies between rows that are needed is in it.
                first = min(compress(starts, sizes), default=0)
                starts, sizes = (
                    [first],
                    [max(map(add, compress(starts, sizes), filter(None, sizes)), default=0) - first],
                )
            ranks.extend([rank] * len(starts))
            begins.extend(starts)
            counts.extend(sizes)
    return KeySlices.of(Parts(ranks, begins, counts))


def _needed(mask: Mask, everyone: RouteTable, hop: int, rank: int, source: int) -> tuple[list[int], list[int]]:
    """The rows of a source's shard that a rank fetches on a hop: where they begin, and how many they are.

    A step of several sources needs the same rows of each as a step of that source alone, without the gaps.
    """
    rows, theirs, key_slices = _rows(mask, everyone, rank)[hop > 0], mask.keys.held(source), list[KeySlice]()
    for sequence, lines in rows.whole.items():
        arranged(mask, sequence, rank, lines, [], theirs.get(sequence, []), key_slices)
    return [key_slice.rows.start for key_slice in key_slices], [len(key_slice.rows) for key_slice in key_slices]


class _Rows(NamedTuple):
    """A rank's queries on a hop."""

    whole: Shard  # they see the keys of all sources of the hop
    early_rows: Shard  # they see those of others: their own rank's they saw on hop 0


def _rows(mask: Mask, everyone: RouteTable, rank: int, num_early_rows: int = 0) -> tuple[_Rows, _Rows]:
    """What is computed of a rank's queries on hop 0, and what on the later hops: all, each time, for most routes."""
    rows = mask.queries.held(rank)
    if not everyone.again[rank]:
        return _Rows(rows, {}), _Rows(rows, {})
    own, local_rows, others = mask.keys.held(rank), Shard(), Shard()
    for sequence, lines in rows.items():
        local_rows[sequence], others[sequence] = split(mask, sequence, lines, own.get(sequence, []))
    if not num_early_rows:
        return _Rows(local_rows, {}), _Rows(others, {})
    rest, early_rows = with_early_rows(mask.stride, local_rows, others, num_early_rows)
    first = {sequence: local_rows[sequence] + early_rows.get(sequence, []) for sequence in rows}
    return _Rows(first, {}), _Rows(rest, early_rows)


def _hop(
    mask: Mask, rows: _Rows, rank: int, sources: Sequence[int]
) -> tuple[tuple[KeySlice, ...] | KeySlices, tuple[Launch, ...]]:
    """The pieces of the sources' shards that a rank's queries need, and its launches over them."""
    if len(sources) == 1 and rows.whole is mask.queries.held(rank):
        tiles = full_tiles(mask, rank, sources[0])
        if tiles is not None:
            full = (Launch(tiles),) if tiles else ()
            return only_slice(sources[0], full), full
    buffer = gathered(mask, rank, sources) if len(sources) > 1 else None
    shards = [] if buffer else [mask.keys.held(source) for source in sources]
    key_slices, sequences = list[KeySlice](), list[list[Tile]]()
    for sequence, whole in rows.whole.items():
        early_rows = rows.early_rows.get(sequence, [])
        keys = [line for shard in shards for line in shard.get(sequence, ())]
        if buffer:
            keys = buffer.lines(sequence, whole, early_rows)
        elif len(sources) > 1:
            keys = arranged(mask, sequence, rank, whole, early_rows, keys, key_slices)
        sequences.append(joined_tiles(mask, sequence, whole, merged(mask, keys)))
        if early_rows:
            theirs = [line for line in keys if line[3] != rank]
            sequences.append(joined_tiles(mask, sequence, early_rows, merged(mask, theirs)))
    launches = tuple(batched(sequences))
    if len(sources) == 1:
        return only_slice(sources[0], launches), launches
    return buffer.key_slices() if buffer else tuple(key_slices), launches
