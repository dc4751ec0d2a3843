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

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

from ringattn_core.errors import check_cu_seqlens
from ringattn_core.plan.columns import KeySlices, Parts
from ringattn_core.plan.launches import batched, only_slice
from ringattn_core.plan.layout import Layout, Sharding
from ringattn_core.plan.mask import Mask
from ringattn_core.plan.memo import recent, shared
from ringattn_core.plan.overlaps import common, overlaps
from ringattn_core.plan.route import Route, RouteTable, route_table
from ringattn_core.plan.schedule import KeySlice, Launch, Schedule, Step
from ringattn_core.plan.tile import FAR, FULL, Tile
from ringattn_core.plan.union import joined

_BUDGET, _LEAST, _BLOCK = 64 << 20, 4, 700  # bytes of plans, and of blocks; plans kept anyway; bytes of one block


@shared
def plan_mask(
    mask: Mask,
    layout: Layout,
    route: Route,
    cp_rank: int,
    cp_size: int,
    *,
    cu_seqlens: tuple[int, ...] | None = None,
    per_sequence: bool = True,
    batch: int = 1,
) -> Schedule:
    """What rank `cp_rank` of `cp_size` computes of a self attention under a mask.

    The layout divides the stream of `mask.num_queries` tokens by the borders `cu_seqlens`, or whole without them; they
    say who holds which tokens, and not what is live. `batch`: equal rows of the stream, which matter only
    without `per_sequence`. Raises ValueError for a mask whose numbers of queries and keys differ, for borders that do
    not end with them, for a rank or a batch that cannot be, and for a layout of stripes.
    """
    tokens = mask.num_queries
    if mask.num_keys != tokens:
        raise ValueError(
            f"The mask has {tokens} queries and {mask.num_keys} keys; a self attention needs the same number of both."
        )
    borders = (0, tokens) if cu_seqlens is None else cu_seqlens
    check_cu_seqlens(borders)
    if borders[-1] != tokens:
        raise ValueError(f"cu_seqlens ends with {borders[-1]}, but the mask has {tokens} tokens: they must agree.")
    if not 0 <= cp_rank < cp_size:
        raise ValueError(f"cp_rank must be from 0 to cp_size - 1 = {cp_size - 1}, got {cp_rank}.")
    if batch < 1 or tokens % batch:
        raise ValueError(f"batch must be a number of rows of equal length, got {batch} for {tokens} tokens.")
    return _planned(mask, Sharding(layout, borders, cp_size, per_sequence, batch), route, cp_rank)


@recent(_BUDGET, lambda planned: planned.size, least=_LEAST)
def _planned(mask: Mask, sharding: Sharding, route: Route, cp_rank: int) -> Schedule:
    placed, table = _placed(mask, sharding), route_table(route, sharding.cp_size)
    steps, hops = list[Step](), sorted(_live_hops(placed, table))
    for hop in hops:
        sources = table.sources(cp_rank)[hop]
        key_slices, launches = _computed(_on_hop(placed, table, cp_rank, hop), sources)
        steps.append(Step(hop, sources, table.destinations(cp_rank, hop), key_slices, launches))
    return Schedule(
        cp_rank,
        sharding.cp_size,
        shard_size=max(map(sharding.length, range(sharding.cp_size))),
        steps=tuple(steps),
        queries=sharding,
        keys=sharding,
        shifts=all(table.shifts[hop] for hop in hops),
        route=route,
        window=FULL,
        mask=mask,
    )


def outgoing_rows_of_mask(schedule: Schedule, hop: int) -> KeySlices:
    """As `planner.outgoing_rows`, for a schedule of a mask."""
    assert schedule.mask is not None, "a schedule of a mask"
    placed, table = _placed(schedule.mask, schedule.keys), route_table(schedule.route, schedule.cp_size)
    found = list[tuple[int, range]]()
    for rank in table.destinations(schedule.cp_rank, hop):
        if rank != schedule.cp_rank:
            blocks = [b for b in _on_hop(placed, table, rank, hop) if b.keys.rank == schedule.cp_rank]
            rows = _merged(_moved(block.tile.k, block.keys.shift) for block in blocks)
            if rows and table.count(rank, hop) == 1:
                rows = [range(rows[0].start, rows[-1].stop)]  # The shard is the buffer, with what lies between.
            found += [(rank, run) for run in rows]
    return KeySlices.of(Parts([rank for rank, _ in found], *_starts_and_sizes([run for _, run in found])))


class _Run(NamedTuple):
    """Positions of the stream that a rank stores one after the other."""

    start: int
    stop: int
    offset: int
    rank: int

    @property
    def shift(self) -> int:
        """From a position to where it is stored."""
        return self.offset - self.start


class _Block(NamedTuple):
    """The part of a tile of the mask in one run of queries and one of keys, in the coordinates of the stream."""

    tile: Tile
    queries: _Run
    keys: _Run


class _Placed:
    """A mask, and who holds its rows and columns."""

    def __init__(self, mask: Mask, sharding: Sharding) -> None:
        self.mask, self.cp_size = mask, sharding.cp_size
        self.held = [_runs(sharding, rank) for rank in range(sharding.cp_size)]
        self.runs = sorted(run for runs in self.held for run in runs)
        self.starts = [run.start for run in self.runs]


_placed = lru_cache(4)(_Placed)


def _runs(sharding: Sharding, rank: int) -> list[_Run]:
    """What a rank holds, in storage order; runs that follow each other in positions are one."""
    found = list[_Run]()
    for span in sharding.spans(rank):
        positions = span.positions
        if len(positions) > 1 and positions.step != 1:
            raise ValueError(
                f"The layout {sharding.layout!r} gives rank {rank} every {positions.step}th token, and masks need runs "
                "of neighbours: take contiguous, zigzag or balanced."
            )
        run = _Run(positions.start, positions.start + len(positions), span.offset, rank)
        if found and found[-1].stop == run.start:
            run = run._replace(start=found[-1].start, offset=found.pop().offset)
        found.append(run)
    return found


@recent(_BUDGET, lambda blocks: _BLOCK * len(blocks), least=_LEAST)
def _blocks(placed: _Placed, rank: int) -> list[_Block]:
    """All that a rank's queries see, of all ranks' keys."""
    tiles, queries, found = placed.mask.tiles, placed.held[rank], list[_Block]()
    boxes = [Tile(range(run.start, run.stop), range(placed.mask.num_keys)) for run in queries]
    for index, tile in overlaps(boxes, tiles):
        if (seen := common(boxes[index], tiles[tile])) is None:
            continue
        for keys in placed.runs[bisect_right(placed.starts, seen.k.start) - 1 :]:
            if keys.start >= seen.k.stop:
                break
            if part := common(seen, Tile(seen.q, range(keys.start, keys.stop))):
                found.append(_Block(part, queries[index], keys))
    return found


def _on_hop(placed: _Placed, table: RouteTable, rank: int, hop: int) -> list[_Block]:
    """What a rank computes on a hop.

    Where own keys come again, hop 0 computes the rows that see local keys only, and later hops the others.
    """
    blocks, sources = _blocks(placed, rank), set(table.sources(rank)[hop])
    present = [block for block in blocks if block.keys.rank in sources]
    if not table.again[rank]:
        return present
    rows = _merged(block.tile.q for block in blocks if block.keys.rank != rank)
    if hop == 0:
        edges = [0, *(edge for run in rows for edge in (run.start, run.stop)), placed.mask.num_queries]
        rows = [range(*gap) for gap in zip(edges[::2], edges[1::2], strict=True) if gap[0] < gap[1]]
    boxes = [Tile(run, range(placed.mask.num_keys)) for run in rows]
    pairs = overlaps(boxes, [block.tile for block in present])
    cuts = ((common(boxes[box], present[block].tile), present[block]) for box, block in pairs)
    return [block._replace(tile=cut) for cut, block in cuts if cut]


@lru_cache(16)
def _live_hops(placed: _Placed, table: RouteTable) -> frozenset[int]:
    """Hop 0, and those on which any rank has a live cell."""
    hops, found = range(1, len(table.shifts)), {0}
    # The last ranks first: under a causal mask they see the keys of most others.
    for rank in reversed(range(placed.cp_size)):
        found |= {hop for hop in hops if hop not in found and _on_hop(placed, table, rank, hop)}
        if len(found) > len(hops):
            break
    return frozenset(found)


def _computed(
    blocks: list[_Block], sources: Sequence[int]
) -> tuple[tuple[KeySlice, ...] | KeySlices, tuple[Launch, ...]]:
    """The rows of the sources' shards that blocks need, and the launches over them."""
    if len(sources) == 1:
        launches = _launches((block, block.keys.shift) for block in blocks)
        return only_slice(sources[0], launches), launches
    columns = defaultdict[_Run, list[range]](list)
    for block in blocks:
        columns[block.keys].append(block.tile.k)
    needed = sorted(
        ((part, run) for run, parts in columns.items() for part in _merged(parts)), key=lambda each: each[0].start
    )
    begins = [part.start for part, _ in needed]  # in the stream
    offsets = list(accumulate((len(part) for part, _ in needed), initial=0))  # in the key buffer
    places = (bisect_right(begins, block.tile.k.start) - 1 for block in blocks)
    launches = _launches((block, offsets[place] - begins[place]) for block, place in zip(blocks, places, strict=True))
    rows = [_moved(part, run.shift) for part, run in needed]
    return KeySlices.of(Parts([run.rank for _, run in needed], *_starts_and_sizes(rows))), launches


def _launches(blocks: Iterable[tuple[_Block, int]]) -> tuple[Launch, ...]:
    """Launches over blocks, each with how far its columns move from the stream to the key buffer."""
    tiles = joined(_shifted(block.tile, block.queries.shift, shift) for block, shift in blocks)
    return tuple(batched([tiles]))


def _shifted(tile: Tile, rows: int, columns: int) -> Tile:
    low = tile.low if tile.low == -FAR else tile.low + columns - rows
    high = tile.high if tile.high == FAR else tile.high + columns - rows
    return Tile(_moved(tile.q, rows), _moved(tile.k, columns), low, high)


def _moved(part: range, by: int) -> range:
    return range(part.start + by, part.stop + by)


def _starts_and_sizes(runs: Sequence[range]) -> tuple[list[int], list[int]]:
    return [run.start for run in runs], list(map(len, runs))


def _merged(parts: Iterable[range]) -> list[range]:
    """The union of ranges, in order."""
    found = list[range]()
    for part in sorted(parts, key=lambda part: part.start):
        if found and part.start <= found[-1].stop:
            found[-1] = range(found[-1].start, max(found[-1].stop, part.stop))
        else:
            found.append(part)
    return found
